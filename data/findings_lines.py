"""Takes a text apart into lines and says what each is: a bullet, a heading, a heading that names findings or denies.

Models write Markdown and lists of many forms; data/findings.py reads claims by what is told here of each line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from data import findings_lexicon as lex
from data.findings_states import find_mentions, states_of
from data.findings_text import in_ascii, normalise

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


class Line(NamedTuple):
    """A line that is not blank, without its marker. Offsets start, end (characters of the text) are of `content`,
    body_at is one into it."""

    content: str  # normalised
    start: int
    end: int  # of what is no blank
    indent: int
    bullet: bool
    numbered: int  # indentation of its number; -1: it has none
    crossed: bool  # marked with a cross: what it names is absent
    bold: bool
    titled: bool  # has a title: "Title: rest"
    title: str
    rest: str
    body_at: int  # where the sentences begin: behind a title that names findings
    denies: bool  # a title such as "Absent"
    ignored: bool  # opens a section that is not read
    labels: tuple[str, ...]  # that its heading names
    generic: bool  # a heading that names none

    @property
    def body(self) -> str:
        return self.content[self.body_at :]


def heading_labels(title: str) -> tuple[str, ...]:
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


def lines_of(text: str) -> Iterator[Line | None]:
    """Each line of a text, None for a blank one; a sentence that goes on in the next line stays in one."""
    text = in_ascii(text)
    norm = normalise(text)
    raw = list(text)
    for m in _SOFT_WRAP.finditer(text):
        raw[m.start()] = " "
    for m in _SECTION_BREAK.finditer(text):
        if m.start() and text[m.start() - 1] in " \t":
            raw[m.start() - 1] = "\n"
    lines = "".join(raw).split("\n")
    offset = 0
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        yield _line(line, following, norm[offset : offset + len(line)], offset) if line.strip() else None
        offset += len(line) + 1


def _line(line: str, following: str, norm: str, offset: int) -> Line:
    marker = _MARKER.match(line.replace("**", "  ").replace("__", "  "))
    indent = len(line) - len(line.lstrip())
    at = marker.end() if marker else indent
    bullet = marker is not None and "#" not in marker.group()  # "### Edema" is a heading of what follows
    numbered = indent if _NUMBERED.match(line) else -1
    content = norm[at:]
    bold = bool(_BOLD_LINE.match(line))
    title_m = _TITLE.match(content)
    if bold and title_m and not heading_labels(title_m.group(1)) and heading_labels(content.strip(" :")):
        title_m = None  # "### Step 1: Edema" names it after the colon
    title = title_m.group(1).strip() if title_m else content.strip().rstrip(":")
    rest_at = title_m.end() if title_m else len(content)
    rest = content[rest_at:].strip(" .") if title_m else ""
    short_item = numbered >= 0 and len(title.split()) <= 8 and not content.rstrip().endswith(".")
    heads = title_m or bold or _VERDICT.fullmatch(following.lower()) or short_item
    labels = heading_labels(title) if heads else ()
    shouted = not bullet and line[at:].strip()[:3].isupper()
    return Line(
        content=content,
        start=offset + at,
        end=offset + at + len(content.rstrip()),
        indent=indent,
        bullet=bullet,
        numbered=numbered,
        crossed=bool(marker) and any(c in "❌✗✘❎" for c in marker.group()),
        bold=bold,
        titled=title_m is not None,
        title=title,
        rest=rest,
        body_at=rest_at if labels else 0,
        denies=bool(_DENYING.fullmatch(title)) and (title_m is not None or bold),
        ignored=bool(_IGNORED.match(content)),
        labels=labels,
        generic=not labels and (bold or (title_m is not None and (not rest or shouted))),
    )
