"""Reads findings out of chest X-ray text: text -> claims (label, state, side, span).

    from data.findings import read_findings, summarise
    summarise(read_findings("Small left effusion. No pneumothorax."))
    # {"Pleural Effusion": ("present", "left"), "Pneumothorax": ("absent", None)}

    python -m data.findings --text "No effusion."    # what is read, one claim a line
    python -m data.findings_score                    # precision, recall and F1 by label

Compiled regular expressions over normalised sentences, offline and deterministic: labels and term scope after the
CheXpert labeler (findings_lexicon.py), negation and hedging (findings_states.py), sides (findings_sides.py), plus what
Markdown-writing models need, which is here: a heading's label is inherited by the bullets under it. A kept library was
tried: negspacy 1.1 on spaCy 3.8 (blank pipeline, entity ruler with the five findings' names) does negation only,
without hedging, sides or headings, and reads the five with F1 .62 on sentences.tsv and .75 on sentences_unseen.tsv,
against 1.00 and .98 here at the same speed (400-500 texts of 800 characters a second on one core, sentences seen before
several times faster); medspacy would take numpy below what the training stack needs.

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
from data.findings_lexicon import LABELS, SIDELESS, WEAK
from data.findings_sentence import inherited, read_sentence
from data.findings_sides import NOT_A_SIDE, blank, side_in
from data.findings_states import find_mentions, states_of
from data.findings_text import normalise, split_sentences

_REFUSAL = re.compile(lex.REFUSAL)
_SECTION_BREAK = re.compile(lex.SECTION_BREAK)
_FILLER = re.compile(lex.HEADING_FILLER)
_IGNORED = re.compile(rf"^(?:{lex.IGNORED_SECTIONS})\s*:")
_DENYING = re.compile(lex.DENYING)
_VERDICT = re.compile(lex.VERDICT)
_SOFT_WRAP = re.compile(r"(?<![.:;!?\n…|])\n(?=[ \t]*[a-z(])")
_MARKER = re.compile(r"^(\s*)((?:[-*+•‣◦·▪–—>]|\d{1,2}[.)]|\(?[a-z][.)]|#{1,6}|[✔✓✅☑❌✗✘❎️]+)\s+)+")
_BOLD_LINE = re.compile(r"^\s*(?:[-*+•]\s+)?(?:#{1,6}\s.*|\*\*[^*]+\*\*:?|__[^_]+__:?)\s*$")
_NUMBERED = re.compile(r"^\W*\d{1,2}[.)]\s")
_TITLE = re.compile(r"([^:.;]{1,80}?)\s*:(?!\d)\s*")


class Claim(NamedTuple):
    """One mention: text[start:end] is the sentence (or bullet) that says it. side None: none was stated."""

    label: str
    state: str  # present | absent | uncertain
    side: str | None  # left | right | bilateral | None
    start: int
    end: int


def _heading_labels(title: str) -> tuple[str, ...]:
    """The labels that a heading names, () if it is a sentence, denies or doubts ("1. No edema"), or names none."""
    names, rest, at = [], [], 0
    mentions = find_mentions(title)
    for m in mentions:
        if not m.is_name:
            return ()
        names += m.labels
        rest.append(title[at : m.start])
        at = m.end
    if not names or "No Finding" in names or _FILLER.sub("", " ".join([*rest, title[at:]])).strip():
        return ()
    if set(states_of(re.sub(r"\bor\b", "/ ", title), mentions)) != {"present"}:
        return ()
    return tuple(dict.fromkeys(names))


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


def read_findings(text: str) -> list[Claim]:
    """All claims of a text, in reading order.

    Returns: list of Claim; start and end are character offsets into `text` (of the sentence or bullet that makes the
    claim). Empty for empty, refusing or purely general text. Never raises for a str.
    """
    norm = normalise(text)
    raw = list(text)
    for m in _SOFT_WRAP.finditer(text):
        raw[m.start()] = " "
    for m in _SECTION_BREAK.finditer(text):
        if m.start() and text[m.start() - 1] in " \t":
            raw[m.start() - 1] = "\n"
    raw_text = "".join(raw)
    claims: list[Claim] = []
    block: _Block | None = None
    said = False  # whether anything stands under the block's heading
    ignoring = blank_before = denying = False
    offset = 0
    lines = raw_text.split("\n")
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        base, offset = offset, offset + len(line) + 1
        if not line.strip():
            blank_before = True
            continue
        marker = _MARKER.match(line.replace("**", "  ").replace("__", "  "))
        at = marker.end() if marker else len(line) - len(line.lstrip())
        indent = len(line) - len(line.lstrip())
        bullet = marker is not None and "#" not in marker.group()  # "### Edema" is a heading of what follows
        numbered = indent if _NUMBERED.match(line) else -1
        content = norm[base + at : base + len(line)]
        crossed = bool(marker) and any(c in "❌✗✘❎" for c in marker.group())
        bold = bool(_BOLD_LINE.match(line))
        title_m = _TITLE.match(content)
        if bold and title_m and not _heading_labels(title_m.group(1)) and _heading_labels(content.strip(" :")):
            title_m = None  # "### Step 1: Edema" names it after the colon
        title = title_m.group(1).strip() if title_m else content.strip().rstrip(":")
        rest_at = title_m.end() if title_m else len(content)
        rest = content[rest_at:].strip(" .") if title_m else ""
        denies = bool(_DENYING.fullmatch(title)) and (title_m is not None or bold)
        if denying and (bold or (title_m and not rest) or (blank_before and not bullet)):
            denying = False
        if denying or denies:  # "Absent: edema, pneumonia", or the names as a list below
            names = _heading_labels((rest if denies else content).strip(" .,;"))
            if names:
                start, end = base + at, base + at + len(content.rstrip())
                claims += [Claim(label, "absent", None, start, end) for label in names]
                continue
            denying = denying or not rest
        labels: tuple[str, ...] = ()
        if (
            title_m
            or bold
            or _VERDICT.fullmatch(following.lower())
            or (numbered >= 0 and len(title.split()) <= 8 and not content.rstrip().endswith("."))
        ):
            labels = _heading_labels(title)
        if _IGNORED.match(content):
            _close(block, claims, said)
            block, ignoring = None, not bullet or not rest
            blank_before = False
            continue
        generic = not labels and (
            (title_m and not rest)
            or (title_m and not bullet and line[at:].strip()[:3].isupper())
            or (bold and not labels)
        )
        if labels or generic:
            ignoring = False
        if ignoring:
            continue
        inside = block is not None and (indent > block.indent if block.indent >= 0 else True)
        if block is not None and (
            labels
            or 0 <= numbered <= block.numbered
            or (generic and not (bullet and inside and block.indent < 0))
            or not inside
            or (blank_before and said and not bullet)
        ):
            _close(block, claims, said)
            block = None
        blank_before = False
        if labels:
            start, end = base + at, base + at + len(content.rstrip())
            block = _Block(
                labels,
                side_in(blank(NOT_A_SIDE, title)),
                indent if rest or (bullet and numbered < 0) else -1,
                numbered,
                len(claims),
                start,
                end,
            )
            if crossed and not rest:
                claims += [Claim(label, "absent", None, start, end) for label in labels]
                block, said = None, False
                continue
            said = bool(rest)
            if not rest:
                continue
        body_at = rest_at if labels else 0
        body = content[body_at:]
        for a, b in split_sentences(body):
            sentence = re.sub(r"\s+", " ", body[a:b])
            span = (base + at + (body_at + a if not labels or a else 0), base + at + body_at + b)
            own = read_sentence(sentence)
            if block is not None:
                said = True
            if own is None:
                continue
            found = list(own)
            if crossed and found:
                found = [(label, "absent", None) for label, _, _ in found]
            if block is not None and not any(label not in WEAK or label in block.labels for label, _, _ in own):
                denied = {c.label for c in claims[block.first :] if c.state == "absent"}
                found += [c for c in inherited(sentence, block.labels) if c[1] == "absent" or c[0] not in denied]
            elif labels and a == 0 and not any(label in labels for label, _, _ in own):
                # "Pneumothorax: none; edema: mild": the title belongs to the sentence.
                found = list(read_sentence(re.sub(r"\s+", " ", content[: body_at + b])) or found)
            claims += [Claim(label, state, side, *span) for label, state, side in found]
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
    return bool(_REFUSAL.search(normalise(text))) and not read_findings(text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.findings", description="Read findings out of report text.")
    parser.add_argument("--text", required=True, help="print what is read in this text, one claim a line")
    args = parser.parse_args(argv)
    for c in read_findings(args.text):
        print(f"{c.label}\t{c.state}\t{c.side or '-'}\t{args.text[c.start : c.end]!r}")


if __name__ == "__main__":
    from data.errors import run_cli

    run_cli(main)
