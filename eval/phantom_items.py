"""Studies of a phantom cohort for the benchmarks: those of one split, with what identifies the file."""

from collections.abc import Mapping
from pathlib import Path

from data.errors import UserError
from data.files import sha256_file
from data.records import SPLITS, read_studies
from eval.phantom import refuse_without_findings, split_of

# Options of every phantom benchmark: option -> choices, the default first.
OPTIONS = {"split": ("test", *(split for split in SPLITS if split != "test")), "studies": "studies.jsonl"}


def read(root: Path, chosen: Mapping[str, str]) -> tuple[list[dict], Path, dict]:
    """(studies of the split, folder that films are relative to, fingerprint).

    Args:
        root: a cohort folder as `python -m data.phantom` writes it.
        chosen: OPTIONS as `eval.benchmarks.choose` returns them.

    Raises UserError for a folder without such a file, or studies whose findings are not known.
    """
    path = root / chosen["studies"]
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; name a cohort folder with --data-root, or its file with --set studies=FILE"
        )
    studies = split_of(read_studies(path), chosen["split"], path, "check --set split= and the file")
    refuse_without_findings(studies, path)
    fingerprint = {"table": path.name, "sha256": sha256_file(path), "split": chosen["split"], "studies": len(studies)}
    return studies, path.parent.resolve(), fingerprint
