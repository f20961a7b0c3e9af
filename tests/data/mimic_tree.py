"""Miniature MIMIC-CXR-JPG trees: the real layout and columns, invented ids, drawn 8-pixel films."""

import csv
import gzip
import zipfile

from PIL import Image

HEAD = ("subject_id", "study_id")
METADATA = (
    *("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition"),
    *("Rows", "Columns", "StudyDate", "StudyTime"),
)
SEQUENCES = ("ProcedureCodeSequence", "ViewCodeSequence", "PatientOrientationCodeSequence")
# The order of the published label tables, which is not that of LABELS.
LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
# dicom number, subject, study, view, date, time, split
FILMS = [
    (1, 10999991, 59999991, "LATERAL", "21500101", "101500.5", "train"),
    (2, 10999991, 59999991, "AP", "21500101", "101400.0", "train"),
    (3, 10999991, 59999991, "PA", "21500101", "101600.0", "train"),
    (4, 10999991, 59999990, "AP", "21500101", "93000.0", "train"),  # 09:30, the same day: earlier
    (5, 10999991, 59999993, "AP", "21500304", "1.0", "train"),
    (6, 11999992, 59999994, "LATERAL", "21300101", "120000.0", "test"),
    (7, 11999992, 59999995, "PA", "21310101", "120000.0", "test"),
    (8, 12999993, 59999996, "PA", "21310101", "120000.0", "validate"),
]
CODES = {
    59999991: {
        "Atelectasis": "1.0",
        "Edema": "-1.0",
        "Pneumonia": "0.0",
        "Pneumothorax": "0.0",
        "Support Devices": "1.0",
    },
    59999995: {"No Finding": "1.0"},
    59999996: {},
}
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___ year old with cough
 
 FINDINGS: 
 
 Left basal atelectasis.
 No effusion.
 
 IMPRESSION: 
 
 Atelectasis.
"""


def dicom(number):
    return "-".join([f"{number:08x}", "0a1b2c3d", "11223344", "deadbeef", f"{number * 7:08x}"])


def path(number, films=FILMS):
    _, subject, study = next(film for film in films if film[0] == number)[:3]
    return f"files/p{str(subject)[:2]}/p{subject}/s{study}/{dicom(number)}.jpg"


def write_table(file, header, rows):
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "wt", newline="") as out:
        csv.writer(out).writerows([header, *rows])


def make(root, *, films=FILMS, missing=()):
    """A tree under `root`: tables, films (but for the numbers in `missing`) and the zip of reports."""
    (root / "files").mkdir(parents=True)
    write_table(
        root / "mimic-cxr-2.0.0-metadata.csv.gz",
        [*METADATA, *(f"{name}_CodeMeaning" for name in SEQUENCES)],
        [
            [dicom(n), sub, study, "CHEST", view, 8, 8, day, at, "", "", "Erect"]
            for n, sub, study, view, day, at, _ in films
        ],
    )
    write_table(
        root / "mimic-cxr-2.0.0-split.csv.gz",
        ["dicom_id", "study_id", "subject_id", "split"],
        [[dicom(n), study, subject, split] for n, subject, study, *_, split in films],
    )
    subjects = {study: subject for _, subject, study, *_ in films}
    for kind in ("chexpert", "negbio"):
        write_table(
            root / f"mimic-cxr-2.0.0-{kind}.csv.gz",
            [*HEAD, *LABELS],
            [
                [subjects.get(study, 1), study, *(codes.get(name, "") for name in LABELS)]
                for study, codes in CODES.items()
            ],
        )
    for number in (film[0] for film in films if film[0] not in missing):
        file = root / path(number, films)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 90).save(file)
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
        archive.writestr("files/p10/p10999991/s59999991.txt", REPORT)
        archive.writestr("files/p11/p11999992/s59999995.txt", " FINAL REPORT\n CHEST, TWO VIEWS:  Clear lungs.\n")
    return root
