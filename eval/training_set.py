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
    """([(study file, image root or None)], notes) from the launch.json of a checkpoint's run and of the runs before it.

    A Critique starts from a Learn student, a second round from a Critique: what those were trained on counts, too. A
    model that a hub released is none of a run. A file that is gone, has changed since, or holds rows without patients
    cannot be compared and becomes a note, and so does a model whose run is not known.
    """
    unchecked = "overlap with the training {} was not checked: it {}; name its studies with --train"
    found: dict[tuple[Path, Path | None], None] = {}
    notes: dict[str, None] = {}
    seen: set[Path] = set()  # a resumed run names its own checkpoint
    waiting = [(Path(checkpoint), "set")]
    while waiting:
        model, what = waiting.pop(0)
        path = _launch_of(model)
        if path in seen:
            continue
        if path is None:
            notes[unchecked.format(what, "is not known")] = None
            continue
        seen.add(path)
        try:
            launch = json.loads(path.read_text(encoding="utf-8"))
            entries = [(Path(one["path"]), one["sha256"]) for one in launch["datasets"]]
            root = Path(launch["image_root"]) if launch.get("image_root") else None
            before = _started_from(launch.get("settings", {}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            notes[unchecked.format(what, f"is not readable from {path.name}")] = None
            continue
        waiting += [(one, f"set of the model that it started from ({one.name})") for one in before]
        for file, digest in entries:
            why = None
            if not file.is_file():
                why = "is gone"
            elif sha256_file(file) != digest:
                why = "has changed since"
            elif file_kind(file) != "studies":
                why = "holds rows without patients"
            if why:
                notes[unchecked.format(f"file {file.name}", why)] = None
            else:
                found[file, root] = None
    return list(found), list(notes)


def _launch_of(model: Path) -> Path | None:
    """The launch.json of the run that made a checkpoint-N, or what was merged from one beside it or inside it."""
    folder = model.expanduser().resolve().parent
    return next((path for path in (folder / manifest.LAUNCH, folder.parent / manifest.LAUNCH) if path.is_file()), None)


def _started_from(settings: dict) -> list[Path]:
    """The models and adapters on disk that a run of these settings went on training."""
    resumed = settings.get("resume_from_checkpoint")
    # A resumed Critique has its own checkpoint as the model and its start as the reference.
    models = [settings.get("model"), settings.get("ref_model") if resumed else None]
    adapters = settings.get("adapters") or []
    adapters = [*(adapters if isinstance(adapters, list) else [adapters]), resumed]
    # The launcher writes a model on disk as an absolute path; any other name is that of a hub.
    return [Path(one) for one in models if one and Path(one).is_absolute()] + [Path(one) for one in adapters if one]


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
