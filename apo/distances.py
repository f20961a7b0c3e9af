"""How far two texts are apart, by what they claim and by their words."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

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


def lcs_length(masks: dict[str, int], length: int, other: Sequence[str]) -> int:
    """Longest common subsequence of a text (as `positions` of it, and its length) with another, bit-parallel.

    Hyyro 2004, "Bit-parallel LCS-length computation revisited": one addition of `length`-bit numbers a token.
    """
    full = (1 << length) - 1
    v = full
    for word in other:
        u = v & masks.get(word, 0)
        v = ((v + u) | (v - u)) & full
    return length - v.bit_count()


def positions(tokens: Sequence[str]) -> dict[str, int]:
    """For every token the bits of its places."""
    masks: dict[str, int] = {}
    for i, word in enumerate(tokens):
        masks[word] = masks.get(word, 0) | 1 << i
    return masks


class Tokens(NamedTuple):
    """A text made ready for comparing."""

    tokens: list[str]
    counts: Counter
    masks: dict[str, int]  # see `positions`


def tokens_of(text: str) -> Tokens:
    tokens = words(text)
    return Tokens(tokens, Counter(tokens), positions(tokens))


def text_measures(a: Tokens, b: Tokens) -> tuple[float, float, float]:
    """(precision, recall, similarity) of text `a` against the reference `b`; 0 where one is empty.

    Shares of tokens, each counted as often as it is in both texts, and ROUGE-L F1.
    """
    n, m = len(a.tokens), len(b.tokens)
    if not n or not m:
        return 0.0, 0.0, 0.0
    shared = sum(min(k, b.counts.get(word, 0)) for word, k in a.counts.items())
    return shared / n, shared / m, 2.0 * lcs_length(a.masks, n, b.tokens) / (n + m)
