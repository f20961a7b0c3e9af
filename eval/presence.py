"""Presence of findings: what an answer says against what is true. Pure functions, no files.

The rules, stated once:

- An answer is read sentence by sentence by `data.findings` into present, absent or uncertain for each label.
- **Uncertain counts as present** by default, in the truth and in answers: "possible pneumonia" makes the reader look
  again, as a positive does, and an answer must not score by hedging everything it sees (CheXbert's "U-ones"). Pass
  `uncertain="absent"` for the other convention; never compare numbers across the two.
- A finding that a readable answer **does not mention counts as absent**: reports leave most negatives unsaid.
- A **malformed** answer (no text, a refusal, any text without one readable claim) is wrong for *every* finding, in
  accuracy, balanced accuracy and F1 alike, and counted in `malformed_rate`. Refusing never pays.
- An answer cut off by its length limit is read as far as it goes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.metrics import balanced_accuracy_score, f1_score

from data.errors import UserError
from data.findings import read_findings, summarise
from data.findings_lexicon import FIVE

UNCERTAIN = ("present", "absent")

Reading = dict[str, tuple[str, str | None]]  # label -> (state, side)


def read_answer(text: str | None) -> Reading | None:
    """Label -> (state, side) of everything an answer mentions; None for a malformed answer."""
    return summarise(read_findings(text or "")) or None


def read_truth(study: dict) -> Reading:
    """Label -> (state, side) of a study's known findings; labels that are not listed are absent.

    Raises UserError for a study without `findings`.
    """
    findings = study.get("findings")
    if findings is None:
        raise UserError(f"study {study['id']}: no findings to score against; add its `findings`, or leave it out")
    return {label: (value["state"], value.get("side")) for label, value in findings.items()}


def is_present(reading: Reading, label: str, uncertain: str = "present") -> bool:
    state = reading.get(label, ("absent", None))[0]
    return state == "present" or (state == "uncertain" and uncertain == "present")


def truth_matrix(truths: Sequence[Reading], labels: Sequence[str] = FIVE, uncertain: str = "present") -> np.ndarray:
    """Boolean [studies, labels]: is the finding there?"""
    return np.array([[is_present(t, label, uncertain) for label in labels] for t in truths], bool).reshape(
        len(truths), len(labels)
    )


def answer_matrix(
    answers: Sequence[Reading | None],
    truth: np.ndarray,
    labels: Sequence[str] = FIVE,
    uncertain: str = "present",
) -> np.ndarray:
    """Boolean [studies, labels]: does the answer say that it is there? A malformed answer says the opposite of `truth`,
    which makes it wrong for every finding in any metric computed from the two matrices."""
    said = truth_matrix([a or {} for a in answers], labels, uncertain)
    malformed = np.array([a is None for a in answers], bool)
    return np.where(malformed[:, None], ~truth, said)


def score(truth: np.ndarray, said: np.ndarray, malformed: np.ndarray) -> dict:
    """Metrics of one finding.

    Args:
        truth, said: boolean [n]; `said` as `answer_matrix` gives it.
        malformed: boolean [n].

    Returns `n`, `accuracy`, `balanced_accuracy` (mean of sensitivity and specificity; None when the truth has only one
    class, where it is not defined), `f1` (None likewise without any positive), `prevalence` (share of true positives in
    the truth), and `positive_rate` (share of the readable answers that say "present"; None without any).
    """
    if not len(truth):
        raise UserError("no item to score; check the split and the ids")
    both = bool(truth.any()) and not bool(truth.all())
    readable = ~malformed
    return {
        "n": int(len(truth)),
        "accuracy": float((truth == said).mean()),
        "balanced_accuracy": float(balanced_accuracy_score(truth, said)) if both else None,
        "f1": float(f1_score(truth, said)) if truth.any() else None,
        "prevalence": float(truth.mean()),
        "positive_rate": float(said[readable].mean()) if readable.any() else None,
    }


def laterality(
    truths: Sequence[Reading],
    answers: Sequence[Reading | None],
    labels: Sequence[str] = FIVE,
    uncertain: str = "present",
) -> dict:
    """Side named rightly among true positives: findings that are there, have a side, and are called present.

    An answer that calls a finding present without any side counts as wrong. Returns {"n", "accuracy" (None at n = 0)}.
    """
    hits = [
        truth[label][1] == answer[label][1]
        for truth, answer in zip(truths, answers, strict=True)
        if answer is not None
        for label in labels
        if is_present(truth, label, uncertain) and truth[label][1] and is_present(answer, label, uncertain)
    ]
    return {"n": len(hits), "accuracy": float(np.mean(hits)) if hits else None}


def mean(values: Mapping[str, float | None]) -> float | None:
    """Plain mean over the findings; None as soon as one of them is not defined, never a mean over fewer."""
    numbers = list(values.values())
    return None if not numbers or any(v is None for v in numbers) else float(np.mean(numbers))


def score_answers(
    truths: Sequence[Reading],
    answers: Sequence[Reading | None],
    *,
    others: Sequence[str] = (),
    uncertain: str = "present",
) -> dict:
    """All metrics of one set of answers, aligned with `truths`: the numbers of one row of results.json.

    `others` are labels besides the five that are scored in the same way and never enter a mean.
    """
    if uncertain not in UNCERTAIN:
        raise UserError(f"uncertain={uncertain}: must be one of {', '.join(UNCERTAIN)}")
    malformed = np.array([a is None for a in answers], bool)
    labels = (*FIVE, *others)
    truth = truth_matrix(truths, labels, uncertain)
    said = answer_matrix(answers, truth, labels, uncertain)
    scores = {label: score(truth[:, j], said[:, j], malformed) for j, label in enumerate(labels)}
    row: dict = {"n": len(truths), "malformed": int(malformed.sum()), "malformed_rate": float(malformed.mean())}
    for key in ("accuracy", "balanced_accuracy", "f1", "prevalence", "positive_rate"):
        row[key] = {label: scores[label][key] for label in FIVE}
    row["mean_accuracy"] = mean(row["accuracy"])
    row["mean_balanced_accuracy"] = mean(row["balanced_accuracy"])
    row["laterality"] = laterality(truths, answers, uncertain=uncertain)
    row["other_findings"] = {label: scores[label] for label in others}
    return row


def correct_matrix(
    truths: Sequence[Reading], answers: Sequence[Reading | None], uncertain: str = "present"
) -> np.ndarray:
    """Boolean [studies, five]: is the answer right about that finding?"""
    truth = truth_matrix(truths, FIVE, uncertain)
    return truth == answer_matrix(answers, truth, FIVE, uncertain)


def bootstrap_mean(correct: np.ndarray, index: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Mean accuracy over the findings in every resample: [resamples]. `correct` is [n, findings], boolean or a
    difference of two such matrices (for a paired interval); `index` and `draws` as
    `eval.statistics.patient_draws` returns them."""
    values = np.asarray(correct, float).mean(1)
    patients = draws.shape[1]
    sums, sizes = np.bincount(index, values, patients), np.bincount(index, minlength=patients)
    return (draws @ sums) / (draws @ sizes)
