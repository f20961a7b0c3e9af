"""Sentence similarity of MS-CXR-T: do two sentences say the same about a change (paraphrase or contradiction)?

Embedding models are scored on this by the cosine of two sentences. A generative student is asked, and its score is
P(yes) / (P(yes) + P(no)) at the first answer token: ROC-AUC, and accuracy at a threshold of one half, fixed beforehand.
(A threshold tuned on the same pairs, as others do, gives an optimistic accuracy.) There are no films.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.errors import UserError
from eval import ms_cxr_t, statistics
from eval.benchmarks import choose, measure
from eval.items import MAJORITY, Benchmark, Item
from eval.yesno import low_mass_note

NAMES = ("ms-cxr-t-similarity",)
OPTIONS = {"table": None, "partial": ("no", "yes")}
PROMPT = (
    "Sentence 1: {first}\nSentence 2: {second}\nDo these two sentences from chest X-ray reports describe the same "
    "change over time? Answer yes or no."
)


def load(name: str, root: Path, *, seed: int = 0, limit: int | None = None, options: dict) -> Benchmark:
    """One item a pair of sentences. Options: `table` (the csv), `partial` (accept one that was cut).

    Nothing is drawn, so that `seed` changes nothing here.
    """
    chosen = choose(name, options, OPTIONS)
    path = ms_cxr_t.find_table(root, ms_cxr_t.SENTENCE_TABLE, chosen["table"])
    pairs, fingerprint = ms_cxr_t.read_sentences(path, partial=chosen["partial"] == "yes")
    items = []
    for pair in pairs[:limit]:
        id_ = f"pair-{pair['line']}"
        first, second = pair["sentences"]
        truth = {"paraphrase": int(pair["category"] == "paraphrase"), "subset": pair["subset"]}
        items.append(Item(id_, id_, "", (), PROMPT.format(first=first, second=second), truth))
    protocol = {
        "task": "paraphrase or contradiction, for pairs of sentences about a change",
        "prompt": PROMPT,
        "score": "P(yes) / (P(yes) + P(no)) at the first answer token",
        "threshold": 0.5,
        "majority_class": "more frequent category among the scored pairs",
    }
    notes = ("the table names no patient: resampled by pair of sentences, and pairs of one patient are taken as apart",)
    return Benchmark(name, "yesno", tuple(items), fingerprint, protocol, notes, (MAJORITY,))


def score(benchmark: Benchmark, answers: Sequence[dict], *, seed: int, resamples: int) -> dict:
    """Rows of the answers and of the majority class, see docs/evaluation.md; answers are aligned with the items."""
    items = benchmark.items
    truth = np.array([item.truth["paraphrase"] for item in items])
    p_yes = np.array([answer["p_yes"] for answer in answers], float)
    if not np.isfinite(p_yes).all():
        raise UserError(f"{benchmark.name}: a p_yes is not a finite number; make the predictions again")
    majority = int(2 * truth.sum() > len(truth))
    subsets = {name: np.array([item.truth["subset"] == name for item in items]) for name in _subsets(items)}
    if len(subsets) > 1:
        subsets["all"] = np.ones(len(items), bool)
    draw = {"seed": seed, "resamples": resamples}
    patients = [item.patient for item in items]
    scores = {"student": p_yes, MAJORITY: np.full(len(items), float(majority))}
    rows = []
    for name, values in scores.items():
        row = {"name": name, "metrics": metrics(truth, values, subsets, patients, **draw)}
        rows.append(row | ({"baseline": True} if name != "student" else {}))
    per_item = [
        {
            "id": item.id,
            "truth": {"paraphrase": int(truth[i])},
            "score": {"paraphrase": float(p_yes[i])},
            "correct": {"paraphrase": bool((p_yes[i] >= 0.5) == truth[i])},
        }
        for i, item in enumerate(items)
    ]
    mass = low_mass_note(answers)
    notes = [mass] if mass else []
    notes += [
        f"{name}: one category only, so the AUC is not defined"
        for name, chosen in subsets.items()
        if len(set(truth[chosen])) < 2
    ]
    return {"rows": rows, "per_item": per_item, "notes": notes}


def _subsets(items: Sequence[Item]) -> list[str]:
    return sorted({item.truth["subset"] for item in items})


def metrics(
    truth: np.ndarray, p_yes: np.ndarray, subsets: dict, patients: Sequence[str], *, seed: int, resamples: int
) -> dict:
    """AUC and accuracy at one half by subset; `truth` 0/1 and `p_yes` are [pairs]."""
    correct = (p_yes >= 0.5) == truth
    aucs = {name: statistics.Auc(truth[chosen], p_yes[chosen]) for name, chosen in subsets.items()}

    def numbers(counts: np.ndarray) -> dict[str, float]:
        out = {f"AUC/{name}": aucs[name](counts[chosen]) for name, chosen in subsets.items()}
        for name, chosen in subsets.items():
            drawn = counts[chosen].sum()
            out[f"accuracy/{name}"] = float(counts[chosen] @ correct[chosen] / drawn) if drawn else float("nan")
        return out

    sizes = {f"{kind}/{name}": chosen.sum() for kind in ("AUC", "accuracy") for name, chosen in subsets.items()}
    return measure(numbers, patients, sizes, seed=seed, resamples=resamples)
