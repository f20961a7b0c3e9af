"""Decisions -> the text of a consensus.

Labels stand in fixed order, the five of MS-CXR-T first, then others if present or uncertain.

- compose="plain" (default): one fixed sentence a finding ("Small" and the like are not decided and not said). A student
  imitates the consensus, and a small one learns the findings only if the wording does not vary with who happened to
  be quoted: in `quote` the same decision comes in as many wordings as there are teachers.
- compose="quote": the sentence of the most reliable teacher who supports the decision, so that every word has a source.
  A sentence that also says something against the decisions, or that read alone does not say the decision (a bullet
  whose heading named the finding), is never used; where none is left the plain sentence stands in, marked "template".
  Its style is that of the negatives, which leaves Critique less of a style shortcut; "plain" leaves more (every
  positive in one style, every negative in another), to be countered there, e.g. by `--rpo_alpha`.
"""

import re
from collections.abc import Callable
from typing import Literal

from apo.decisions import Decided
from apo.heard import Decision, Heard
from data.findings import Claim, read_findings, summarise
from data.plain_sentences import plain_sentence

Compose = Literal["plain", "quote"]


def _clean(sentence: str) -> str:
    """A quoted sentence without Markdown, one line, with a full stop."""
    sentence = re.sub(r"[*_`#]+|^[\s\-•+>]+|^\d+[.)]\s+|[✔✓✅☑\ufe0f]", " ", sentence)
    sentence = re.sub(r"\s+([,.:;])", r"\1", re.sub(r"\s+", " ", sentence)).strip(" -:;,.…")
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""


def _fits(claims: list[Claim], findings: dict[str, Decision]) -> bool:
    """Whether nothing in a sentence goes against the decisions."""
    for label, (state, side) in summarise(claims).items():
        want = findings.get(label)
        if want is None or want[0] != state or (side and side != want[1]):
            return False
    return True


def _quote(one: Heard, decided: Decided, label: str, rank: Callable[[str], float]) -> tuple[str, str] | None:
    """(sentence, teacher) of the most reliable supporting teacher with a usable sentence; shortest first within one."""
    decision = decided.findings[label]
    for teacher in sorted(one.says, key=lambda t: (-rank(t), t)):
        if one.says[teacher].get(label) != decision:
            continue
        spans = {(c.start, c.end) for c in one.claims[teacher] if c.label == label and c.state == decision[0]}
        for start, end in sorted(spans, key=lambda s: (s[1] - s[0], s)):
            sentence = _clean(one.texts[teacher][start:end])
            if not sentence or "<" in sentence:  # no tag or special token may enter a training text
                continue
            claims = read_findings(sentence)
            if summarise(claims).get(label) == decision and _fits(claims, decided.findings):
                return sentence, teacher
    return None


def compose_text(
    one: Heard, decided: Decided, compose: Compose, rank: Callable[[str, str], float]
) -> tuple[str, list[tuple[str, int, int, str]]]:
    """The consensus text and (label, start, end, source) of its sentences; source is a teacher or "template".

    rank: (teacher, label) -> reliability. Read again, the text gives exactly the stated decisions, or in `quote` these
    and further ones that a quoted sentence states in agreement with the decisions.
    """
    stated = decided.stated
    chosen: dict[str, tuple[str, str]] = {
        label: (plain_sentence(label, *decided.findings[label]), "template") for label in stated
    }
    if compose == "quote":
        for label in stated:
            chosen[label] = _quote(one, decided, label, lambda t, k=label: rank(t, k)) or chosen[label]
    while True:
        text, pieces = "", []
        for label in stated:
            sentence, source = chosen[label]
            said_before = next((p for p in pieces if text[p[1] : p[2]] == sentence), None)
            if said_before:  # one quoted sentence for two findings
                pieces.append((label, said_before[1], said_before[2], source))
                continue
            text += (" " if text else "") + sentence
            pieces.append((label, len(text) - len(sentence), len(text), source))
        got = summarise(read_findings(text))
        off = [
            label for label in stated if got.get(label) != decided.findings[label] and chosen[label][1] != "template"
        ]
        if not off:
            return text, pieces
        for label in off:  # sentences that together no longer say what each says alone
            chosen[label] = (plain_sentence(label, *decided.findings[label]), "template")
