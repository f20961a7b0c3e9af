"""A miniature MS-CXR-T beside a miniature MIMIC-CXR-JPG: real names and columns, invented ids, labels, sentences."""

from tests.data import mimic_tree

IMAGE_TABLE = "MS_CXR_T_temporal_image_classification_v1.0.0.csv"
SENTENCE_TABLE = "MS_CXR_T_temporal_sentence_similarity_v1.0.0.csv"
FINDINGS = ("consolidation", "edema", "pleural_effusion", "pneumonia", "pneumothorax")
IDS = ("dicom_id", "subject_id", "study_id", "previous_dicom_id", "previous_study_id")
# current film, previous film (numbers of mimic_tree.FILMS), progressions, qualities
PAIRS = [
    (2, 4, {"consolidation": "stable", "pleural_effusion": "worsening"}, {"consolidation": "one_expert"}),
    (5, 2, {"edema": "improving"}, {"edema": "disagreement"}),
    (7, 6, {"edema": "stable", "pneumothorax": "improving"}, {"edema": "multiple_experts"}),
]
SENTENCES = [
    ("RadGraph", "The effusion has grown.", "The effusion is larger.", "paraphrase"),
    ("RadGraph", "The effusion has grown.", "The effusion is smaller.", "contradiction"),
    ("swaps", "Edema is stable.", "Edema is unchanged.", "paraphrase"),
    ("swaps", "Edema is stable.", "Edema, which has worsened.", "contradiction"),
]


def image_rows(pairs=None):
    """Dicts of the image table's columns."""
    rows = []
    for current, previous, progressions, qualities in PAIRS if pairs is None else pairs:
        films = {film[0]: film for film in mimic_tree.FILMS}
        names = {number: mimic_tree.path(number)[len("files/") : -len(".jpg")] for number in (current, previous)}
        row = dict(
            zip(
                IDS,
                (names[current], films[current][1], films[current][2], names[previous], films[previous][2]),
                strict=True,
            )
        )
        for finding in FINDINGS:
            row[f"{finding}_progression"] = progressions.get(finding, "")
            row[f"{finding}_label_quality"] = qualities.get(finding, "")
        rows.append(row)
    return rows


def write_images(root, rows=None, *, order=None, name=IMAGE_TABLE):
    rows = image_rows() if rows is None else rows
    columns = order or [
        *IDS,
        *(f"{finding}_progression" for finding in FINDINGS),
        *(f"{finding}_label_quality" for finding in FINDINGS),
    ]
    mimic_tree.write_table(root / name, columns, [[row[column] for column in columns] for row in rows])
    return root / name


def write_sentences(root, rows=SENTENCES, columns=("subset_name", "sentence_1", "sentence_2", "category")):
    mimic_tree.write_table(root / SENTENCE_TABLE, columns, rows)
    return root / SENTENCE_TABLE


def make(root):
    """Both trees under `root`; returns it."""
    mimic_tree.make(root)
    write_images(root)
    write_sentences(root)
    return root
