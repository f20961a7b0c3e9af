"""How far two texts are apart, by what they claim and by their words."""

import re
from collections import Counter

from apo.heard import Decision


def claim_distance(a: dict[str, Decision], b: dict[str, Decision]) -> float:
    """How far two readings are apart, summed over the labels; symmetric, 0 for equal readings.

    Present is 1, uncertain 1/2, absent and silence 0 (silence counts as in the votes), and two states are as far apart
    as these numbers. Where both are present, or both uncertain, the sides are compared: left against right 1 (1/2 if
    uncertain), bilateral or no side against one side half of that, so that a vague text is not close to everybody. "No
    Finding" is left out: it follows from the others and would keep a terse "normal" from a list of denials.
    """
    weight = {"present": 1.0, "uncertain": 0.5, "absent": 0.0}
    total = 0.0
    for label in {*a, *b} - {"No Finding"}:
        (state, side), (other, other_side) = a.get(label, ("absent", None)), b.get(label, ("absent", None))
        total += abs(weight[state] - weight[other])
        if state == other and side != other_side:
            total += weight[state] * (1.0 if {side, other_side} == {"left", "right"} else 0.5)
    return total


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a text, without punctuation and Markdown."""
    return re.findall(r"[^\W_]+", text.lower())


def token_overlap(a: Counter, b: Counter) -> float:
    """Dice coefficient of two bags of words, 2 |a & b| / (|a| + |b|): the F1 of unigram precision and recall."""
    size = a.total() + b.total()
    return 2.0 * (a & b).total() / size if size else 0.0
