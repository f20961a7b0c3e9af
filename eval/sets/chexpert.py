"""CheXpert test: 500 studies read by radiologists, 14 labels or the five of the competition, 0 or 1 only.

ROOT/groundtruth.csv (one row a study), films in ROOT/test/patient64741/study1/, with or without a folder CheXpert-v1.0.
"""

import re
from pathlib import Path

from data.errors import Problems
from data.mimic_tables import rows
from eval.sets import Film, FilmSet, check_table, describe, find_file

LABELS = {
    "No Finding": "a normal chest without any abnormal finding",
    "Enlarged Cardiomediastinum": "an enlarged cardiomediastinum",
    "Cardiomegaly": "cardiomegaly",
    "Lung Opacity": "a lung opacity",
    "Lung Lesion": "a lung lesion",
    "Edema": "pulmonary edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion",
    "Pleural Other": "a pleural abnormality other than an effusion",
    "Fracture": "a fracture",
    "Support Devices": "support devices such as tubes, lines or a pacemaker",
}
COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
STUDIES = 500
OPTIONS = {"table": None, "images": None, "partial": ("no", "yes")}
STUDY = re.compile(r"(?:.*/)?(?P<path>test/(?P<patient>patient\d+)/(?P<study>study\d+))/?$")
REMEDY = "download it with the released test set of CheXpert, or name it with --set table=FILE"


def read_table(path: Path, *, partial: bool = False) -> list[tuple[str, str, str, frozenset[str]]]:
    """(path of the study below ROOT, patient, study, labels present) of each row.

    Raises UserError for a wrong header, a study twice or none, a value other than 0 and 1, a wrong number of studies.
    """
    problems = Problems(path)
    found: dict[str, tuple[str, str, str, frozenset[str]]] = {}
    for line, (name, *values) in rows(path, ("Study", *LABELS)):
        study = STUDY.match(name.strip())
        if not study:
            problems.add(f"{path}:{line}: Study is not .../test/patientN/studyN; name the table of the test set")
            continue
        values = [value.strip().removesuffix(".0") for value in values]
        if not {*values} <= {"0", "1"}:
            problems.add(f"{path}:{line}: a label is neither 0 nor 1; name groundtruth.csv of the test set")
        if study["path"] in found:
            problems.add(f"{path}:{line}: this study stands in the table already; keep one row a study")
        present = frozenset(label for label, value in zip(LABELS, values, strict=True) if value == "1")
        found[study["path"]] = (study["path"], study["patient"], study["study"], present)
    check_table(problems, "studies", len(found), STUDIES, partial, empty=f"holds no study; {REMEDY}")
    return list(found.values())


def read(root: Path, chosen: dict, labels: tuple[str, ...] = tuple(LABELS)) -> FilmSet:
    table = find_file(root, ["groundtruth.csv", "test/groundtruth.csv"], chosen["table"], REMEDY)
    studies = read_table(table, partial=chosen["partial"] == "yes")
    images = Path(chosen["images"] or root).absolute()
    films, lateral = [], 0
    for path, patient, study, present in studies:
        image, frontal = _film(images, path)
        lateral += not frontal
        films.append(Film(f"{patient}/{study}", patient, f"{patient}/{study}", image, present & {*labels}))
    notes = ["one film a study: its first frontal view; which view other work scores is not known"]
    if lateral:
        notes.append(f"{lateral} studies have no frontal film; their first film is scored")
    protocol = {"films": "first frontal film of each study", "labels_from": "radiologists' majority (groundtruth.csv)"}
    return FilmSet({label: LABELS[label] for label in labels}, films, describe(table, films, labels), protocol, notes)


def read_five(root: Path, chosen: dict) -> FilmSet:
    return read(root, chosen, COMPETITION)


def _film(images: Path, study: str) -> tuple[str, bool]:
    """(film of a study, whether it is a frontal one); the usual name where the folder is not there."""
    for folder in (images / study, images / "CheXpert-v1.0" / study, images / "CheXpert" / study):
        if folder.is_dir():
            found = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
            frontal = [path for path in found if "frontal" in path.name.lower()]
            if found:
                return str((frontal or found)[0]), bool(frontal)
    return str(images / study / "view1_frontal.jpg"), True
