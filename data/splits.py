"""Train, validate and test by patient: no patient on two sides.

python -m data.splits STUDIES.jsonl --out F --validate 0.02 --test 0.1 --seed 0    # assign anew
python -m data.splits STUDIES.jsonl [MORE.jsonl ...] --check                       # look at what is there

MIMIC-CXR has an official split: assign anew only what has none.
"""

import argparse
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from data.errors import Problems, UserError, run_cli
from data.files import StrPath, out_file, refuse_input
from data.records import SPLITS, numbered_studies, read_studies, tell_root, write_studies


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
    path: StrPath, out: StrPath, *, validate: float, test: float, seed: int = 0, count: str = "patients"
) -> dict[str, Any]:
    """Write the studies of `path` with splits by `assign`; reads twice, a study in memory at a time.

    Returns:
        The counts of `check_splits` for what was written.

    Raises:
        UserError: `out` is `path`, whose splits (an official one, say) would be lost; what `assign` refuses.
    """
    refuse_input(out, path)
    sizes: Counter = Counter(study["patient"] for study in read_studies(path))
    if not sizes:
        raise UserError(f"{path}: holds no study; write one JSON object a line")
    splits = assign(sizes, validate=validate, test=test, seed=seed, count=count)
    write_studies(out, (study | {"split": splits[study["patient"]]} for study in read_studies(path)))
    return check_splits([out])


def check_splits(paths: Sequence[StrPath]) -> dict[str, Any]:
    """Count studies and patients by split over all files together.

    Returns:
        {"studies": {split: n}, "patients": {split: n}}.

    Raises:
        UserError: a patient, a film or a study on two sides; names studies, never patients. An unreadable file.
    """
    problems = Problems(", ".join(map(str, paths)))
    patients: dict[str, tuple[str, str]] = {}
    ids: dict[str, tuple[str, str]] = {}
    films: dict[str, tuple[str, str]] = {}
    studies: Counter = Counter()
    for where, study in _studies(paths):
        split, here = study["split"], f"study {study['id']!r} of {where}"
        studies[split] += 1
        # One line a study: the same patient twice brings the same films twice as well.
        for what, seen, keys in (
            ("its patient", patients, [study["patient"]]),
            ("the study", ids, [study["id"]]),
            ("its film", films, study["images"]),
        ):
            clash = next((seen[key] for key in keys if key in seen and seen[key][0] != split), None)
            for key in keys:
                seen.setdefault(key, (split, here))
            if clash:
                problems.add(
                    f"{where}: study {study['id']!r} is in {split}, but {what} is in {clash[0]} with {clash[1]}; put "
                    "all studies of a patient on one side (python -m data.splits assigns by patient)"
                )
                break
    problems.refuse()
    if not studies:
        raise UserError(f"{problems.path}: no study; write one JSON object a line")
    by_split: dict[str, int] = defaultdict(int)
    for split, _ in patients.values():
        by_split[split] += 1
    return {"studies": dict(studies), "patients": dict(by_split)}


def _studies(paths: Sequence[StrPath]) -> Iterator[tuple[str, dict]]:
    for path in paths:
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
    parser.add_argument("--check", action="store_true", help="write nothing, check what is there")
    options = parser.parse_args()
    if options.check == (options.out is not None):
        raise UserError("say either --out FILE, to assign splits, or --check, to look at those there are")
    if options.check:
        print(describe(check_splits(options.studies), ", ".join(options.studies)))
        return
    if len(options.studies) > 1:
        raise UserError("--out takes one file of studies; join them first (cat A.jsonl B.jsonl > ALL.jsonl)")
    parts = {"validate": options.validate, "test": options.test, "seed": options.seed, "count": options.count}
    print(describe(split_file(options.studies[0], options.out, **parts), options.out))
    tell_root(options.out, options.studies[0])


if __name__ == "__main__":
    run_cli(main)
