"""Train, validate and test by patient: no patient on two sides.

python -m data.splits STUDIES.jsonl --out F --validate 0.02 --test 0.1 --seed 0    # assign anew
python -m data.splits STUDIES.jsonl [MORE.jsonl ...] --check                       # look at what is there

Films are compared by their paths under --image-root, by default the folder of each file. MIMIC-CXR has an official
split: assign anew only what has none.
"""

import argparse
import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from data.errors import Problems, UserError, run_cli
from data.files import StrPath, out_file, refuse_input
from data.records import SPLITS, image_paths, numbered_studies, read_studies, root_of, tell_root, write_studies


def assign(
    sizes: dict[str, int], *, validate: float, test: float, seed: int = 0, count: str = "patients"
) -> dict[str, str]:
    """Split by patient: the patients in the order of sha256("SEED:PATIENT"), first test, then validate, the rest train.

    The order of the file does not matter, and one patient more or less moves few others.

    Args:
        sizes: studies by patient.
        validate, test: the parts, from 0; together below 1. A part above 0 gets at least one patient.
        count: parts of the "patients", or of the "studies": then a split is full when its studies reach the part.

    Raises:
        UserError: impossible parts, or so few patients that train would be empty.
    """
    for name, part in (("--validate", validate), ("--test", test)):
        if not (math.isfinite(part) and 0 <= part < 1):
            raise UserError(f"{name} {part}: write a part from 0 to below 1, 0.1 for a tenth")
    if validate + test >= 1:
        raise UserError(f"--validate {validate} and --test {test}: leave a part for train; together below 1")
    weights = {patient: 1 if count == "patients" else size for patient, size in sizes.items()}
    total = sum(weights.values())
    order = sorted(sizes, key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())
    found: dict[str, str] = {}
    at = 0
    for split, part in (("test", test), ("validate", validate)):
        held, wanted = 0, round(part * total) if part * total >= 1 else math.ceil(part * total)
        while held < wanted and at < len(order):
            found[order[at]] = split
            held += weights[order[at]]
            at += 1
    if at >= len(order):
        raise UserError(
            f"{len(order)} patient(s) are too few for these parts: none is left for train; make them smaller"
        )
    found.update(dict.fromkeys(order[at:], "train"))
    return found


def split_file(
    path: StrPath,
    out: StrPath,
    *,
    validate: float,
    test: float,
    seed: int = 0,
    count: str = "patients",
    image_root: StrPath | None = None,
) -> dict[str, Any]:
    """Write the studies of `path` with splits by `assign`; reads three times, a study in memory at a time.

    Returns:
        The counts of `check_splits` for what was written.

    Raises:
        UserError: `out` is `path`, whose splits (an official one, say) would be lost; what `assign` refuses; a film of
            two patients that would be on two sides. Nothing is written then.
    """
    refuse_input(out, path)
    root = root_of(path, image_root)
    sizes: Counter = Counter(study["patient"] for study in read_studies(path))
    if not sizes:
        raise UserError(f"{path}: holds no study; write one JSON object a line")
    splits = assign(sizes, validate=validate, test=test, seed=seed, count=count)

    def assigned() -> Iterator[tuple[str, str, dict]]:
        for where, study in _studies(path):
            yield where, root, study | {"split": splits[study["patient"]]}

    counts = _count(assigned(), str(path))
    write_studies(out, (study for _, _, study in assigned()))
    return counts


def check_splits(paths: Sequence[StrPath], *, image_root: StrPath | None = None) -> dict[str, Any]:
    """Count studies and patients by split over all files together.

    Args:
        image_root: folder that the `images` of all files are relative to; by default each file's own folder.

    Returns:
        {"studies": {split: n}, "patients": {split: n}}.

    Raises:
        UserError: a patient, a film or a study on two sides; names studies, never patients. An unreadable file. Files
            of several folders without an `image_root` that do not have their films there.
    """
    roots = [root_of(path, image_root) for path in paths]
    if image_root is None and len(set(roots)) > 1:
        # Films of one image root under the names of two: a film on both sides would not show.
        for path, root in zip(paths, roots, strict=True):
            film = next((film for _, study in _studies(path) for film in image_paths(study, root)), None)
            if film and not os.path.exists(film):
                raise UserError(
                    f"{path}: its first film {film} is not there, so that films of several folders cannot be compared; "
                    "give the --image-root that image paths start from"
                )
    studies = ((where, root, study) for path, root in zip(paths, roots, strict=True) for where, study in _studies(path))
    return _count(studies, ", ".join(map(str, paths)))


def _count(found: Iterable[tuple[str, str, dict]], name: str) -> dict[str, Any]:
    """The counts of (FILE:LINE, image root, study); UserError, headed by `name`, for what is on two sides."""
    problems = Problems(name)
    patients: dict[str, tuple[str, str]] = {}
    ids: dict[str, tuple[str, str]] = {}
    films: dict[str, tuple[str, str]] = {}
    studies: Counter = Counter()
    by_patient = "put all studies of a patient on one side (python -m data.splits assigns by patient)"
    for where, root, study in found:
        split, here = study["split"], f"study {study['id']!r} of {where}"
        studies[split] += 1
        # One line a study: the same patient twice brings the same films twice as well.
        for what, seen, keys, remedy in (
            ("its patient", patients, [study["patient"]], by_patient),
            ("the study", ids, [study["id"]], by_patient),
            (
                "its film",
                films,
                [os.path.normpath(film) for film in image_paths(study, root)],
                "give both the same patient if they are one patient's, or mend the paths in images",
            ),
        ):
            clash = next((seen[key] for key in keys if key in seen and seen[key][0] != split), None)
            for key in keys:
                seen.setdefault(key, (split, here))
            if clash:
                problems.add(
                    f"{where}: study {study['id']!r} is in {split}, but {what} is in {clash[0]} with {clash[1]}; "
                    f"{remedy}"
                )
                break
    problems.refuse()
    if not studies:
        raise UserError(f"{name}: no study; write one JSON object a line")
    by_split: dict[str, int] = defaultdict(int)
    for split, _ in patients.values():
        by_split[split] += 1
    return {"studies": dict(studies), "patients": dict(by_split)}


def _studies(path: StrPath) -> Iterator[tuple[str, dict]]:
    for line, study in numbered_studies(path):
        yield f"{path}:{line}", study


def describe(counts: dict[str, Any], path: str) -> str:
    """The counts in a few lines for people."""
    return "\n".join(
        [
            f"{path}: {sum(counts['studies'].values())} studies of {sum(counts['patients'].values())} patients",
            *(
                f"  {split}: {counts['studies'].get(split, 0)} studies, {counts['patients'].get(split, 0)} patients"
                for split in SPLITS
            ),
            "  no patient on two sides",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data.splits", description="Split studies by patient, or check that no patient is on two sides."
    )
    parser.add_argument("studies", nargs="+", help="study records; several files only with --check")
    parser.add_argument("--out", type=out_file, help="file to write")
    parser.add_argument("--validate", type=float, default=0.02, help="part for validate (default: %(default)s)")
    parser.add_argument("--test", type=float, default=0.1, help="part for test (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", choices=("patients", "studies"), default="patients", help="what the parts are of")
    parser.add_argument("--image-root", help="folder that image paths start from (default: the folder of each file)")
    parser.add_argument("--check", action="store_true", help="write nothing, check what is there")
    options = parser.parse_args()
    if options.check == (options.out is not None):
        raise UserError("say either --out FILE, to assign splits, or --check, to look at those there are")
    if options.check:
        print(describe(check_splits(options.studies, image_root=options.image_root), ", ".join(options.studies)))
        return
    if len(options.studies) > 1:
        raise UserError("--out takes one file of studies; join them first (cat A.jsonl B.jsonl > ALL.jsonl)")
    parts = {name: getattr(options, name) for name in ("validate", "test", "seed", "count", "image_root")}
    print(describe(split_file(options.studies[0], options.out, **parts), options.out))
    tell_root(options.out, options.studies[0])


if __name__ == "__main__":
    run_cli(main)
