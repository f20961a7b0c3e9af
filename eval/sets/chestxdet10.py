"""ChestX-Det10 test: 542 films of ChestX-ray14, findings boxed by radiologists, 10 labels.

ROOT/test.json, films in ROOT/test_data/36204.png. The films come from the NIH's set under other names: a model trained
on ChestX-ray14 may have seen them, and only their pixels can tell (`python -m eval.leaks`).
"""

import json
from pathlib import Path

from data.errors import Problems, UserError
from eval.sets import Film, FilmSet, check_table, describe, film_index, find_file

LABELS = {
    "Atelectasis": "atelectasis",
    "Calcification": "a calcification",
    "Consolidation": "consolidation",
    "Effusion": "pleural effusion",
    "Emphysema": "emphysema",
    "Fibrosis": "pulmonary fibrosis",
    "Fracture": "a fracture",
    "Mass": "a lung mass",
    "Nodule": "a lung nodule",
    "Pneumothorax": "pneumothorax",
}
FILMS = 542
OPTIONS = {"table": None, "images": None, "partial": ("no", "yes")}
REMEDY = "download it from the ChestX-Det10 repository, or name it with --set table=FILE"


def read_table(path: Path, *, partial: bool = False) -> dict[str, frozenset[str]]:
    """File name -> labels present (a label may be boxed several times; none: a normal film).

    Raises UserError for another shape, an unknown label, boxes that do not pair with labels, or a name twice.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last: nested too deep
        raise UserError(f"{path}: not a JSON file ({type(error).__name__}); {REMEDY}") from error
    if not isinstance(entries, list):
        raise UserError(f"{path}: not a list of films; {REMEDY}")
    problems = Problems(path)
    found: dict[str, frozenset[str]] = {}
    for number, entry in enumerate(entries, 1):
        where = f"{path}: film {number}"
        name, syms, boxes = (
            entry.get(key) if isinstance(entry, dict) else None for key in ("file_name", "syms", "boxes")
        )
        if not isinstance(name, str) or not isinstance(syms, list) or not isinstance(boxes, list):
            problems.add(f"{where}: needs file_name, syms and boxes; {REMEDY}")
            continue
        if len(syms) != len(boxes):
            problems.add(f"{where}: {len(syms)} labels for {len(boxes)} boxes; {REMEDY}")
        if not all(isinstance(label, str) and label in LABELS for label in syms):
            problems.add(f"{where}: a label is none of the ten; {REMEDY}")
        if name in found:
            problems.add(f"{where}: {name} comes twice; keep one")
        found[name] = frozenset(label for label in syms if isinstance(label, str))
    check_table(problems, "films", len(found), FILMS, partial, empty=f"holds no film; {REMEDY}")
    return found


def read(root: Path, chosen: dict) -> FilmSet:
    table = find_file(root, ["test.json"], chosen["table"], REMEDY)
    found = read_table(table, partial=chosen["partial"] == "yes")
    images = Path(chosen["images"] or root)
    index = film_index([images / "test_data", images])
    films = [
        Film(name, name, "", index.get(name, str((images / "test_data" / name).absolute())), labels)
        for name, labels in found.items()
    ]
    empty = sum(not labels for labels in found.values())
    notes = [
        "the set has no patient ids: the film is the unit of the bootstrap, so intervals may be too narrow",
        "the films come from ChestX-ray14 under other names: training on that set overlaps",
    ]
    protocol = {"films": "all test films", "labels_from": "set of the radiologists' boxes; no box means absent"}
    return FilmSet(LABELS, films, describe(table, films, LABELS, normal_films=empty), protocol, notes)
