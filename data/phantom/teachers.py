"""Seven SIMULATED teachers. They carry the names of the models that the published data set used; they are not these
products, and their error rates say nothing about them.

A teacher is a sensitivity and a specificity by finding, a rate of wrong sides, a rate of refusals and a style
(styles.py). A world is a table of such teachers, plus how far errors grow along the text (`ramp`), how far teachers err
on the same films (`rho`) and whether these are the films that mislead (`looks`). Errors are sampled from the truth
through these numbers and nothing else.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from data.findings_lexicon import FIVE
from data.phantom import styles

TEACHERS = ("sonnet-4", "gpt-5-nano", "glm-4.5v", "gemini-2.5-flash-lite", "moonshot-v1", "qwen-vl-max", "grok-4")
OTHERS = ("Atelectasis", "Cardiomegaly", "Support Devices")
# Share of films with the finding (cohort.py samples with these).
PREVALENCE = {
    "Consolidation": 0.35,
    "Pleural Effusion": 0.42,
    "Pneumonia": 0.38,
    "Pneumothorax": 0.32,
    "Edema": 0.36,
    "Atelectasis": 0.20,
    "Cardiomegaly": 0.20,
    "Support Devices": 0.25,
}
OTHER_RATES = (0.80, 0.94)  # sensitivity and specificity for the findings outside the five, every teacher
SIDED = {"Consolidation", "Pleural Effusion", "Pneumonia", "Pneumothorax", "Atelectasis"}

# (sensitivity, specificity) in the order of FIVE:
# Consolidation, Pleural Effusion, Pneumonia, Pneumothorax, Edema.
BALANCED = {
    "sonnet-4": ((0.81, 0.83), (0.79, 0.81), (0.91, 0.30), (0.92, 0.28), (0.92, 0.30)),
    "gpt-5-nano": ((0.83, 0.85), (0.30, 0.89), (0.81, 0.83), (0.83, 0.87), (0.32, 0.89)),
    "glm-4.5v": ((0.91, 0.30), (0.83, 0.81), (0.28, 0.89), (0.81, 0.85), (0.81, 0.85)),
    "gemini-2.5-flash-lite": ((0.92, 0.28), (0.81, 0.81), (0.90, 0.34), (0.85, 0.87), (0.77, 0.81)),
    "moonshot-v1": ((0.25, 0.85), (0.90, 0.28), (0.75, 0.77), (0.77, 0.79), (0.25, 0.85)),
    "qwen-vl-max": ((0.77, 0.79), (0.92, 0.25), (0.25, 0.89), (0.81, 0.83), (0.81, 0.81)),
    "grok-4": ((0.79, 0.77), (0.28, 0.83), (0.77, 0.79), (0.25, 0.91), (0.91, 0.28)),
}
# Accuracy on MS-CXR-T printed in the paper's table, same order (columns of the table are named there).
PUBLISHED_ACCURACY = {
    "sonnet-4": (0.89, 0.69, 0.48, 0.15, 0.15),
    "gpt-5-nano": (0.75, 0.68, 0.89, 0.90, 0.52),
    "glm-4.5v": (0.59, 0.67, 0.52, 0.96, 0.72),
    "gemini-2.5-flash-lite": (0.28, 0.61, 0.40, 0.94, 0.42),
    "moonshot-v1": (0.13, 0.46, 0.77, 0.88, 0.19),
    "qwen-vl-max": (0.54, 0.65, 0.40, 0.95, 0.64),
    "grok-4": (0.43, 0.41, 0.36, 0.97, 0.61),
}
# Whether a teacher errs by saying yes (+1) or no (-1) too often. The paper prints no such split: it is ours, chosen so
# that a label-free consensus can find the truth. With no tilt at all ("published_even") most votes on edema are wrong
# and Dawid-Skene settles on the opposite of the truth.
TILT = {
    "sonnet-4": 0.8,
    "gpt-5-nano": 0.8,
    "glm-4.5v": -0.3,
    "gemini-2.5-flash-lite": 0.9,
    "moonshot-v1": -0.6,
    "qwen-vl-max": 0.6,
    "grok-4": -0.6,
}
# (share of wrong sides among sided findings that are there, share of refusals)
MANNERS = {
    "sonnet-4": (0.12, 0.00),
    "gpt-5-nano": (0.08, 0.01),
    "glm-4.5v": (0.15, 0.00),
    "gemini-2.5-flash-lite": (0.20, 0.00),
    "moonshot-v1": (0.30, 0.10),
    "qwen-vl-max": (0.18, 0.01),
    "grok-4": (0.25, 0.00),
}

# How often a film misleads on a finding (see `misleads`), measured on 40,000 films of cohort.py: the share of the films
# with it on which it is small; finding -> its look-alike and the share of the films without it that have that. Devices
# for pneumothorax: real models are known to tell it by the tube.
SMALL = 0.345
LOOK_ALIKES = {
    "Consolidation": ("Pneumonia", 0.359),
    "Pleural Effusion": ("Atelectasis", 0.197),
    "Pneumonia": ("Consolidation", 0.332),
    "Pneumothorax": ("Support Devices", 0.251),
    "Edema": ("Cardiomegaly", 0.132),
}


def split_accuracy(accuracy, prevalence, tilt):
    """(sensitivity, specificity) with prevalence * sens + (1 - prevalence) * spec = accuracy.

    `tilt` in [-1, 1] goes that share of the way to the most yes-saying (or no-saying) pair within [0.02, 0.98].
    """
    p, low, high = prevalence, 0.02, 0.98
    # sens = accuracy + (1 - p) * gap and spec = accuracy - p * gap keep the accuracy for every gap.
    up = min((high - accuracy) / (1 - p), (accuracy - low) / p)
    down = min((accuracy - low) / (1 - p), (high - accuracy) / p)
    gap = tilt * (up if tilt > 0 else down)
    return accuracy + (1 - p) * gap, accuracy - p * gap


def published_rates(tilt):
    """Sensitivity and specificity of every teacher at the published accuracies; `tilt`: {teacher: -1 to 1}."""
    pairs = {}
    for name, row in PUBLISHED_ACCURACY.items():
        cells = zip(FIVE, row, strict=True)
        pairs[name] = tuple(split_accuracy(value, PREVALENCE[label], tilt[name]) for label, value in cells)
    return pairs


class World(NamedTuple):
    """`rates`: {teacher: ((sensitivity, specificity) for each of FIVE)}; `ramp`: the k-th of the five statements errs
    1 - ramp to 1 + ramp times as often as the table says; `rho`: correlation of errors between teachers; `looks`: what
    they have in common is how the film looks, and not chance; `refusals`: {teacher: share} where it differs from
    MANNERS."""

    rates: dict
    ramp: float = 0.25
    rho: float = 0.0
    looks: bool = False
    refusals: dict = {}


def _milder(rates, share):
    # Nearer to perfect, so that the last statement of a steep ramp does not exceed an error rate of 1.
    return {name: tuple((1 - share * (1 - a), 1 - share * (1 - b)) for a, b in row) for name, row in rates.items()}


WORLDS = {
    "balanced": World(BALANCED),
    "published": World(published_rates(TILT), ramp=0.0),
    "published_even": World(published_rates(dict.fromkeys(TEACHERS, 0.0)), ramp=0.0),
    "correlated": World(BALANCED, rho=0.6),
    "looks": World(BALANCED, rho=0.6, looks=True),
    "drift": World(_milder(BALANCED, 0.7), ramp=0.9),
    "refusing": World(BALANCED, refusals={"moonshot-v1": 0.35}),
}


class Statement(NamedTuple):
    """One claim of a teacher: what data.findings would read from its text, plus the severity."""

    label: str
    state: str
    side: str | None
    severity: str | None


class Answer(NamedTuple):
    """Claims in the order told (none when refused), text and status of one trajectory."""

    claims: list
    text: str
    status: str


def answers(study_id, findings, *, seed, world):
    """All seven teachers' Answers to one film, {teacher: Answer}.

    They depend on `seed`, `study_id`, `findings` (truth as in the study record) and `world` only: whoever has the
    study record can sample them again.
    """
    key = [seed, *study_id.encode()]
    shared = np.random.default_rng([*key, 0]).standard_normal(len(FIVE))
    difficulty = dict(zip(FIVE, shared.tolist(), strict=True))
    if WORLDS[world].looks:
        difficulty = {label: by_looks(label, findings, number) for label, number in difficulty.items()}
    result = {}
    for number, name in enumerate(TEACHERS, 1):
        rng = np.random.default_rng([*key, number])
        result[name] = simulate(findings, name, world, rng, difficulty)
    return result


def misleads(findings, label):
    """Whether a film of the true `findings` looks as if `label`, one of FIVE, were not there or there, against the
    truth: it is there and small, or it is not and its look-alike is."""
    if _there(findings, label):
        return findings[label].get("severity") == "small"
    return _there(findings, LOOK_ALIKES[label][0])


def _there(findings, label):
    return (findings.get(label) or {}).get("state") == "present"


def by_looks(label, findings, number):
    """A standard normal `number` moved to where the film's looks put it, still standard normal over films.

    The films that mislead on `label` share the lowest values, all others the rest.
    """
    share = SMALL if _there(findings, label) else LOOK_ALIKES[label][1]
    normal = NormalDist()
    place = normal.cdf(number)
    place = place * share if misleads(findings, label) else share + place * (1.0 - share)
    return normal.inv_cdf(min(max(place, 1e-12), 1.0 - 1e-12))


def simulate(findings, teacher, world, rng, difficulty=None):
    """One teacher's Answer to a film with the true `findings`.

    `difficulty` is a standard normal number by finding that all teachers of the film share: with rho > 0 a low one
    makes each of them likelier to err there, while every teacher's own rates stay those of the table.
    """
    table = WORLDS[world]
    wrong_side, refuses = MANNERS[teacher]
    if rng.random() < table.refusals.get(teacher, refuses):
        return Answer([], styles.refusal(rng), "refused")
    # Each teacher tells the five in its own cyclic order, from any start: every finding takes each place equally often,
    # so that the ramp leaves the rates of the table as they are.
    number = TEACHERS.index(teacher)
    stride, start = (1, 2, 3, 4)[number % 4], int(rng.integers(len(FIVE)))
    order = [(start + stride * k) % len(FIVE) for k in range(len(FIVE))]
    claims = []
    for place, index in enumerate(order):
        label = FIVE[index]
        growth = 1.0 + table.ramp * (2.0 * place / (len(FIVE) - 1) - 1.0)
        common = (difficulty or {}).get(label, 0.0)
        luck = math.sqrt(table.rho) * common + math.sqrt(1.0 - table.rho) * rng.standard_normal()
        rates = table.rates[teacher][index]
        claims.append(_claim(label, findings, rates, growth, wrong_side, luck, rng))
    for label in OTHERS:
        claim = _claim(label, findings, OTHER_RATES, 1.0, wrong_side, rng.standard_normal(), rng)
        if claim.state == "present":
            claims.append(claim)
    return Answer(claims, styles.teacher_text(claims, teacher, rng), "ok")


def _claim(label, findings, rates, growth, wrong_side, luck, rng):
    truth = findings.get(label) or {}
    there = _there(findings, label)
    error = (1.0 - rates[0] if there else 1.0 - rates[1]) * growth
    says = there ^ (0.5 * math.erfc(-luck / math.sqrt(2.0)) < error)
    # Drawn whether needed or not: one claim then never shifts the random numbers of the next.
    turn, wrong, step = rng.random(), rng.random(), rng.random()
    if not says:
        return Statement(label, "absent", None, None)
    grades = ("small", "moderate", "large")
    side = "bilateral" if label == "Edema" else None
    severity = None if label == "Support Devices" else grades[int(step * 2)]
    if label in SIDED:
        side = ("left", "right")[int(turn * 2)]
        if there:
            side = truth["side"]
            if wrong < wrong_side * growth:
                side = {"left": "right", "right": "left"}.get(
                    side, side if side is None else ("left", "right")[turn < 0.5]
                )
    if there and severity is not None and truth.get("severity"):
        severity = grades[min(2, max(0, grades.index(truth["severity"]) + (step > 0.85) - (step < 0.12)))]
    return Statement(label, "present", side, severity)


def measure(studies, *, seed, world):
    """Realised rates, without reading any text: {teacher: {label: {"n", "accuracy", "sensitivity", "specificity"}}}.

    `studies` are study records with `findings`; refused trajectories are left out of n. A rate without any film is nan.
    """
    counts = {name: {label: np.zeros((2, 2), dtype=int) for label in FIVE} for name in TEACHERS}
    for study in studies:
        for name, answer in answers(study["id"], study["findings"], seed=seed, world=world).items():
            for claim in answer.claims:
                if claim.label in FIVE:
                    there = study["findings"][claim.label]["state"] == "present"
                    counts[name][claim.label][int(there), int(claim.state == "present")] += 1
    return {name: {label: _rates(table) for label, table in row.items()} for name, row in counts.items()}


def _rates(table):
    (tn, fp), (fn, tp) = table.tolist()
    n = tn + fp + fn + tp

    def share(part, whole):
        return part / whole if whole else math.nan

    return {
        "n": n,
        "accuracy": share(tn + tp, n),
        "sensitivity": share(tp, tp + fn),
        "specificity": share(tn, tn + fp),
    }
