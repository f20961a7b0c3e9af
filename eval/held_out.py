"""Held-out studies of CXR-MAX (`cxr-max-held-out`) or a phantom cohort (`phantom-held-out`): what a trajectory claims.

The student answers each study's own prompt; the answer is read by `data.findings` under the rules of `eval.presence`
(not mentioned is absent; a malformed answer is wrong for every finding). Counted are:

- **14 labels**: micro and macro F1, exact match. "No Finding" is never read from words: an answer, as a truth without
  that label, says it when it has none of the other labels, support devices apart.
- **agreement with the consensus** of the study. A consensus is not the truth; the two stand in tables of their own.
- **hallucinated** (called present, not there) and **missed** (there, not called present) by finding, over the readable
  answers: shares of the studies without, or with, the finding.
- **laterality**: of the findings rightly called present whose side is known (from the study's findings, else from its
  report): another side named, or none.
- refusals, malformed answers, words.

CXR-MAX's teachers were given the diagnoses, the student is not; its labels are the diagnoses that were given.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.errors import UserError
from data.files import sha256_file
from data.findings import is_refusal
from data.findings_lexicon import LABELS, SIDELESS
from data.records import SPLITS, image_paths, read_studies, root_of
from eval import presence
from eval.benchmarks import choose, measure
from eval.items import CONSENSUS, MAJORITY, Benchmark, Item
from eval.phantom import consensus_texts, majority_reading, split_of, teacher_texts

NAMES = ("cxr-max-held-out", "phantom-held-out")
OPTIONS = {
    "studies": "studies.jsonl",
    "images": None,
    "split": ("test", *(split for split in SPLITS if split != "test")),
    "uncertain": presence.UNCERTAIN,
    "teachers": ("yes", "no"),
}
NORMAL = "No Finding"
# A film with a tube and nothing else is normal, as CheXpert's labeler has it.
ABNORMAL = tuple(label for label in LABELS if label not in (NORMAL, "Support Devices"))


def load(name: str, root: Path, *, seed: int = 0, limit: int | None = None, options: dict) -> Benchmark:
    """One item a study of the split that has labels. Nothing is drawn, so `seed` changes nothing here.

    Options: `studies` (study records below `root`, as data.cxr_max and scripts/compare.sh write them, or a path),
    `images` (what image paths are relative to; default: the folder of the studies), `split`, `uncertain` (what
    "possible" counts as), `teachers` (yes: a row for each teacher and for the consensus).

    Raises UserError for a missing or damaged file, or a split without labelled studies.
    """
    chosen = choose(name, options, OPTIONS)
    path = root / chosen["studies"]
    if not path.is_file():
        raise UserError(f"{path}: no such file; name the folder of the studies, or the file with --set studies=FILE")
    folder = root_of(path, chosen["images"])
    everything = list(read_studies(path))
    studies = split_of(everything, chosen["split"], path, "check --set split= and the file")
    # {} is a label: nothing is listed, so nothing is there (data.cxr_max writes it where a table's row is all blank).
    labelled = [study for study in studies if study.get("findings") is not None]
    if not labelled:
        raise UserError(f'{path}: no study of split "{chosen["split"]}" has findings; make the records with labels')
    teachers, consensus = teacher_texts(labelled), consensus_texts(labelled) or [None] * len(labelled)
    items = []
    for at, study in enumerate(labelled[:limit]):
        truth = {
            "findings": presence.read_truth(study),
            "sides": sides_of(study),
            "consensus": consensus[at],
            "teachers": {teacher: texts[at] for teacher, texts in teachers.items()},
        }
        images = tuple(image_paths(study, folder))
        items.append(Item(study["id"], study["patient"], study["id"], images, study["prompt"], truth))
    notes = ["the consensus is no truth: agreement with it says whether the student repeats it"]
    if len(labelled) < len(studies):
        notes.append(f"{len(studies) - len(labelled)} studies without labels were left out")
    train = [study for study in everything if study["split"] == "train" and study.get("findings") is not None]
    majority = None
    if train:
        majority = majority_reading(train, LABELS, chosen["uncertain"])
    else:
        notes.append("no majority-class row: the file has no training study with labels")
    fingerprint = {
        "table": path.name,
        "sha256": sha256_file(path),
        "studies": len(studies),
        "labelled": len(labelled),
        "with_consensus": sum(text is not None for text in consensus),
        "with_sides": sum(bool(sides_of(study)) for study in labelled),
    }
    protocol = {
        "task": "14 labels of a generated trajectory",
        "answer": "free text, read by data.findings; not mentioned is absent; malformed is wrong for every finding",
        "no_finding": "none of the other labels, support devices apart",
        "macro_f1": "labels that the truth has",
        "prompt": "that of each study",
        "split": chosen["split"],
        "uncertain": chosen["uncertain"],
        "teachers": chosen["teachers"],
        "majority_class": majority and [label for label, (state, _) in majority.items() if state == "present"],
    }
    others = (MAJORITY, *((*teachers, CONSENSUS) if chosen["teachers"] == "yes" else ()))
    return Benchmark(name, "generate", tuple(items), fingerprint, protocol, tuple(notes), others)


def sides_of(study: dict) -> dict[str, str]:
    """Label -> side of the findings whose side is known: from `findings`, or from the report where that has none."""
    stated = {label: side for label, (_, side) in presence.read_truth(study).items() if side}
    if stated or not study.get("report"):
        return stated
    read = presence.read_answer(study["report"]) or {}
    return {label: side for label, (_, side) in read.items() if side}


class Ratio(NamedTuple):
    """A number sum(over) / sum(under) over studies, which a resample weights; arrays are [studies]."""

    name: str
    over: np.ndarray
    under: np.ndarray
    n: int


def label_matrix(readings: Sequence[presence.Reading | None], uncertain: str, stated_normal: bool) -> np.ndarray:
    """Boolean [studies, 14] in the order of LABELS. With `stated_normal` a reading's own "No Finding" counts."""
    readings = [reading or {} for reading in readings]
    found = presence.truth_matrix(readings, LABELS, uncertain)
    ill = found[:, [LABELS.index(label) for label in ABNORMAL]].any(1)
    for row, reading in enumerate(readings):
        if not (stated_normal and NORMAL in reading):
            found[row, LABELS.index(NORMAL)] = not ill[row]
    return found


def side_matrix(sides: Sequence[dict[str, str | None]]) -> np.ndarray:
    """Sides [studies, 14], "" where none is known; labels that have no side always ""."""
    labels = [None if label in SIDELESS else label for label in LABELS]
    return np.array([[one.get(label) or "" for label in labels] for one in sides], dtype="U9")


class Truth(NamedTuple):
    """What rows are scored against; arrays are [studies, 14] or [studies]."""

    labels: np.ndarray
    sides: np.ndarray
    consensus: np.ndarray
    consensus_sides: np.ndarray
    agreed: np.ndarray  # whether the study has a readable consensus
    patients: list[str]


def score(benchmark: Benchmark, answers: Sequence[dict], *, seed: int, resamples: int) -> dict:
    """Rows of the answers, the teachers, the consensus and the majority class; answers are aligned with the items."""
    items, uncertain = benchmark.items, benchmark.protocol["uncertain"]
    consensus_texts_ = [item.truth["consensus"] for item in items]
    consensus = [presence.read_answer(text) for text in consensus_texts_]
    truth = Truth(
        labels=label_matrix([item.truth["findings"] for item in items], uncertain, stated_normal=True),
        sides=side_matrix([item.truth["sides"] for item in items]),
        consensus=label_matrix(consensus, uncertain, stated_normal=False),
        consensus_sides=side_matrix([_sides(reading) for reading in consensus]),
        agreed=np.array([reading is not None for reading in consensus]),
        patients=[item.patient for item in items],
    )
    draw = {"seed": seed, "resamples": resamples}
    texts = [answer["text"] for answer in answers]
    readings = [presence.read_answer(text) for text in texts]
    refused = np.array([is_refusal(text) for text in texts], float)
    words = np.array([len(text.split()) for text in texts], float)
    said = label_matrix(readings, uncertain, stated_normal=False)
    everyone = np.ones(len(items))
    own = [
        Ratio("answers/refused", refused, everyone, len(items)),
        Ratio("answers/words", words, everyone, len(items)),
    ]
    if truth.agreed.any():
        length = np.array([len((text or "").split()) for text in consensus_texts_], float) * truth.agreed
        number = int(truth.agreed.sum())
        own.append(Ratio("answers/words of the consensus", length, truth.agreed.astype(float), number))
    metrics = measure_row(truth, said, readings, own, agreement=True, **draw)
    rows = [{"name": "student", "metrics": metrics}]
    notes = []
    if benchmark.protocol["teachers"] == "yes":
        teachers = {name: [item.truth["teachers"][name] for item in items] for name in items[0].truth["teachers"]}
        if truth.agreed.any():
            teachers[CONSENSUS] = consensus_texts_
        for name, given in teachers.items():
            read = consensus if name == CONSENSUS else [presence.read_answer(text) for text in given]
            theirs = label_matrix(read, uncertain, stated_normal=False)
            metrics = measure_row(truth, theirs, read, [], agreement=name != CONSENSUS, **draw)
            rows.append({"name": name, "baseline": True, "metrics": metrics})
        notes.append("teachers: refused, filtered, empty and missing trajectories are malformed answers")
    majority = benchmark.protocol["majority_class"]
    if majority is not None:
        read = [{label: ("present", None) for label in majority}] * len(items)
        constant = label_matrix(read, uncertain, stated_normal=False)
        metrics = measure_row(truth, constant, None, [], agreement=False, **draw)
        rows.append({"name": MAJORITY, "baseline": True, "metrics": metrics})
    unsupported = [label for label, some in zip(LABELS, truth.labels.any(0), strict=True) if not some]
    if unsupported:
        notes.append(f"macro F1 is over {len(LABELS) - len(unsupported)} labels; no study has {', '.join(unsupported)}")
    missing = int((~truth.agreed).sum())
    if missing:
        notes.append(f"{missing} of {len(items)} studies have no readable consensus; agreement leaves them out")
    judged = flip(said, truth.labels, readings)
    kept = [k for k, label in enumerate(LABELS) if label not in unsupported]
    per_item = [
        {
            "id": item.id,
            "correct": {LABELS[k]: bool(judged[row, k] == truth.labels[row, k]) for k in kept},
            "truth": {LABELS[k]: int(truth.labels[row, k]) for k in kept},
            "words": int(words[row]),
            "refused": bool(refused[row]),
        }
        for row, item in enumerate(items)
    ]
    return {"rows": rows, "per_item": per_item, "notes": notes}


def _sides(reading: presence.Reading | None) -> dict[str, str | None]:
    return {label: side for label, (_, side) in (reading or {}).items()}


def flip(said: np.ndarray, truth: np.ndarray, readings: Sequence[presence.Reading | None]) -> np.ndarray:
    """`said` with malformed answers made wrong for every label."""
    malformed = np.array([reading is None for reading in readings], bool)
    return np.where(malformed[:, None], ~truth, said)


def measure_row(
    truth: Truth,
    said: np.ndarray,
    readings: Sequence[presence.Reading | None] | None,
    own: Sequence[Ratio],
    *,
    agreement: bool,
    seed: int,
    resamples: int,
) -> dict[str, dict]:
    """All numbers of one row with bootstrap intervals by patient.

    Args:
        said: boolean [studies, 14] as read, malformed answers False.
        readings: what was read from each answer, None for a malformed one; None altogether for labels without texts.
        own: further numbers.
        agreement: compare with the consensus, too.
    """
    texts = readings is not None
    readings = [{}] * len(said) if readings is None else readings
    judged = flip(said, truth.labels, readings)
    ratios = label_ratios("14 labels", truth.labels, judged)
    supported = truth.labels.any(0)
    by_label = [f1("F1 by label/" + LABELS[k], truth.labels[:, [k]], judged[:, [k]]) for k in np.flatnonzero(supported)]
    if agreement and truth.agreed.any():
        ratios += agreement_ratios(truth, said, readings)
    ratios += error_ratios(truth.labels, said, readings)
    if texts:
        ratios += side_ratios(truth, said, readings)
        malformed = np.array([reading is None for reading in readings], float)
        ratios.append(Ratio("answers/malformed", malformed, np.ones(len(said)), len(said)))
    ratios = [*ratios, *own, *by_label]
    over, under = (np.array([getattr(ratio, side) for ratio in ratios]) for side in ("over", "under"))
    labels = range(len(ratios) - len(by_label), len(ratios))

    def numbers(weights: np.ndarray) -> dict[str, float]:
        top, bottom = over @ weights, under @ weights
        values = np.divide(top, bottom, out=np.full(len(ratios), np.nan), where=bottom > 0)
        # A label that no study of a resample has leaves the macro average undefined, never one over fewer labels.
        some = (truth.labels[:, supported].T @ weights > 0).all()
        macro = {"14 labels/macro F1": values[labels].mean() if some else np.nan}
        found = {ratio.name: value for ratio, value in zip(ratios, values, strict=True)}
        return {ratios[0].name: found[ratios[0].name], **macro, **found}

    sizes = {ratio.name: ratio.n for ratio in ratios}
    return measure(numbers, truth.patients, sizes, seed=seed, resamples=resamples)


def f1(name: str, truth: np.ndarray, said: np.ndarray) -> Ratio:
    """F1 pooled over the labels [studies, labels]: 2 hits / (positives of the truth + positives said)."""
    return Ratio(name, 2.0 * (truth & said).sum(1), 1.0 * truth.sum(1) + said.sum(1), len(truth))


def label_ratios(group: str, truth: np.ndarray, said: np.ndarray) -> list[Ratio]:
    everyone = np.ones(len(truth))
    return [
        f1(f"{group}/micro F1", truth, said),
        Ratio(f"{group}/exact match", 1.0 * (truth == said).all(1), everyone, len(truth)),
    ]


def agreement_ratios(truth: Truth, said: np.ndarray, readings: Sequence[presence.Reading | None]) -> list[Ratio]:
    """How an answer and the consensus differ, over the studies whose consensus can be read."""
    group = "agreement with the consensus"
    judged = flip(said, truth.consensus, readings)
    weight, number = truth.agreed.astype(float), int(truth.agreed.sum())
    out = [
        ratio._replace(over=ratio.over * weight, under=ratio.under * weight, n=number)
        for ratio in label_ratios(group, truth.consensus, judged)
    ]
    same = (truth.consensus == judged).mean(1) * weight
    out.append(Ratio(f"{group}/labels that agree", same, weight, number))
    sides = side_matrix([_sides(reading) for reading in readings])
    both = truth.consensus & said & (sides != "") & (truth.consensus_sides != "") & truth.agreed[:, None]
    other = both & (sides != truth.consensus_sides)
    return [*out, Ratio(f"{group}/another side", 1.0 * other.sum(1), 1.0 * both.sum(1), int(both.sum()))]


def error_ratios(truth: np.ndarray, said: np.ndarray, readings: Sequence[presence.Reading | None]) -> list[Ratio]:
    """Hallucinated and missed findings, over the answers that can be read."""
    readable = np.array([reading is not None for reading in readings], bool)
    findings = np.array([label != NORMAL for label in LABELS])
    out = []
    for word, wrong, where in (("hallucinated", said & ~truth, ~truth), ("missed", truth & ~said, truth)):
        wrong, where = wrong & readable[:, None], where & readable[:, None]
        total = Ratio(
            f"{word}/findings an answer",
            1.0 * wrong[:, findings].sum(1),
            readable.astype(float),
            int(readable.sum()),
        )
        out.append(total)
        for k, label in enumerate(LABELS):
            if truth[:, k].any() or word == "hallucinated":
                out.append(Ratio(f"{word}/{label}", 1.0 * wrong[:, k], 1.0 * where[:, k], int(where[:, k].sum())))
    return out


def side_ratios(truth: Truth, said: np.ndarray, readings: Sequence[presence.Reading | None]) -> list[Ratio]:
    """Sides of the findings rightly called present whose true side is known."""
    sides = side_matrix([_sides(reading) for reading in readings])
    known = truth.labels & said & (truth.sides != "")
    under, n = 1.0 * known.sum(1), int(known.sum())
    return [
        Ratio("laterality/another side", 1.0 * (known & (sides != "") & (sides != truth.sides)).sum(1), under, n),
        Ratio("laterality/no side named", 1.0 * (known & (sides == "")).sum(1), under, n),
    ]
