"""Progression of five findings between two films: improving, stable or worsening (MS-CXR-T, and the phantom cohort).

Protocol A (BioViL-T, CoCa-CXR): for each finding the mean of the three recalls, called macro accuracy, and the plain
mean of the five. One question a (pair of films, finding) that has a label, three options in an order drawn from
`order_seed`. An answer in which no one option can be read is wrong, and its share is reported. Plain accuracy, which
other work prints, stands in a table of its own: a constant "stable" gets .33 in the first and the share of stable
labels in the second.
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.findings_lexicon import FIVE
from data.records import PROGRESSIONS, image_paths
from eval import ms_cxr_t, phantom_items
from eval.benchmarks import choose, measure
from eval.items import MAJORITY, Benchmark, Item

NAMES = ("ms-cxr-t-progression", "phantom-progression")
MS_CXR_T_OPTIONS = {
    "table": None,
    "images": None,
    "disagreement": ("keep", "drop"),
    "partial": ("no", "yes"),
    "order_seed": "0",
}
PHANTOM_OPTIONS = {**phantom_items.OPTIONS, "order_seed": "0"}
LETTERS = "ABC"
ORDERS = tuple(itertools.permutations(PROGRESSIONS))
PROMPT = (
    "These are two chest X-rays of one patient: the first is the earlier one, the second is the current one. Compared "
    "with the earlier film, how has the {finding} changed? Options: {options}. Answer with one option."
)
# An answer that opens with a letter: "(B)", "B.", "B: ...", "The answer is B", '{"answer": "B"}'. A bare "A" before a
# word is an article.
OPENING = re.compile(
    r"\W*(?:(?:the |my )?(?:correct |best |final )?(?:answer|option|choice|boxed)(?: is)?\W*)?"
    r"(?:\((?P<inside>[abc])\)|(?P<bare>[abc])(?=[ \t]*(?:[).:,;*\n}<\"']|$)))",
    re.I,
)
CLOSING = re.compile(r"\b(?:answer|option|choice)(?: is)?\W*(?P<bare>[abc])\W*$", re.I)  # "..., so the answer is B."
WORDS = {"improving": r"improv\w*", "stable": "stable|unchanged", "worsening": r"worse\w*"}
OPTION = f"(?:{'|'.join(WORDS.values())})"
# A negation reaches over up to four words ("no evidence of interval worsening") and a list ("no improvement or
# worsening"), but not over a word that opens a new thought ("no effusion but worsening edema").
FILLER = rf"(?:(?!(?:and|but|with|while|which|that|change|{OPTION})\b)[\w-]+ ){{0,4}}"
LIST = rf"(?:(?: or | nor |/){FILLER}{OPTION})*"
WORDS["stable"] += f"|no {FILLER}change{LIST}"
NEGATED = rf"(?:no|not|without|neither|nor|\w+n['\u2019]t) {FILLER}{OPTION}{LIST}"
MENTION = re.compile(
    r"\b(?:" + "|".join(f"(?P<{name}>{words})" for name, words in WORDS.items()) + f"|{NEGATED})\\b", re.I
)
UNREAD = len(PROGRESSIONS)


def load(name: str, root: Path, *, seed: int = 0, limit: int | None = None, options: dict) -> Benchmark:
    """The questions of `ms-cxr-t-progression` (root: MIMIC-CXR-JPG) or `phantom-progression` (root: a cohort folder).

    Options of the former: `table` (its csv), `images` (root of the films), `disagreement` (keep or drop labels on which
    the experts disagreed), `partial` (accept a table that was cut). Of the latter: `split`, `studies`. Of both:
    `order_seed`, of the order in which options are shown. `seed` draws nothing here.

    Raises UserError for `disagreement=drop` with a table that does not say where the experts disagreed, and for a
    `seed` other than 0 without an `order_seed`.
    """
    order_seed = _order_seed(name, seed, options)
    if name == "phantom-progression":
        pairs, fingerprint, notes, chosen = _phantom_pairs(name, root, options)
    else:
        pairs, fingerprint, notes, chosen = _ms_cxr_t_pairs(name, root, options)
    empty = sum(not labels for *_, labels in pairs)
    if empty:
        notes.append(f"{empty} pairs of films without any label were left out")
    pairs = [pair for pair in pairs if pair[-1]]
    items = []
    for key, patient, study, images, labels in pairs[:limit]:
        for finding in FIVE:
            if finding in labels:
                id_ = f"{key}:{finding}"
                order = shown_order(order_seed, id_)
                listed = ", ".join(f"({letter}) {word}" for letter, word in zip(LETTERS, order, strict=True))
                prompt = PROMPT.format(finding=finding.lower(), options=listed)
                truth = {"finding": finding, "progression": labels[finding], "order": list(order)}
                items.append(Item(id_, patient, study, images, prompt, truth))
    protocol = {
        "task": "progression of a finding from the previous film to the current one, three classes",
        "protocol": "A: per-finding macro accuracy (mean of three recalls), mean of five findings",
        "prompt": PROMPT,
        "option_order": f"drawn for each question from seed {order_seed}",
        "films": "previous first, current second",
        "unreadable_answer": "wrong",
        "majority_class": "most frequent label of each finding among the scored ones",
        **chosen,
    }
    return Benchmark(name, "generate", tuple(items), fingerprint, protocol, tuple(notes), (MAJORITY,))


def _order_seed(name: str, seed: int, options: dict) -> int:
    told = options.get("order_seed", "0")
    if not (told.isascii() and told.isdecimal()):
        raise UserError(f"--set order_seed={told}: must be a whole number from 0")
    # --seed was of the order once: letters read in another order would score low without a word.
    if seed and "order_seed" not in options:
        raise UserError(
            f"--seed {seed}: is of the bootstrap alone; say in which order {name} shows its options: "
            f"--set {name}:order_seed=0 (the usual), or {name}:order_seed={seed} for answers that were asked under "
            f"--seed {seed} when it drew the order, too"
        )
    return int(told)


def _ms_cxr_t_pairs(name: str, root: Path, options: dict) -> tuple[list, dict, list[str], dict]:
    chosen = choose(name, options, MS_CXR_T_OPTIONS)
    table = ms_cxr_t.find_table(root, ms_cxr_t.IMAGE_TABLE, chosen["table"])
    found, fingerprint, notes = ms_cxr_t.read_pairs(table, partial=chosen["partial"] == "yes")
    if chosen["disagreement"] == "drop" and not fingerprint["label_quality"]:
        raise UserError(
            f"{table}: names no label quality (columns ..._label_quality), so that nothing is known of disagreement; "
            "name the published table, or say --set disagreement=keep"
        )
    films = Path(chosen["images"] or root).resolve()
    pairs, dropped = [], 0
    for pair in found:
        labels = dict(pair.labels)
        if chosen["disagreement"] == "drop":
            labels = {key: value for key, value in labels.items() if pair.quality.get(key) != "disagreement"}
            dropped += len(pair.labels) - len(labels)
        images = tuple(str(films / image) for image in pair.images)
        pairs.append((f"{pair.previous_dicom}>{pair.dicom}", f"p{pair.subject}", f"s{pair.study}", images, labels))
    if chosen["disagreement"] == "drop":
        notes.append(f"{dropped} labels on which the experts disagreed were left out (disagreement=drop)")
    notes.append("pairs come from all splits of MIMIC-CXR: check the training set with --train")
    return pairs, fingerprint, notes, {"disagreement": chosen["disagreement"]}


def _phantom_pairs(name: str, root: Path, options: dict) -> tuple[list, dict, list[str], dict]:
    chosen = choose(name, options, PHANTOM_OPTIONS)
    studies, folder, fingerprint = phantom_items.read(root, chosen)
    by_id = {study["id"]: study for study in studies}
    pairs, alone = [], 0
    for study in studies:
        if not study.get("prior"):
            continue
        prior = by_id.get(study["prior"])
        if prior is None:
            alone += 1
            continue
        labels = {key: value.get("progression") for key, value in study["findings"].items() if key in FIVE}
        labels = {key: value for key, value in labels.items() if value}
        images = (*image_paths(prior, folder)[:1], *image_paths(study, folder)[:1])
        pairs.append((f"{prior['id']}>{study['id']}", study["patient"], study["id"], images, labels))
    counts = Counter(label for *_, labels in pairs for label in labels)
    fingerprint |= {"pairs": len(pairs), "labels_by_finding": {label: counts[label] for label in FIVE}}
    notes = ["simulated films; a finding that came or went counts as worsening or improving"]
    if alone:
        notes.append(f"{alone} studies were left out: their prior study is not of the split")
    return pairs, fingerprint, notes, {"split": chosen["split"]}


def shown_order(seed: int, id_: str) -> tuple[str, str, str]:
    """The order in which the options of a question are shown: a function of seed and id alone."""
    return ORDERS[int.from_bytes(hashlib.sha256(f"{seed} {id_}".encode()).digest()[:8], "big") % len(ORDERS)]


def read_choice(text: str, order: Sequence[str]) -> str | None:
    """The option that an answer names, or None.

    An answer that opens with a letter ("(B) stable. The heart ...", "The answer is B") names that option, unless
    another option's word stands beside the letter. So does one that closes with it ("..., so the answer is B"), unless
    another option's word stands anywhere in it. Otherwise the whole answer must name one option's word and no other, in
    the forms improv..., worse..., stable, unchanged, no change; a negated word ("no worsening", "no evidence of
    improvement or worsening") names nothing.
    """
    opening = OPENING.match(text)
    if opening:
        option = order[LETTERS.index((opening["inside"] or opening["bare"]).upper())]
        beside = re.split(r"[.;\n]", text[opening.end() :].lstrip(").:,;* \t"), maxsplit=1)[0]
        return option if named(beside) <= {option} else None
    options = named(text)
    if closing := CLOSING.search(text):
        options.add(order[LETTERS.index(closing["bare"].upper())])
    return options.pop() if len(options) == 1 else None


def named(text: str) -> set[str]:
    """The options whose words stand in a text and are not negated."""
    return {mention.lastgroup for mention in MENTION.finditer(text)} - {None}  # None: negated


def score(benchmark: Benchmark, answers: Sequence[dict], *, seed: int, resamples: int) -> dict:
    """Rows of the answers and of the majority class, see docs/evaluation.md; answers are aligned with the items."""
    items = benchmark.items
    finding = np.array([FIVE.index(item.truth["finding"]) for item in items])
    truth = np.array([PROGRESSIONS.index(item.truth["progression"]) for item in items])
    read = [read_choice(answer["text"], item.truth["order"]) for item, answer in zip(items, answers, strict=True)]
    said = np.array([UNREAD if choice is None else PROGRESSIONS.index(choice) for choice in read])
    counts = np.zeros((len(FIVE), len(PROGRESSIONS)), int)
    np.add.at(counts, (finding, truth), 1)
    constant = counts.argmax(1)[finding]
    draw = {"patients": [item.patient for item in items], "seed": seed, "resamples": resamples}
    rows = [
        {"name": "student", "metrics": metrics(finding, truth, said, **draw)},
        {"name": MAJORITY, "baseline": True, "metrics": metrics(finding, truth, constant, **draw)},
    ]
    per_item = [
        {
            "id": item.id,
            "finding": item.truth["finding"],
            "truth": item.truth["progression"],
            "said": choice,
            "correct": {item.truth["finding"]: choice == item.truth["progression"]},
        }
        for item, choice in zip(items, read, strict=True)
    ]
    notes = []
    unread = int((said == UNREAD).sum())
    if unread:
        notes.append(f"{unread} of {len(items)} answers name no one option and count as wrong")
    for number, label in enumerate(FIVE):
        absent = [PROGRESSIONS[k] for k in range(len(PROGRESSIONS)) if not counts[number, k]]
        if absent:
            notes.append(
                f"{label}: no question with the label {' or '.join(absent)}, so its macro accuracy and the mean "
                "of five are not defined"
            )
    return {"rows": rows, "per_item": per_item, "notes": notes}


def metrics(
    finding: np.ndarray, truth: np.ndarray, said: np.ndarray, *, patients: Sequence[str], seed: int, resamples: int
) -> dict:
    """Macro accuracy, plain accuracy and shares of the answers; arrays are [questions], `said` has UNREAD for none."""
    classes = len(PROGRESSIONS)
    correct = truth == said
    cell = finding * classes + truth
    options = (*PROGRESSIONS, "no option")
    groups = (*FIVE, "mean of five")

    def numbers(counts: np.ndarray) -> dict[str, float]:
        totals = np.bincount(cell, counts, len(FIVE) * classes).reshape(len(FIVE), classes)
        hits = np.bincount(cell, counts * correct, len(FIVE) * classes).reshape(len(FIVE), classes)
        with np.errstate(invalid="ignore", divide="ignore"):
            macro = (hits / totals).mean(1)  # NaN where a class does not occur
            plain = hits.sum(1) / totals.sum(1)
        shares = np.bincount(said, counts, classes + 1) / counts.sum()
        out = {f"macro accuracy/{name}": value for name, value in zip(groups, [*macro, macro.mean()], strict=True)}
        out |= {f"accuracy/{name}": value for name, value in zip(groups, [*plain, plain.mean()], strict=True)}
        return out | {f"share of answers/{name}": value for name, value in zip(options, shares, strict=True)}

    n = dict(zip(FIVE, np.bincount(finding, minlength=len(FIVE)), strict=True))
    sizes = {f"{kind}/{label}": n[label] for kind in ("macro accuracy", "accuracy") for label in FIVE}
    return measure(numbers, patients, sizes, seed=seed, resamples=resamples)
