"""Miniature trees of the labelled sets, true to their formats; everything in them is invented."""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
NIH_ROWS = [
    ("00000901_000.png", "Effusion|Mass", 901, "PA"),
    ("00000901_001.png", "No Finding", 901, "AP"),
    ("00000902_000.png", "Pleural_Thickening", 902, "PA"),
    ("00000903_000.png", "No Finding", 903, "PA"),
]
CHEXPERT_HEADER = (
    "Study,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
    "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
VINDR_HEADER = (
    "image_id,Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,"
    "Emphysema,Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,"
    "Pleural effusion,Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,"
    "Pneumonia,Tuberculosis,Other disease,No finding"
)


def film(path: Path, seed: int = 0, size: tuple[int, int] = (64, 56)) -> Path:
    """A film of random shades, coarse ones stronger than fine ones as in a picture; different for every seed."""
    rng = np.random.default_rng(seed)
    shades = np.zeros(size[::-1])
    for grid in (2, 4, 8, 16, 32):
        layer = Image.fromarray(rng.normal(size=(grid, grid)).astype(np.float32))
        shades += np.asarray(layer.resize(size, Image.Resampling.BICUBIC)) / grid**0.5
    shades = 255 * (shades - shades.min()) / np.ptp(shades)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(shades.astype(np.uint8)).save(path)
    return path


def nih(root: Path, rows=NIH_ROWS, listed=("00000901_000.png", "00000901_001.png", "00000902_000.png")) -> Path:
    lines = [f"{name},{labels},0,{patient},61,F,{view},2500,2048,0.168,0.168" for name, labels, patient, view in rows]
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join([NIH_HEADER, *lines]) + "\n")
    (root / "test_list.txt").write_text("\n".join(listed) + "\n")
    for number, (name, *_) in enumerate(rows):
        film(root / f"images_{number + 1:03d}" / "images" / name, number)
    return root


def openi_report(number: int, automatic=(), images=(), findings="Heart size is normal.", impression="") -> str:
    tags = "".join(f"<automatic>{tag}</automatic>" for tag in automatic)
    films = "".join(f'<parentImage id="{image}"><caption>PA and lateral</caption></parentImage>' for image in images)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f'<eCitation><uId id="CXR{number}"/><MedlineCitation><Article><Abstract>'
        f'<AbstractText Label="COMPARISON"/><AbstractText Label="INDICATION">XXXX</AbstractText>'
        f'<AbstractText Label="FINDINGS">{findings}</AbstractText>'
        f'<AbstractText Label="IMPRESSION">{impression}</AbstractText></Abstract></Article></MedlineCitation>'
        f"<MeSH><major>normal</major>{tags}</MeSH>{films}</eCitation>"
    )


def openi(root: Path) -> Path:
    reports = {
        1: openi_report(
            1, ["Calcified Granuloma", "pleural effusions"], ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"]
        ),
        2: openi_report(2, ["Atelectases", "infiltrate"], ["CXR2_IM-0652-1001"]),
        10: openi_report(10, [], ["CXR10_IM-0002-2001"]),
        11: openi_report(11, ["edema"], []),
    }
    for number, text in reports.items():
        path = root / "ecgen-radiology" / f"{number}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for number, name in enumerate(("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001", "CXR2_IM-0652-1001")):
        film(root / "NLMCXR_png" / f"{name}.png", number)
    return root


def chexpert(root: Path, rows=None) -> Path:
    rows = rows or [
        ("CheXpert-v1.0/test/patient90001/study1", "0,1,1,0,0,1,0,0,1,0,0,0,0,1"),
        ("CheXpert-v1.0/test/patient90002/study1", "1,0,0,0,0,0,0,0,0,0,0,0,0,0"),
        ("CheXpert-v1.0/test/patient90003/study2", "0,0,0,0,0,0,0,0,0,1,1,0,0,0"),
    ]
    # As published: no newline at the end.
    (root / "groundtruth.csv").write_text(
        "\n".join([CHEXPERT_HEADER, *(f"{study},{values}" for study, values in rows)])
    )
    film(root / "test/patient90001/study1/view2_frontal.jpg", 1)
    film(root / "test/patient90001/study1/view1_lateral.jpg", 2)
    film(root / "test/patient90002/study1/view1_lateral.jpg", 3)
    film(root / "test/patient90003/study2/view1_frontal.jpg", 4)
    return root


def chestxdet10(root: Path) -> Path:
    box = [10, 10, 20, 20]
    entries = [
        {"file_name": "90001.png", "syms": ["Nodule", "Nodule", "Effusion"], "boxes": [box, box, box]},
        {"file_name": "90002.png", "syms": [], "boxes": []},
    ]
    (root / "test.json").write_text(json.dumps(entries))
    for number, entry in enumerate(entries):
        film(root / "test_data" / entry["file_name"], number)
    return root


def padchest(root: Path, rows=None) -> Path:
    rows = (
        rows
        if rows is not None
        else [
            ("901.png", 0, "s1", "p1", "PA", "Physician", "['normal']"),
            ("902.png", 0, "s1", "p1", "L", "Physician", "['nodule', ' pleural effusion ', '']"),
            ("903.png", 54, "s2", "7", "PA", "Physician", "['nodule', 'unchanged']"),
            ("904.png", 54, "s3", "p3", "AP_horizontal", "RNN_model", "['cardiomegaly']"),
            ("905.png", 54, "s4", "p4", "PA", "RNN_model", "nan"),
        ]
    )
    header = ["", "ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "Report", "MethodLabel", "Labels"]
    with open(root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(header)
        for number, (image, folder, study, patient, projection, method, labels) in enumerate(rows):
            writer.writerow([number, image, folder, study, patient, projection, " sin hallazg . ", method, labels])
    film(root / "images" / "54" / "903.png", 3)
    return root


def vindr(root: Path, rows=(("a" * 32, ["Cardiomegaly", "Other lesion"]), ("b" * 32, ["No finding"]))) -> Path:
    labels = VINDR_HEADER.split(",")[1:]
    lines = [VINDR_HEADER]
    lines += [",".join([image, *(str(int(label in present)) for label in labels)]) for image, present in rows]
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / "image_labels_test.csv").write_text("\n".join(lines) + "\n")
    film(root / "test" / f"{'a' * 32}.png", 1)
    return root
