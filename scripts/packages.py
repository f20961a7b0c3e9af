"""Ends the process with one line where Python is wrong or a package is missing that what follows could not even be
imported without; imported first. Every other package is told of by the doctor."""

import sys
from importlib.util import find_spec

from scripts.machine import package_problems

NEEDED = ("numpy", "PIL", "psutil", "safetensors", "tokenizers", "yaml")
SUPPORTED = (3, 11) <= sys.version_info[:2] <= (3, 12)
missing = [name for name in NEEDED if not find_spec(name)]

if missing or not SUPPORTED:
    found = package_problems()[0] or [f"packages: no module {', '.join(missing)}; run: bash scripts/setup.sh"]
    print(*(f"error: {line}" for line in found), sep="\n", file=sys.stderr)
    sys.exit(2)
