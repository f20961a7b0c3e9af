"""ChestX-ray14 (NIH): the official test list, 14 labels mined from reports. A label that is missing is not mentioned.

ROOT/Data_Entry_2017_v2020.csv, ROOT/test_list.txt, films in ROOT/images_001/images/ to images_012/ or in ROOT/images/.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from data.errors import Problems, UserError
from data.mimic_tables import rows
from eval.sets import Film, FilmSet, check_table, describe, film_index, find_file

LABELS = {
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation",
    "Edema": "pulmonary edema",
    "Effusion": "pleural effusion",
    "Emphysema": "emphysema",
    "Fibrosis": "pulmonary fibrosis",
    "Hernia": "a hiatal hernia",
    "Infiltration": "an infiltration of the lung",
    "Mass": "a lung mass",
    "Nodule": "a lung nodule",
    "Pleural_Thickening": "pleural thickening",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
}
NO_FINDING = "No Finding"
ROWS, PATIENTS, LISTED = 112_120, 30_805, 25_596  # published table and test list
OPTIONS = {"table": None, "list": None, "images": None, "partial": ("no", "yes")}
REMEDY = "download it from the NIH's ChestX-ray14 folder, or name it with --set"  # and which option


class Row(NamedTuple):
    """One film; `labels` without No Finding."""

    patient: str
    labels: frozenset[str]
    view: str


def read_table(path: Path, *, partial: bool = False) -> tuple[dict[str, Row], dict]:
    """(file name -> Row, counts of the whole table).

    Raises UserError for a wrong header, an unknown label, a name twice, No Finding beside a finding, an empty table,
    or one whose row count is not the published one.
    """
    problems = Problems(path)
    found: dict[str, Row] = {}
    labels, views = Counter(), Counter()
    for line, (name, listed, patient, view) in rows(
        path, ("Image Index", "Finding Labels", "Patient ID", "View Position")
    ):
        present = frozenset(label.strip() for label in listed.split("|"))
        unknown = present - {*LABELS, NO_FINDING}
        if unknown:
            problems.add(
                f"{path}:{line}: Finding Labels holds a label that is none of the 15; download the table again"
            )
        if NO_FINDING in present and len(present) > 1:
            problems.add(f"{path}:{line}: {NO_FINDING} beside a finding; download the table again")
        if name in found:
            problems.add(f"{path}:{line}: film {name} stands in the table already; keep one row a film")
        labels.update(present)
        views[view] += 1
        found[name] = Row(patient.strip(), present - {NO_FINDING}, view)
    check_table(problems, "rows", len(found), ROWS, partial, empty=f"holds no film; {REMEDY} table=FILE")
    counts = {"rows": len(found), "table_patients": len({row.patient for row in found.values()})}
    return found, counts | {"views": dict(sorted(views.items())), "table_labels": dict(sorted(labels.items()))}


def read_list(path: Path, known: dict[str, Row], *, partial: bool = False) -> list[str]:
    """File names of the test list, in its order; UserError for one that is not in the table, or stands there twice."""
    problems = Problems(path)
    names: dict[str, None] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); {REMEDY} list=FILE") from error
    for number, name in enumerate(map(str.strip, lines), 1):
        if not name:
            continue
        if name not in known:
            problems.add(f"{path}:{number}: film {name} is not in the table; list and table must belong together")
        if name in names:
            problems.add(f"{path}:{number}: film {name} is listed twice; keep one")
        names[name] = None
    check_table(problems, "films", len(names), LISTED, partial, empty=f"lists no film; {REMEDY} list=FILE")
    return list(names)


def read(root: Path, chosen: dict) -> FilmSet:
    partial = chosen["partial"] == "yes"
    tables = ["Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv"]
    table = find_file(root, tables, chosen["table"], f"{REMEDY} table=FILE")
    listing = find_file(root, ["test_list.txt"], chosen["list"], f"{REMEDY} list=FILE")
    known, counts = read_table(table, partial=partial)
    names = read_list(listing, known, partial=partial)
    images = Path(chosen["images"] or root)
    folders = [images / f"images_{number:03d}" / "images" for number in range(1, 13)]
    index = film_index([*folders, images / "images", images])
    films = [
        Film(name, row.patient, "", index.get(name, str((images / "images" / name).absolute())), row.labels)
        for name, row in ((name, known[name]) for name in names)
    ]
    listed = set(names)
    trained = {row.patient for name, row in known.items() if name not in listed}
    shared = len({film.patient for film in films} & trained)
    notes = ["labels are mined from reports: a finding that is not mentioned counts as absent"]
    if shared:
        notes.append(f"{shared} patients of the test list have films outside it")
    protocol = {"films": "official test list, all views", "labels_from": "Finding Labels (text mining by the NIH)"}
    return FilmSet(LABELS, films, describe(table, films, LABELS, **counts), protocol, notes)
