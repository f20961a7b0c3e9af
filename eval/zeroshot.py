"""Zero-shot classification with AUC: one yes/no question a film and label, scored as `eval.yesno` does.

AUC ranks films within a label, so no threshold and no calibration enters. The macro AUC is the plain mean over the
labels that have both classes among the scored films; the others are named and counted. Films of one patient are drawn
together in the bootstrap. A question without its film gets the same score for every film, so the no-image row is .5 by
construction: what it shows is the share of yes that the words alone bring.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.errors import UserError
from eval import statistics
from eval.benchmarks import choose, measure
from eval.items import Benchmark, Item
from eval.sets import chestxdet10, chexpert, nih, openi, padchest, phantom, vindr
from eval.yesno import LOW_MASS, low_mass_note

# name -> (module with OPTIONS, its reader)
SETS = {
    "open-i": (openi, openi.read),
    "chestx-ray14": (nih, nih.read),
    "chexpert-5": (chexpert, chexpert.read_five),
    "chexpert-14": (chexpert, chexpert.read),
    "chestx-det10": (chestxdet10, chestxdet10.read),
    "padchest": (padchest, padchest.read),
    "padchest20": (padchest, padchest.read_rare),
    "vindr-cxr": (vindr, vindr.read),
    "phantom-zeroshot": (phantom, phantom.read),
}
NAMES = tuple(SETS)
QUESTION = "Does this chest X-ray show {finding}? Answer yes or no."
MACRO = "macro"


def load(name: str, root: Path, *, seed: int = 0, limit: int | None = None, options: dict) -> Benchmark:
    """The questions about a set's films (the first `limit` films): all labels of a film follow each other.

    Options: those of the set; `question`, a text with {finding} where the label's words go; `prefix`, what the student
    has said before its answer is read, backslash-n for a line break, for one that thinks first. `seed` changes nothing.
    """
    module, read = SETS[name]
    chosen = choose(name, options, {**module.OPTIONS, "question": QUESTION, "prefix": ""})
    question = chosen["question"]
    if question.count("{finding}") != 1 or "{" in question.replace("{finding}", ""):
        raise UserError(f"--set question={question}: must have {{finding}} once and no other braces")
    found = read(Path(root), chosen)
    items = [
        Item(
            id=f"{film.id}#{label}",
            patient=film.patient,
            study=film.study,
            images=(film.image,),
            prompt=question.replace("{finding}", phrase),
            truth={"label": label, "present": int(label in film.labels)},
        )
        for film in found.films[:limit]
        for label, phrase in found.phrases.items()
    ]
    protocol = {
        "task": "zero-shot classification of a film, one yes/no question a label",
        "score": "P(yes) / (P(yes) + P(no)) at the first answer token, single-token variants of each word summed",
        "metric": "AUC by label (ties half), macro AUC: plain mean over the labels with both classes",
        "question": question,
        **({"answer_prefix": chosen["prefix"].replace("\\n", "\n")} if chosen["prefix"] else {}),
        "words": dict(found.phrases),
        **found.protocol,
    }
    return Benchmark(name, "yesno", tuple(items), found.fingerprint, protocol, tuple(found.notes))


def score(benchmark: Benchmark, answers: Sequence[dict], *, seed: int, resamples: int) -> dict:
    """AUC by label and their mean with bootstrap intervals by patient, and how much probability yes and no had."""
    where = defaultdict(list)
    for number, item in enumerate(benchmark.items):
        where[item.truth["label"]].append(number)
    truth = np.array([item.truth["present"] for item in benchmark.items], bool)
    yes = np.array([answer["p_yes"] for answer in answers], float)
    mass = np.array([answer["mass"] for answer in answers], float)
    places = {label: np.array(found) for label, found in where.items()}
    aucs = {label: statistics.Auc(truth[found], yes[found]) for label, found in places.items()}
    absent = [label for label, one in aucs.items() if np.isnan(one())]

    def numbers(counts: np.ndarray) -> dict[str, float]:
        found = {label: one(counts[places[label]]) for label, one in aucs.items()}
        defined = [value for label, value in found.items() if label not in absent]
        total = counts.sum()
        return {
            f"AUC/{MACRO}": float(np.mean(defined)) if defined else np.nan,
            **{f"AUC/{label}": value for label, value in found.items()},
            "answers/mean mass of yes and no": counts @ mass / total,
            f"answers/share with mass below {LOW_MASS:g}": counts @ (mass < LOW_MASS) / total,
            "answers/mean P(yes)": counts @ yes / total,
        }

    sizes = {f"AUC/{label}": len(found) for label, found in places.items()}
    sizes[f"AUC/{MACRO}"] = len({item.images for item in benchmark.items})
    patients = [item.patient for item in benchmark.items]
    metrics = measure(numbers, patients, sizes, seed=seed, resamples=resamples)
    notes = []
    if absent:
        notes.append(
            f"{len(absent)} of {len(aucs)} labels have one class only among the scored films, no AUC, and are not in "
            f"the macro AUC: {', '.join(absent)}"
        )
    if any(cell["value"] is not None and cell["low"] is None for cell in metrics.values()):
        notes.append("no interval where a class is missing from more than half of the resamples")
    low = low_mass_note(answers)
    per_item = [
        {
            "id": item.id,
            "score": {item.truth["label"]: answer["p_yes"]},
            "truth": {item.truth["label"]: item.truth["present"]},
            "mass": answer["mass"],
        }
        for item, answer in zip(benchmark.items, answers, strict=True)
    ]
    return {
        "rows": [{"name": "student", "metrics": metrics}],
        "per_item": per_item,
        "notes": [*notes, *([low] if low else [])],
    }
