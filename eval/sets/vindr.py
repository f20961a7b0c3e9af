"""VinDr-CXR test: 3,000 films, consensus of five radiologists, 25 labels.

ROOT/annotations/image_labels_test.csv, films in ROOT/test/<image_id>.png or .jpg: the published ones are DICOM and must
be converted first (VOI LUT, MONOCHROME1 inverted). The table was not seen here: its columns are those that several
public readers of it name. "No finding", "Other lesion" and "Other disease(s)" name no one finding and are left out.
"""

from pathlib import Path

from data.errors import Problems
from data.mimic_tables import rows
from eval.sets import Film, FilmSet, check_table, describe, find_file, first_file

LABELS = {
    "Aortic enlargement": "an enlarged aorta",
    "Atelectasis": "atelectasis",
    "Calcification": "a calcification",
    "Cardiomegaly": "cardiomegaly",
    "Clavicle fracture": "a fracture of the clavicle",
    "Consolidation": "consolidation",
    "Edema": "pulmonary edema",
    "Emphysema": "emphysema",
    "Enlarged PA": "an enlarged pulmonary artery",
    "ILD": "interstitial lung disease",
    "Infiltration": "an infiltration of the lung",
    "Lung Opacity": "a lung opacity",
    "Lung cavity": "a lung cavity",
    "Lung cyst": "a lung cyst",
    "Mediastinal shift": "a mediastinal shift",
    "Nodule/Mass": "a lung nodule or mass",
    "Pleural effusion": "pleural effusion",
    "Pleural thickening": "pleural thickening",
    "Pneumothorax": "pneumothorax",
    "Pulmonary fibrosis": "pulmonary fibrosis",
    "Rib fracture": "a rib fracture",
    "COPD": "chronic obstructive pulmonary disease",
    "Lung tumor": "a lung tumor",
    "Pneumonia": "pneumonia",
    "Tuberculosis": "tuberculosis",
}
FILMS = 3_000
OPTIONS = {"table": None, "images": None, "partial": ("no", "yes")}
REMEDY = "download it from PhysioNet (vindr-cxr 1.0.0), or name it with --set table=FILE"


def read_table(path: Path, *, partial: bool = False) -> dict[str, frozenset[str]]:
    """image_id -> labels present; UserError for a wrong header, a value other than 0 and 1, or an image twice."""
    problems = Problems(path)
    found: dict[str, frozenset[str]] = {}
    for line, (image, *values) in rows(path, ("image_id", *LABELS)):
        values = [value.strip().removesuffix(".0") for value in values]
        if not {*values} <= {"0", "1"}:
            problems.add(f"{path}:{line}: a label is neither 0 nor 1; name the table of the test set")
        if image in found:
            problems.add(
                f"{path}:{line}: this image stands in the table already (the train table has one row a reader)"
            )
        found[image] = frozenset(label for label, value in zip(LABELS, values, strict=True) if value == "1")
    check_table(problems, "films", len(found), FILMS, partial, empty=f"holds no film; {REMEDY}")
    return found


def read(root: Path, chosen: dict) -> FilmSet:
    names = ["annotations/image_labels_test.csv", "image_labels_test.csv"]
    table = find_file(root, names, chosen["table"], REMEDY)
    found = read_table(table, partial=chosen["partial"] == "yes")
    images = Path(chosen["images"] or root).absolute()
    films = [Film(image, image, "", _film(images, image), labels) for image, labels in found.items()]
    notes = [
        "the set has no patient ids: the film is the unit of the bootstrap",
        "the table's format is known from public readers of it only; compare the positives with the published ones",
        "No finding, Other lesion and Other disease(s) are left out",
    ]
    protocol = {"films": "all test films", "labels_from": "consensus of five radiologists (image_labels_test.csv)"}
    return FilmSet(LABELS, films, describe(table, films, LABELS), protocol, notes)


def _film(images: Path, image: str) -> str:
    places = [folder / f"{image}{end}" for folder in (images / "test", images) for end in (".png", ".jpg", ".dicom")]
    return first_file(places)
