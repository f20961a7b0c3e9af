"""The names of ms-swift's training arguments, known without importing ms-swift (which takes ten seconds or more).

    python -m scripts.arguments --write    # after changing the pinned versions: renew scripts/arguments.json

The table is used only with the versions that it was made from; with any others ms-swift itself is asked.
"""

import json
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from data.errors import run_cli
from data.files import write_atomic

TABLE = Path(__file__).with_suffix(".json")
# Their dataclasses are what ms-swift's arguments inherit from.
SOURCES = ("ms-swift", "transformers", "trl")


def installed_versions(packages: tuple[str, ...] = SOURCES) -> dict[str, str | None]:
    """Versions by distribution name, None for one that is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def ask_swift() -> dict[str, list[str]]:
    """Field names of ms-swift's argument classes, sorted: "learn" of `swift sft`, "critique" of `swift rlhf`."""
    from dataclasses import fields

    from swift.arguments import RLHFArguments, SftArguments

    classes = {"learn": SftArguments, "critique": RLHFArguments}
    return {stage: sorted(f.name for f in fields(kind) if f.init) for stage, kind in classes.items()}


@cache
def known_arguments(stage: str) -> frozenset[str]:
    """Names that `swift sft` (stage "learn") or `swift rlhf` (stage "critique") accepts."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    names = table["names"] if table["versions"] == installed_versions() else ask_swift()
    return frozenset(names[stage])


def main() -> None:
    if sys.argv[1:] != ["--write"]:
        print(__doc__)
        return
    table = {"versions": installed_versions(), "names": ask_swift()}
    write_atomic(TABLE, json.dumps(table, indent=1) + "\n")
    print(f"{TABLE}: {', '.join(f'{stage} {len(names)}' for stage, names in table['names'].items())} names")


if __name__ == "__main__":
    run_cli(main)
