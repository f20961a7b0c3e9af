"""One normalised sentence -> its claims (label, state, side): those it makes itself, and those under a heading.

General knowledge ("effusion refers to ...") is no claim; a side that only names the side compared with is no side.
"""

from __future__ import annotations

import re
from functools import lru_cache

from data import findings_lexicon as lex
from data.findings_lexicon import SIDELESS
from data.findings_sides import NOT_A_SIDE, SHIFT, blank, side_in, side_windows
from data.findings_states import CLAUSE, find_mentions, states_of

_TEXTBOOK = re.compile(lex.TEXTBOOK)
_DECLINES = re.compile(lex.DECLINES)
_DECLINES_UNTIL = re.compile(lex.DECLINES_UNTIL)
_EVIDENCE = re.compile(lex.EVIDENCE)
_BLOCK_NEGATIVE = re.compile(lex.BLOCK_NEGATIVE)
_HIDDEN = re.compile(lex.HIDDEN)
_QUESTION = re.compile(lex.QUESTION)
_NOT_NORMAL = re.compile(lex.NOT_NORMAL)
_NORMAL_SIGNS = {label: re.compile(pattern) for label, pattern in lex.NORMAL_SIGNS.items()}


@lru_cache(maxsize=1 << 16)
def read_sentence(sentence: str) -> tuple[tuple[str, str, str | None], ...] | None:
    """(label, state, side) of every claim in one normalised sentence; None if it is general knowledge or asks."""
    if _TEXTBOOK.search(sentence) or _QUESTION.fullmatch(sentence):
        return None
    claims: list[tuple[str, str, str | None]] = []
    masked = blank(NOT_A_SIDE, sentence)
    edges = [0, *(e for m in CLAUSE.finditer(sentence) for e in (m.start(), m.end())), len(sentence)]
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        clause = sentence[start:end]
        start_declined, end_declined = _declined(clause)
        mentions = [m for m in find_mentions(clause) if m.labels and not start_declined <= m.start < end_declined]
        if not mentions:
            continue
        sides = side_windows(masked[start:end], mentions)
        for m, state, side in zip(mentions, states_of(clause, mentions), sides, strict=True):
            if clause[m.end : m.end + 1] == ":" and any(o.labels == m.labels and o.start > m.end for o in mentions):
                continue  # "Pneumonia: no features of pneumonia", a title within the sentence
            labels, polarity = m.labels, m.polarity
            if state is None:
                continue
            if polarity == 0:
                state = "uncertain"
            elif polarity < 0:
                if labels == ("No Finding",) and re.search(
                    r"\b(?:other|additional|further)\b", clause[max(0, m.start - 25) : m.end]
                ):
                    continue  # "no other abnormality" says nothing of the film as a whole
                state = {"present": "absent", "absent": "present"}.get(state, state)
            claims += [(label, state, None if label in SIDELESS else side) for label in labels]
    return tuple(dict.fromkeys(claims))


def _declined(clause: str) -> tuple[int, int]:
    """Where a clause names what its writer declines to look for; (0, 0) where it does not."""
    declines = _DECLINES.search(clause)
    if not declines:
        return 0, 0
    until = _DECLINES_UNTIL.search(clause, declines.end())
    return declines.start(), until.start() if until else len(clause)


def asked_for(sentence: str) -> tuple[str, ...]:
    """The labels that a question without its answer names."""
    if not _QUESTION.fullmatch(sentence):
        return ()
    return tuple(dict.fromkeys(label for m in find_mentions(sentence) if m.polarity > 0 for label in m.labels))


def inherited(sentence: str, labels: tuple[str, ...]) -> list[tuple[str, str, str | None]]:
    """Claims of a sentence that does not itself name a finding, under a heading that names `labels`."""
    if re.search(
        r"\b(?:recommend|correlat|follow-?up|differential|consider|not (?:assessed|evaluated)|summary|overall|compare)",
        sentence,
    ):
        return []
    stated = _block_state(sentence) if _EVIDENCE.search(sentence) else None
    normal = stated in ("present", None) and not _NOT_NORMAL.search(sentence)
    out = []
    for label in labels:
        sign = _NORMAL_SIGNS.get(label) if normal else None
        state = "absent" if sign and sign.search(sentence) else stated
        if state is None:
            continue
        text = blank(NOT_A_SIDE, sentence)
        side = side_in(text if label == "Atelectasis" else blank(SHIFT, text))
        out.append((label, state, None if label in SIDELESS else side))
    return out


def _block_state(sentence: str) -> str:
    """What a sentence says of the heading above it, whichever that is."""
    if re.search(r"\b(?:can ?not|not|could not) be (?:entirely |completely |fully )?(?:excluded|ruled out)", sentence):
        return "uncertain"
    if _BLOCK_NEGATIVE.search(sentence) and not _HIDDEN.search(sentence):
        return "absent"
    if re.match(
        r"\W*(?:possible|possibly|likely|probable|suspected|questionable|uncertain|equivocal|cannot)\b", sentence
    ) or re.search(
        r"\b(?:may|might|could|possibl\w+|cannot be excluded|uncertain|equivocal|(?:is|are) (?:likely|probable))\b",
        sentence,
    ):
        return "uncertain"
    return "present"
