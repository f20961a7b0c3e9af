"""The mentions of findings in one clause, and the state of each: present, absent, uncertain, or no claim.

Negation and hedging are read by trigger and scope in the manner of NegEx (Chapman et al. 2001, J Biomed Inform 34:301).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from data import findings_lexicon as lex


def _rules(rows: list[tuple[str, str]]) -> tuple[list[re.Pattern], list[tuple[str, int]]]:
    """Compile (needles, pattern) rows: the patterns, and every needle with the bits of the rules it wakes."""
    wakes: dict[str, int] = {}
    for i, (needles, _) in enumerate(rows):
        for needle in needles.split("|"):
            wakes[needle] = wakes.get(needle, 0) | 1 << i
    return [re.compile(pattern) for _, pattern in rows], list(wakes.items())


_LEXICON = _rules([(e[3], rf"(?<![a-z])(?:{e[4]})(?![a-z])") for e in lex.LEXICON])
_TRIGGERS = _rules([(needles, pattern) for _, needles, pattern in lex.TRIGGERS])
CLAUSE, _VERB = re.compile(lex.CLAUSE), re.compile(lex.VERB)
_OPENER, _BREAK_WITH = re.compile(lex.OPENER), re.compile(lex.BREAK_WITH)
_TOLD = r"(?:seen|noted|present|identified|described)"
_EARLIER = re.compile(rf"^ (?:{_TOLD} (?:earlier|previously|before|on the prior\b)|(?:earlier|previously) {_TOLD})")
_IN_GENERAL = re.compile(r"\W*in (?:acute |a case of )?")  # "in edema the vessels ...": of edema, not of this film
# Said of a finding, with what it may be: "no opacity suspicious for pneumonia" denies both.
_DESCRIBES = re.compile(r"(?: that| which)?(?: is| are| would be)? (?:concerning|suspicious|worrisome)(?: for| of)?")


class Mention(NamedTuple):
    """A phrase of the lexicon at text[start:end]; the rest is what its entry in data/findings_lexicon.py says."""

    start: int
    end: int
    labels: tuple[str, ...]  # () for a look-alike
    polarity: int
    is_name: bool


def _matches(rules: tuple[list[re.Pattern], list[tuple[str, int]]], text: str) -> list[tuple[int, int, int]]:
    """(start, end, rule) left to right without overlap, as one alternation of all rules would find them."""
    patterns, wakes = rules
    awake = 0
    for needle, bits in wakes:
        if needle in text:
            awake |= bits
    hits = []
    while awake:
        i = (awake & -awake).bit_length() - 1
        awake &= awake - 1
        hits += [(m.start(), i, m.end()) for m in patterns[i].finditer(text)]
    hits.sort()
    out, at = [], 0
    for start, i, end in hits:
        if start >= at:
            out.append((start, end, i))
            at = end
    return out


def find_mentions(text: str) -> list[Mention]:
    """The mentions in a normalised text from left to right, look-alikes included; none overlap."""
    return [Mention(start, end, *lex.LEXICON[i][:3]) for start, end, i in _matches(_LEXICON, text)]


def _reaches(gap: str, finding: str, chunk_tail: str, rest: str) -> bool:
    """Whether a negation or hedge before `gap` still governs the finding after it.

    gap: from the trigger to the finding, which may bring its own adjective ("bibasilar atelectasis"); chunk_tail: from
    the finding to the next comma; rest: all that follows in the clause. A list goes on over commas ("no pneumothorax,
    effusion or edema") until a verb, or until an item that opens like a new statement ("no pneumothorax, small left
    effusion") unless an "or" closes the list.
    """
    if _VERB.search(gap) or _BREAK_WITH.search(gap):
        return False
    cut = max(gap.rfind(","), gap.rfind(" and "), gap.rfind(" - "), gap.rfind(":"))
    if cut < 0:
        return True
    item = gap[cut:].lstrip(", -:").removeprefix("and ")
    if re.match(r"(?:or|nor)\b", item):
        return True
    closes = re.search(r"\b(?:or|nor)\b", item + " " + rest)
    if closes:
        return True
    return not (_OPENER.match(item + finding) or _VERB.search(chunk_tail))


def _backward(gap: str) -> bool:
    """Whether a trigger after `gap` still governs the finding before it ("effusion or edema is not seen")."""
    gap = _EARLIER.sub("", gap, count=1)
    if _VERB.search(gap) or CLAUSE.search(gap):
        return False
    return "," not in gap or re.search(r"\b(?:or|and|nor)\b", gap) is not None


def states_of(clause: str, mentions: list[Mention]) -> list[str | None]:
    """State of every mention of one clause; None: not a claim (history, recommendation)."""
    triggers = [
        (lex.TRIGGERS[i][0], start, end)
        for start, end, i in _matches(_TRIGGERS, clause)
        if not any(m.start <= start and end <= m.end for m in mentions)
    ]
    if mentions and _IN_GENERAL.fullmatch(clause, 0, mentions[0].start):
        return [None] * len(mentions)
    if not triggers and " or " not in clause:
        return ["present"] * len(mentions)
    states: list[str | None] = []
    for k, m in enumerate(mentions):
        comma = clause.find(",", m.end)
        chunk_tail = clause[m.end : comma if comma >= 0 else len(clause)]
        # A hedge or negation right of the mention, else the nearest one left of it that reaches.
        state = "present"
        if any(kind == "drop" and end <= m.start for kind, _, end in triggers):
            states.append(None)
            continue
        for kind, start, end in reversed(triggers):
            if end <= m.start and kind in ("neg_pre", "hedge_pre", "hedge_both"):
                gap = clause[end : m.start]
                if _reaches(gap, clause[m.start : m.end], chunk_tail, clause[m.end :]):
                    state = "absent" if kind == "neg_pre" else "uncertain"
                    if state == "uncertain" and (
                        any(k2 == "neg_pre" and e2 <= start and not clause[e2:start].strip() for k2, _, e2 in triggers)
                        or any(
                            states[j] == "absent" and _DESCRIBES.fullmatch(clause, mentions[j].end, end)
                            for j in range(k)
                        )
                    ):
                        state = "absent"  # "no suspicious nodule", "no opacity suspicious for pneumonia"
                    break
        for kind, start, end in triggers:
            if start < m.end:
                continue
            gap = clause[m.end : start]
            last = k + 1 == len(mentions) or mentions[k + 1].start >= end
            if kind in ("neg_post", "hedge_post", "hedge_both", "drop_post") and _backward(gap):
                state = {"neg_post": "absent", "drop_post": None}.get(kind, "uncertain")
                break
            # "effusion, likely on the left": a forward word with no finding after it looks back, if it is this one's.
            if kind == "hedge_pre" and last and k + 1 == len(mentions) and "," not in gap and not _VERB.search(gap):
                if state == "present" and re.match(
                    r"[\s(:-]*(?:$|[,.;)]|left|right|the|in|at|an?\b|small|tiny|trace|mild|bi)", clause[end:]
                ):
                    state = "uncertain"
                break
        states.append(state)
    for k in range(len(mentions) - 1):  # "atelectasis or pneumonia": either, so neither is asserted
        between = clause[mentions[k].end : mentions[k + 1].start]
        either = re.fullmatch(r"(?: or |\W*vs\W*)(?:[a-z]+ )?", between)
        if either and states[k] == states[k + 1] == "present" and mentions[k].labels != mentions[k + 1].labels:
            states[k] = states[k + 1] = "uncertain"
    return states
