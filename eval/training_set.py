"""Which studies a checkpoint was trained on, as far as its run wrote it down, and what a benchmark shares with them."""

import dataclasses
import json
from pathlib import Path

from data import manifest
from data.errors import UserError
from data.files import sha256_file
from data.rows import file_kind
from eval import leaks
from eval.items import Benchmark


def studies_of(checkpoint: str | Path) -> tuple[list[tuple[Path, Path | None]], list[str]]:
    """([(study file, image root or None)], notes) from the launch.json beside a checkpoint-N folder.

    A file that is gone, has changed since, or holds rows without patients cannot be compared and becomes a note.
    """
    unchecked = "overlap with the training {} was not checked: it {}; name its studies with --train"
    path = Path(checkpoint).resolve().parent / manifest.LAUNCH
    if not path.is_file():
        return [], [unchecked.format("set", "is not known")]
    try:
        launch = json.loads(path.read_text(encoding="utf-8"))
        entries = [(Path(one["path"]), one["sha256"]) for one in launch["datasets"]]
        root = Path(launch["image_root"]) if launch.get("image_root") else None
    except (OSError, ValueError, KeyError, TypeError):
        return [], [unchecked.format("set", f"is not readable from {path.name}")]
    found, notes = [], []
    for file, digest in entries:
        why = None
        if not file.is_file():
            why = "is gone"
        elif sha256_file(file) != digest:
            why = "has changed since"
        elif file_kind(file) != "studies":
            why = "holds rows without patients"
        if why:
            notes.append(unchecked.format(f"file {file.name}", why))
        else:
            found.append((file, root))
    return found, notes


def checked(
    benchmark: Benchmark, files: list[tuple[Path, Path | None]], notes: list[str], *, excluded: bool
) -> Benchmark:
    """The benchmark with its overlap with each training file in the notes, without overlapping items if `excluded`.

    "overlap_with_training" of the fingerprint is a list where there are several files. With `excluded` each is compared
    with the items that those before it left.

    Args:
        files, notes: as `studies_of` returns them, or the file and image root that the user named.

    Raises UserError when overlapping items are to be left out and no training file is known.
    """
    if excluded and not files:
        raise UserError("--exclude-overlap: the training studies are not known; name them with --train STUDIES.jsonl")
    overlaps = []
    for file, root in files:
        benchmark = leaks.checked(benchmark, leaks.read_trained(file, image_root=root), excluded=excluded)
        overlaps.append({"file": file.name} | benchmark.fingerprint["overlap_with_training"])
    if len(overlaps) > 1:
        fingerprint = benchmark.fingerprint | {"overlap_with_training": overlaps}
        benchmark = dataclasses.replace(benchmark, fingerprint=fingerprint)
    return dataclasses.replace(benchmark, notes=(*benchmark.notes, *notes))
