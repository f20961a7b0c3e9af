"""The ledger of the ablation matrix: docs/results/phantom.jsonl, one line for each run that ended well."""

import fcntl
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import append_jsonl, read_jsonl
from scripts import machine
from scripts.plan import ROOT

LEDGER = ROOT / "docs" / "results" / "phantom.jsonl"
KEY = ("world", "row", "seed", "config")
# What the matrix itself writes while it runs; everything else that differs from the commit makes a line dirty.
WRITTEN = ("docs/results", "docs/evidence.md")

Key = tuple[str, str, int, str]


def key_of(line: dict[str, Any]) -> Key:
    """What makes a run the same run, whatever the commit: world, row, seed and hash of the resolved config."""
    return tuple(line[name] for name in KEY)  # type: ignore[return-value]


def read(path: Path) -> dict[Key, dict[str, Any]]:
    """All lines by key; {} without a ledger. Raises UserError for a line without a key, or one key twice."""
    lines: dict[Key, dict[str, Any]] = {}
    if not path.exists():
        return lines
    for number, line in read_jsonl(path, torn="drop"):
        if not isinstance(line, dict) or any(name not in line for name in KEY):
            raise UserError(f"{path}:{number}: no line of a ledger ({', '.join(KEY)}); mend or remove it")
        if key_of(line) in lines:
            raise UserError(
                f"{path}:{number}: {line['row']} of {line['world']}, seed {line['seed']}, is there twice; keep one"
            )
        lines[key_of(line)] = line
    return lines


def append(path: Path, line: dict[str, Any]) -> bool:
    """Append a line unless its key is there; returns whether it was appended. Several matrices may write at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if key_of(line) in read(path):
            return False
        append_jsonl(path, line)
    return True


def commit() -> dict[str, Any]:
    """{"commit": hash or None without git, "dirty": whether any file but the matrix's own output differs from it}."""
    head = machine.git("rev-parse", "HEAD", root=ROOT)
    excluded = (f":(exclude){path}" for path in WRITTEN)
    changed = machine.git("status", "--porcelain", "--", ".", *excluded, root=ROOT)
    return {"commit": head, "dirty": None if changed is None else bool(changed)}
