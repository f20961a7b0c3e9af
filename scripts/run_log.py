"""The log that ms-swift appends to: one row a logged step. A run that goes on must not have a step in it twice."""

import json
from pathlib import Path

from data.files import write_atomic

NAME = "logging.jsonl"
STEP = "global_step/max_steps"


def keep_until(path: Path, step: int) -> int:
    """Take out of a log what comes after `step`, and any torn line and summary; how many rows. No log: 0.

    Training that goes on from `step` logs the later steps again, and a new summary at its end.
    """
    if not path.is_file():
        return 0
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and _up_to(line, step)]
    if len(kept) < len(lines):
        write_atomic(path, b"".join(kept))
    return len(lines) - len(kept)


def _up_to(line: bytes, step: int) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False
    at = str(row.get(STEP, "")).partition("/")[0] if isinstance(row, dict) else ""
    return at.isdigit() and int(at) <= step and "train_runtime" not in row
