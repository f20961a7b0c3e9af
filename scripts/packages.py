"""Ends the process with one line where Python or a package is wrong; imported before anything that needs packages."""

import sys

from scripts.machine import package_problems

if errors := package_problems(set())[0]:
    print(*(f"error: {line}" for line in errors), sep="\n", file=sys.stderr)
    sys.exit(2)
