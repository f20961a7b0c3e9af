"""The tables of MS-CXR-T 1.0.0 (PhysioNet, credentialed) and the films of MIMIC-CXR-JPG that they name.

Columns are found by name. The image table is wide, one row a pair of films; its 1,326 are labels, not pairs, and its
rows come from all splits of MIMIC-CXR. A label says what the current film shows relative to the previous one.
"""

import csv
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from data.errors import Problems, UserError
from data.files import open_text, sha256_file
from data.findings_lexicon import FIVE
from data.mimic_cxr import image_path
from data.mimic_tables import rows, whole
from data.records import PROGRESSIONS
from eval.sets import PARTIAL, check_table

IMAGE_TABLE = "MS_CXR_T_temporal_image_classification_v*.csv"
SENTENCE_TABLE = "MS_CXR_T_temporal_sentence_similarity_v*.csv"
# The published image table; pairs of sentences in the other one.
ROWS, LABELS, CONSOLIDATIONS = 1_045, 1_326, 201
SENTENCE_PAIRS = 361
CATEGORIES = ("contradiction", "paraphrase")
EMPTY = "holds no row; download the table again"
QUALITIES = ("one_expert", "multiple_experts", "disagreement")


class Pair(NamedTuple):
    """Two films of a patient. `labels`: finding -> progression; `quality`: finding -> label quality, where known."""

    subject: int
    study: int
    previous_study: int
    dicom: str  # without folders
    previous_dicom: str
    images: tuple[str, str]  # relative to the root of MIMIC-CXR-JPG, previous first
    labels: dict[str, str]
    quality: dict[str, str]


def find_table(root: Path, pattern: str, told: str | None) -> Path:
    """The one table of that name in `root` or in a folder of it, or the one told; UserError for none or several."""
    if told:
        return Path(told)
    if not root.is_dir():
        raise UserError(f"{root}: is not a folder; name the root of MIMIC-CXR-JPG with --data-root")
    found = sorted({*root.glob(pattern), *root.glob(f"*/{pattern}")})
    if len(found) != 1:
        what = f"several tables ({', '.join(map(str, found))})" if found else f"no table {pattern}"
        raise UserError(f"{root}: {what}; download MS-CXR-T from PhysioNet and name it with --set table=FILE")
    return found[0]


def read_pairs(path: Path, *, partial: bool = False) -> tuple[list[Pair], dict, list[str]]:
    """The pairs of the image table.

    A (pair, finding) that comes twice with the same label is kept once and counted.

    Returns (pairs, fingerprint, notes).

    Raises:
        UserError: lists rows with a label outside its set or two labels for one (pair, finding); a whole table whose
            counts are not the published ones.
    """
    columns = ("dicom_id", "subject_id", "study_id", "previous_dicom_id", "previous_study_id")
    keys = [label.lower().replace(" ", "_") for label in FIVE]
    columns += tuple(f"{key}_progression" for key in keys)
    graded = [f"{key}_label_quality" for key in keys if f"{key}_label_quality" in _header(path)]
    quality_of = {label: f"{key}_label_quality" for label, key in zip(FIVE, keys, strict=True)}
    problems = Problems(path)
    pairs: dict[tuple[str, str], Pair] = {}
    total, repeated = 0, 0
    labels, qualities = Counter(), Counter()
    for line, values in rows(path, (*columns, *graded)):
        total += 1
        row = dict(zip((*columns, *graded), (value.strip() for value in values), strict=True))
        subject, study, previous = (
            whole(row[name], path, line, name) for name in ("subject_id", "study_id", "previous_study_id")
        )
        dicom, film = _film(row["dicom_id"], subject, study)
        previous_dicom, previous_film = _film(row["previous_dicom_id"], subject, previous)
        if not dicom or not previous_dicom:
            problems.add(f"{path}:{line}: dicom_id or previous_dicom_id is blank; download the table again")
            continue
        pair = pairs.setdefault(
            (previous_dicom, dicom),
            Pair(subject, study, previous, dicom, previous_dicom, (previous_film, film), {}, {}),
        )
        for label, key in zip(FIVE, keys, strict=True):
            value = row[f"{key}_progression"].lower()
            if not value:
                continue
            if value not in PROGRESSIONS:
                problems.add(f"{path}:{line}: {key}_progression is none of {', '.join(PROGRESSIONS)} and blank")
                continue
            labels[label] += 1
            if label in pair.labels:
                repeated += 1
                if pair.labels[label] != value:
                    problems.add(f"{path}:{line}: {key} has another progression for this pair above; keep one")
                continue
            pair.labels[label] = value
            quality = row.get(quality_of[label], "").lower()
            if quality and quality not in QUALITIES:
                problems.add(f"{path}:{line}: {key}_label_quality is none of {', '.join(QUALITIES)} and blank")
            elif quality:
                pair.quality[label] = quality
                qualities[quality] += 1
    complete = check_table(problems, "rows", total, ROWS, partial, empty=EMPTY)
    got = (labels.total(), labels["Consolidation"])
    if complete and not partial and got != (LABELS, CONSOLIDATIONS):
        raise UserError(
            f"{path}: {got[0]} labels, {got[1]} of consolidation, where the published table has {LABELS} and "
            f"{CONSOLIDATIONS}; download it again, or say {PARTIAL} if it was cut on purpose"
        )
    fingerprint = {
        "table": path.name,
        "sha256": sha256_file(path),
        "rows": total,
        "pairs": len(pairs),
        "labels": labels.total(),
        "labels_by_finding": {label: labels[label] for label in FIVE},
        "label_quality": dict(sorted(qualities.items())),
        "patients": len({pair.subject for pair in pairs.values()}),
    }
    notes = [f"{repeated} labels stand twice in the table with the same value and count once"] if repeated else []
    return list(pairs.values()), fingerprint, notes


def read_sentences(path: Path, *, partial: bool = False) -> tuple[list[dict], dict]:
    """({"line", "subset", "sentences": (first, second), "category"} of each pair, fingerprint) of the sentence table.

    The subset is read from the column `subset_name` where there is one; else all pairs are of the subset "all".

    Raises UserError for a category outside its set or an empty sentence, by line, never with the text.
    """
    columns = ("sentence_1", "sentence_2", "category")
    columns += ("subset_name",) if "subset_name" in _header(path) else ()
    problems = Problems(path)
    found = []
    for line, (first, second, category, *subset) in rows(path, columns):
        category = category.strip().lower()
        if category not in CATEGORIES:
            problems.add(f"{path}:{line}: category is none of {', '.join(CATEGORIES)}; download the table again")
        if not first.strip() or not second.strip():
            problems.add(f"{path}:{line}: a sentence is empty; download the table again")
        sentences = (first.strip(), second.strip())
        subset = subset[0].strip() if subset and subset[0].strip() else "all"
        found.append({"line": line, "subset": subset, "sentences": sentences, "category": category})
    check_table(problems, "sentence pairs", len(found), SENTENCE_PAIRS, partial, empty=EMPTY)
    counts = Counter((row["subset"], row["category"]) for row in found)
    by_subset = {f"{subset}, {category}": n for (subset, category), n in sorted(counts.items())}
    return found, {"table": path.name, "sha256": sha256_file(path), "pairs": len(found), "by_subset": by_subset}


def _header(path: Path) -> set[str]:
    try:
        with open_text(path, newline="") as source:
            return {name.strip().lower() for name in next(csv.reader(source), [])}
    except (OSError, EOFError, ValueError, zlib.error, csv.Error):
        return set()  # `rows` opens the file again and says what is wrong with it


def _film(dicom_id: str, subject: int, study: int) -> tuple[str, str]:
    """(dicom without folders, path below the root) of `p10/p1xxxxxxx/s5xxxxxxx/<dicom>` or of a bare dicom."""
    name = dicom_id.strip("/").removesuffix(".jpg").removeprefix("files/")
    dicom = sys.intern(name.rpartition("/")[2])
    return dicom, f"files/{name}.jpg" if "/" in name else image_path(subject, study, dicom)
