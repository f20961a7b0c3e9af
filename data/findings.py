"""Reads findings out of chest X-ray text: text -> claims (label, state, side, span).

    from data.findings import read_findings, summarise
    summarise(read_findings("Small left effusion. No pneumothorax."))
    # {"Pleural Effusion": ("present", "left"), "Pneumothorax": ("absent", None)}

    python -m data.findings --text "No effusion."    # what is read, one claim a line
    python -m data.findings_score                    # precision, recall and F1 by label

Compiled regular expressions over normalised sentences, offline and deterministic: labels and term scope after the
CheXpert labeler (findings_lexicon.py), negation and hedging (findings_states.py), sides (findings_sides.py), plus what
Markdown-writing models need (lines in findings_lines.py, blocks here): a heading's label is inherited by the bullets
under it. A kept library was tried: negspacy 1.1 on spaCy 3.8 (blank pipeline, entity ruler with the five findings'
names) does negation only, without hedging, sides or headings, and reads the five with F1 .62 on sentences.tsv and .75
on sentences_unseen.tsv, against 1.00 and .98 here at the same speed (400-500 texts of 800 characters a second on one
core, sentences seen before several times faster); medspacy would take numpy below what the training stack needs.

Conventions that a reader of the numbers must know:
- "likely", "may", "possible", "cannot be excluded", "versus" -> uncertain; "suggesting", "consistent with" -> present;
  "unlikely", "resolved", "no longer seen" -> absent.
- "Lungs are clear" denies Lung Opacity and Consolidation; "no acute cardiopulmonary abnormality" is No Finding; a
  normal cardiomediastinal silhouette denies both heart and mediastinum. Nothing else is concluded from a normal phrase.
- History, indication, technique and recommendation are not read.
"""

from __future__ import annotations

import argparse
import re
from typing import NamedTuple

from data import findings_lexicon as lex
from data.findings_lexicon import LABELS, OPAQUE, SIDELESS, WEAK
from data.findings_lines import Line, heading_labels, lines_of
from data.findings_sentence import asked_for, inherited, read_sentence
from data.findings_sides import NOT_A_SIDE, blank, side_in
from data.findings_text import normalise, split_sentences

_REFUSAL = [(needles.split("|"), re.compile(pattern)) for needles, pattern in lex.REFUSAL]


class Claim(NamedTuple):
    """One mention: text[start:end] is the sentence (or bullet) that says it. side None: none was stated."""

    label: str
    state: str  # present | absent | uncertain
    side: str | None  # left | right | bilateral | None
    start: int
    end: int


class _Block(NamedTuple):
    """A heading whose label its lines inherit."""

    labels: tuple[str, ...]
    side: str | None
    indent: int  # -1: until the next heading; else only lines indented deeper
    numbered: int  # indentation of its own number, whose next one ends it; -1: it has none
    first: int  # index of the first claim after it
    start: int
    end: int


def _close(block: _Block | None, claims: list[Claim], said: bool) -> None:
    """At the end of a block: the heading's own claim if nothing stands under it, and its side for claims without one.

    "**Pleural Effusion (Left):** Present, large. No right effusion.": the denial says nothing of the side of what is
    present, so only a side in a claim of the same state keeps the heading's away.
    """
    if block is None:
        return
    for label in block.labels:
        own = [i for i in range(block.first, len(claims)) if claims[i].label == label]
        side = None if label in SIDELESS else block.side
        if not own and not said:
            claims.append(Claim(label, "present", side, block.start, block.end))
        sided = {claims[i].state for i in own if claims[i].side} | {"absent"}
        for i in own if side else ():
            if claims[i].state not in sided:
                claims[i] = claims[i]._replace(side=side)


def _ends(block: _Block, line: Line, after_a_gap: bool) -> bool:
    """Whether a line is not under the heading any more. after_a_gap: a blank line before it, and something was said."""
    inside = block.indent < 0 or line.indent > block.indent
    return (
        bool(line.labels)
        or 0 <= line.numbered <= block.numbered
        or (line.generic and not (line.bullet and block.indent < 0))
        or not inside
        or (after_a_gap and not line.bullet)
    )


def _opened(line: Line, first: int) -> _Block:
    """The block of a line that names labels."""
    one_line = line.rest or (line.bullet and line.numbered < 0)
    side = side_in(blank(NOT_A_SIDE, line.title))
    return _Block(line.labels, side, line.indent if one_line else -1, line.numbered, first, line.start, line.end)


def _read_body(line: Line, block: _Block | None, claims: list[Claim]) -> bool:
    """Add what the line's sentences claim, in a block also what they inherit; whether there is any sentence."""
    spoke = False
    asked: tuple[str, ...] = ()
    for a, b in split_sentences(line.body):
        spoke = True
        sentence = re.sub(r"\s+", " ", line.body[a:b])
        own, answers = read_sentence(sentence), asked
        asked = asked_for(sentence) if own is None else ()
        if own is None:
            continue
        found = list(own)
        if answers and not own:
            found = inherited(sentence, answers)
        if line.crossed and found:
            found = [(label, "absent", None) for label, _, _ in found]
        if block is not None and not any(label not in WEAK or label in block.labels for label, _, _ in own):
            denied = {c.label for c in claims[block.first :] if c.state == "absent"}
            under = inherited(sentence, block.labels)
            if own and all(state == "absent" for _, state, _ in own):  # "Pneumonia: the lungs show no infiltrate"
                under = [(c[0], "absent", c[2]) if c[0] in OPAQUE else c for c in under]
            found += [c for c in under if c[1] == "absent" or c[0] not in denied]
        elif line.labels and a == 0 and not any(label in line.labels for label, _, _ in own):
            # "Pneumothorax: none; edema: mild": the title belongs to the sentence.
            found = list(read_sentence(re.sub(r"\s+", " ", line.content[: line.body_at + b])) or found)
        start = line.start + (line.body_at + a if not line.labels or a else 0)
        claims += [Claim(label, state, side, start, line.start + line.body_at + b) for label, state, side in found]
    return spoke


def read_findings(text: str) -> list[Claim]:
    """All claims of a text, in reading order.

    Returns: list of Claim; start and end are character offsets into `text` (of the sentence or bullet that makes the
    claim). Empty for empty, refusing or purely general text. Never raises for a str.
    """
    claims: list[Claim] = []
    block: _Block | None = None
    said = False  # whether anything stands under the block's heading
    ignoring = blank_before = denying = False
    for line in lines_of(text):
        if line is None:
            blank_before = True
            continue
        if denying and (line.bold or (line.titled and not line.rest) or (blank_before and not line.bullet)):
            denying = False
        if denying or line.denies:  # "Absent: edema, pneumonia", or the names as a list below
            names = heading_labels((line.rest if line.denies else line.content).strip(" .,;"))
            if names:
                claims += [Claim(label, "absent", None, line.start, line.end) for label in names]
                continue
            denying = denying or not line.rest
        if line.ignored:
            _close(block, claims, said)
            block, ignoring = None, not line.bullet or not line.rest
            blank_before = False
            continue
        if line.labels or line.generic:
            ignoring = False
        if ignoring:
            continue
        if block is not None and _ends(block, line, blank_before and said):
            _close(block, claims, said)
            block = None
        blank_before = False
        if line.labels:
            if line.crossed and not line.rest:
                claims += [Claim(label, "absent", None, line.start, line.end) for label in line.labels]
                block, said = None, False
                continue
            block, said = _opened(line, len(claims)), bool(line.rest)
            if not said:
                continue
        said = _read_body(line, block, claims) or said
    _close(block, claims, said)
    return claims


def summarise(claims: list[Claim]) -> dict[str, tuple[str, str | None]]:
    """One (state, side) a label.

    The strongest state wins (present, then uncertain, then absent: an "absent" beside a "present" is usually about the
    other side). The side comes from the claims of that state: bilateral if any says so or left and right are both
    claimed; always None for absent. Labels that are not mentioned are not in the result.
    """
    out: dict[str, tuple[str, str | None]] = {}
    for label in LABELS:
        mine = [c for c in claims if c.label == label]
        if not mine:
            continue
        state = next(s for s in ("present", "uncertain", "absent") if any(c.state == s for c in mine))
        sides = {c.side for c in mine if c.state == state and c.side}
        side = None if state == "absent" or not sides else ("bilateral" if len(sides) > 1 else sides.pop())
        out[label] = (state, side)
    return out


def is_refusal(text: str) -> bool:
    """Whether the text declines to read the film: says so, and makes no claim of its own beyond general knowledge.

    A disclaimer in front of real findings is not a refusal. Empty text is not one either (its status is "empty").
    """
    plain = normalise(text)
    declines = any(cue.search(plain) for needles, cue in _REFUSAL if any(one in plain for one in needles))
    return declines and not read_findings(text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.findings", description="Read findings out of report text.")
    parser.add_argument("--text", required=True, help="print what is read in this text, one claim a line")
    args = parser.parse_args(argv)
    for c in read_findings(args.text):
        print(f"{c.label}\t{c.state}\t{c.side or '-'}\t{args.text[c.start : c.end]!r}")


if __name__ == "__main__":
    from data.errors import run_cli

    run_cli(main)
