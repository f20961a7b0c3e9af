"""PadChest: the 39,053 films that physicians labelled, every label but "normal"; padchest20: those with 10 positives or
fewer (CARZero).

ROOT/PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv, films in ROOT/images/<ImageDir>/<ImageID> or ROOT/<ImageID>.
The published films have 16 bits and must be converted to 8 (KAD divides by the largest value of each).
"""

import ast
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from data.errors import Problems, UserError
from data.mimic_tables import rows
from eval.sets import Film, FilmSet, check_table, describe, find_file, first_file

ROWS = 160_861
PHYSICIAN, MODEL = "Physician", "RNN_model"
NORMAL = "normal"
RARE = 10
FRONTAL = ("PA", "AP", "AP_horizontal")
OPTIONS = {
    "table": None,
    "images": None,
    "projections": ("all", "frontal"),
    "min_positives": "1",
    "partial": ("no", "yes"),
}
NAME = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
REMEDY = "ask BIMCV for access and download it, or name it with --set table=FILE"
# No finding of a film, but in the same vocabulary; other work keeps them, and so does this.
META = ("unchanged", "exclude", "suboptimal study")


class Row(NamedTuple):
    """A film that a physician labelled; `labels` are stripped, blank ones left out."""

    image: str
    folder: str
    study: str
    patient: str
    projection: str
    labels: frozenset[str]


def read_table(path: Path, *, partial: bool = False) -> tuple[list[Row], dict, list[str]]:
    """(rows labelled by physicians, counts of the whole table, notes).

    Raises UserError for a wrong header, labels that are not a list, an unknown method, a film twice, no row
    or a wrong number of them.
    """
    problems = Problems(path)
    found: dict[str, Row] = {}
    seen: set[str] = set()
    methods, total, blank = Counter(), 0, 0
    patients: set[str] = set()
    studies: set[str] = set()
    columns = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "MethodLabel", "Labels")
    for line, (image, folder, study, patient, projection, method, listed) in rows(path, columns):
        total += 1
        methods[method] += 1
        patients.add(patient)
        studies.add(study)
        if image in seen:
            problems.add(f"{path}:{line}: film {image} stands in the table already; keep one row a film")
        seen.add(image)
        if method not in (PHYSICIAN, MODEL):
            problems.add(f"{path}:{line}: MethodLabel is neither {PHYSICIAN} nor {MODEL}; download the table again")
        # The method first: what the model labelled is never scored, so a blank row of it is no loss.
        if method != PHYSICIAN:
            continue
        if listed.strip().lower() in ("", "nan"):
            blank += 1
            continue
        labels = _labels(listed)
        if labels is None:
            problems.add(f"{path}:{line}: Labels is not a list of texts; download the table again")
            continue
        found[image] = Row(image, folder.strip(), study, patient, projection, labels)
    check_table(problems, "rows", total, ROWS, partial, empty=f"holds no film; {REMEDY}")
    counts = {
        "rows": total,
        "table_studies": len(studies),
        "table_patients": len(patients),
        "methods": dict(sorted(methods.items())),
    }
    return list(found.values()), counts, [f"{blank} rows of physicians without Labels were left out"] if blank else []


def read(root: Path, chosen: dict) -> FilmSet:
    return _read(root, chosen, rare=False)


def read_rare(root: Path, chosen: dict) -> FilmSet:
    return _read(root, chosen, rare=True)


def _read(root: Path, chosen: dict, *, rare: bool) -> FilmSet:
    try:
        least = int(chosen["min_positives"])
    except ValueError:
        raise UserError(f"--set min_positives={chosen['min_positives']}: write a whole number") from None
    table = find_file(root, [NAME], chosen["table"], REMEDY)
    found, counts, notes = read_table(table, partial=chosen["partial"] == "yes")
    counts["physician_labels"] = len({label for row in found for label in row.labels})
    if chosen["projections"] == "frontal":
        before = len(found)
        found = [row for row in found if row.projection in FRONTAL]
        notes.append(f"{before - len(found)} films that are not frontal were left out (projections=frontal)")
    positives = Counter(label for row in found for label in row.labels)
    # By number, then name, so that the order never depends on the table's.
    labels = sorted(positives, key=lambda label: (-positives[label], label))
    labels = [label for label in labels if label != NORMAL and positives[label] >= least]
    if rare:
        labels = [label for label in labels if positives[label] <= RARE]
    if not labels or not found:
        raise UserError(f"{table}: no label is left; check --set min_positives and the table")
    images = Path(chosen["images"] or root).absolute()
    kept = frozenset(labels)
    films = [Film(r.image, r.patient, r.study, _film(images, r), r.labels & kept) for r in found]
    meta = [label for label in META if label in kept]
    if meta:
        notes.append(f"the labels include {', '.join(meta)}, which are no findings of a film (as in other work)")
    notes.append("a label that the report does not mention counts as absent")
    protocol = {
        "films": f"films labelled by physicians, {chosen['projections']} projections",
        "labels_from": f"Labels without {NORMAL}, at least {least} positives" + (f", at most {RARE}" if rare else ""),
    }
    phrases = {label: label for label in labels}
    return FilmSet(phrases, films, describe(table, films, labels, **counts), protocol, notes)


def _labels(listed: str) -> frozenset[str] | None:
    """The labels of a Python list of texts, stripped, blank ones left out; None for anything else."""
    try:
        values = ast.literal_eval(listed)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        return None
    return frozenset(value.strip() for value in values if value.strip())


def _film(images: Path, row: Row) -> str:
    places = [images / "images" / row.folder / row.image, images / row.folder / row.image, images / row.image]
    return first_file(places)
