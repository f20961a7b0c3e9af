"""Ends the process with one line where Python is wrong or a package is missing that what follows could not even be
imported without; imported first. Every other package is told of by the doctor."""

import sys
from importlib.util import find_spec

from scripts.machine import package_problems

NEEDED = ("numpy", "PIL", "psutil", "safetensors", "tokenizers", "yaml")
SUPPORTED = (3, 11) <= sys.version_info[:2] <= (3, 12)

if not SUPPORTED or not all(map(find_spec, NEEDED)):
    print(*(f"error: {line}" for line in package_problems()[0]), sep="\n", file=sys.stderr)
    sys.exit(2)
