"""Reads findings out of chest X-ray text: text -> claims (label, state, side, span).

    from data.findings import read_findings, summarise
    summarise(read_findings("Small left effusion. No pneumothorax."))
    # {"Pleural Effusion": ("present", "left"), "Pneumothorax": ("absent", None)}

    python -m data.findings --text "No effusion."    # what is read, one claim a line
    python -m data.findings_score                    # precision, recall and F1 by label

Compiled regular expressions over normalised sentences, offline and deterministic: negation and hedging by trigger and
scope in the manner of NegEx (Chapman et al. 2001, J Biomed Inform 34:301), labels and term scope after the CheXpert
labeler, plus what Markdown-writing models need: a heading's label is inherited by the bullets under it, general
knowledge ("effusion refers to ...") is no claim, a side that only names the side compared with is no side. A kept
library was tried: negspacy 1.1 on spaCy 3.8 (blank pipeline, entity ruler with the five findings' names) does negation
only, without hedging, sides or headings, and reads the five with F1 .62 on sentences.tsv and .75 on
sentences_unseen.tsv, against 1.00 and .98 here at the same speed (400-500 texts of 800 characters a second on one core,
sentences seen before several times faster); medspacy would take numpy below what the training stack needs.

sentences.tsv was written with the rules and is what they are tuned to. The honest figures are those of first looks: F1
.84 on 56 deliberately awkward sentences (since then part of sentences.tsv), .89 on the 50 of sentences_unseen.tsv, .90
on the 99 of sentences_second.tsv and .88 on the 36 of sentences_lists.tsv (numbered answers, lists of negatives,
tables, JSON: forms in which a denial is easily read as a finding). General faults that these showed have been mended
since (.98, .95 and .99 now). The phantom cohort's texts, which are simple, read perfectly.

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
from functools import lru_cache
from typing import NamedTuple

from data import findings_lexicon as lex
from data.findings_lexicon import LABELS, SIDELESS, WEAK


class Claim(NamedTuple):
    """One mention: text[start:end] is the sentence (or bullet) that says it. side None: none was stated."""

    label: str
    state: str  # present | absent | uncertain
    side: str | None  # left | right | bilateral | None
    start: int
    end: int


def _rules(rows: list[tuple[str, str]]) -> tuple[list[re.Pattern], list[tuple[str, int]]]:
    """Compile (needles, pattern) rows: the patterns, and every needle with the bits of the rules it wakes."""
    wakes: dict[str, int] = {}
    for i, (needles, _) in enumerate(rows):
        for needle in needles.split("|"):
            wakes[needle] = wakes.get(needle, 0) | 1 << i
    return [re.compile(pattern) for _, pattern in rows], list(wakes.items())


_LEXICON = _rules([(e[3], rf"(?<![a-z])(?:{e[4]})(?![a-z])") for e in lex.LEXICON])
_TRIGGERS = _rules([(needles, pattern) for _, needles, pattern in lex.TRIGGERS])
_SIDES = re.compile("|".join(f"(?P<s{i}>{p})" for i, (_, p) in enumerate(lex.SIDES)))
_NOT_A_SIDE, _SHIFT = re.compile(lex.NOT_A_SIDE), re.compile(lex.SHIFT)
_CLAUSE, _VERB, _OPENER = re.compile(lex.CLAUSE), re.compile(lex.VERB), re.compile(lex.OPENER)
_BREAK_WITH, _TEXTBOOK, _REFUSAL = re.compile(lex.BREAK_WITH), re.compile(lex.TEXTBOOK), re.compile(lex.REFUSAL)
_SECTION_BREAK, _FILLER = re.compile(lex.SECTION_BREAK), re.compile(lex.HEADING_FILLER)
_CONNECTOR = re.compile(r",| and | with | or | plus |/| as well as | - |:| without |\bno\b")
_LINK = re.compile(lex.LINK)
_TOLD = r"(?:seen|noted|present|identified|described)"
_EARLIER = re.compile(rf"^ (?:{_TOLD} (?:earlier|previously|before|on the prior\b)|(?:earlier|previously) {_TOLD})")
# Said of a finding, with what it may be: "no opacity suspicious for pneumonia" denies both.
_DESCRIBES = re.compile(r"(?: that| which)?(?: is| are| would be)? (?:concerning|suspicious|worrisome)(?: for| of)?")
_IGNORED = re.compile(rf"^(?:{lex.IGNORED_SECTIONS})\s*:")
_EVIDENCE, _BLOCK_NEGATIVE = re.compile(lex.EVIDENCE), re.compile(lex.BLOCK_NEGATIVE)
_DENYING, _VERDICT = re.compile(lex.DENYING), re.compile(lex.VERDICT)

_SENTENCE_END = re.compile(
    r"(?<!\bvs)(?<!\be\.g)(?<!\bi\.e)(?<!\bdr)(?:[.!]|\?(?! ?(?:none|no|yes|not|absent|present)\b))+"
    r"(?=[\s\"')\]]|$)[\"')\]]*"
)
_SOFT_WRAP = re.compile(r"(?<![.:;!?\n…|])\n(?=[ \t]*[a-z(])")
_MARKER = re.compile(r"^(\s*)((?:[-*+•‣◦·▪–—>]|\d{1,2}[.)]|\(?[a-z][.)]|#{1,6}|[✔✓✅☑❌✗✘❎️]+)\s+)+")
_BOLD_LINE = re.compile(r"^\s*(?:[-*+•]\s+)?(?:#{1,6}\s.*|\*\*[^*]+\*\*:?|__[^_]+__:?)\s*$")
_NUMBERED = re.compile(r"^\W*\d{1,2}[.)]\s")
_TITLE = re.compile(r"([^:.;]{1,80}?)\s*:(?!\d)\s*")
_TABLE_ROW = re.compile(r"^([ \t]*)\|(.*)\|([ \t]*)$", re.MULTILINE)
_BINARY = re.compile(r"(?:(?<=[:=])|(?<=[:=] ))[01](?=\s*(?:[,;|}\]]|$))", re.MULTILINE)
_JSON_KEY = re.compile(r'"[^"\n:]{1,60}"\s*:')
_JSON_NEXT = re.compile(r'(?<="),(?=\s*"(?:status|state|presence|answer|value|assessment)"\s*:)')
_JSON_MARKS = {ord(c): " " for c in '{}[]"'}

_NORMAL_CHARS = {ord("|"): ";"} | {ord(c): " " for c in "*_`#•‣◦·▪✔✓✅☑\t\u00a0\ufe0f"}
_NORMAL_CHARS |= {ord(c): "-" for c in "–—−‐‑"} | {
    ord("’"): "'",
    ord("‘"): "'",
    ord("“"): '"',
    ord("”"): '"',
    ord("…"): ".",
}
_NORMAL_CHARS |= {ord(c): "\u2717" for c in "❌✗✘❎"} | {ord("≥"): ">", ord("≤"): "<"}


def _normalise(text: str) -> str:
    """Lower case, Markdown marks blanked, one character for one character, so that offsets stay those of `text`.

    A table's row and an object of JSON become what they say in prose: "edema : no".
    """
    text = _TABLE_ROW.sub(lambda row: f"{row[1]} {row[2].replace('|', ':')} {row[3]}", text)
    if _JSON_KEY.search(text):
        text = _JSON_NEXT.sub(" ", text).translate(_JSON_MARKS)
    text = _BINARY.sub(lambda digit: "\u2717" if digit.group() == "0" else " ", text)  # a bare name is present
    text = text.translate(_NORMAL_CHARS)
    lower = text.lower()
    return lower if len(lower) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


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


# --- one sentence ---------------------------------------------------------------------------------------------------


def _sides(text: str) -> str | None:
    found = {lex.SIDES[int(m.lastgroup[1:])][0] for m in _SIDES.finditer(text)}
    if "bilateral" in found or len(found) > 1:
        return "bilateral"
    return found.pop() if found else None


def _blank(pattern: re.Pattern, text: str) -> str:
    return pattern.sub(lambda m: " " * len(m.group()), text)


def _reaches(gap: str, chunk_tail: str, rest: str) -> bool:
    """Whether a negation or hedge before `gap` still governs the finding after it.

    gap: from the trigger to the finding; chunk_tail: from the finding to the next comma; rest: all that follows in the
    clause. A list goes on over commas ("no pneumothorax, effusion or edema") until a verb, or until an item that opens
    like a new statement ("no pneumothorax, small left effusion") unless an "or" closes the list.
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
    return not (_OPENER.match(item) or _VERB.search(chunk_tail))


def _backward(gap: str) -> bool:
    """Whether a trigger after `gap` still governs the finding before it ("effusion or edema is not seen")."""
    gap = _EARLIER.sub("", gap, count=1)
    if _VERB.search(gap) or _CLAUSE.search(gap):
        return False
    return "," not in gap or re.search(r"\b(?:or|and|nor)\b", gap) is not None


class _Mention(NamedTuple):
    start: int
    end: int
    labels: tuple[str, ...]  # () for a look-alike
    polarity: int
    is_name: bool


def _mentions(text: str) -> list[_Mention]:
    return [_Mention(start, end, *lex.LEXICON[i][:3]) for start, end, i in _matches(_LEXICON, text)]


def _states(clause: str, mentions: list[_Mention]) -> list[str | None]:
    """State of every mention of one clause; None: not a claim (history, recommendation)."""
    triggers = [
        (lex.TRIGGERS[i][0], start, end)
        for start, end, i in _matches(_TRIGGERS, clause)
        if not any(m.start <= start and end <= m.end for m in mentions)
    ]
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
                if _reaches(gap, chunk_tail, clause[m.end :]):
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
            if kind in ("neg_post", "hedge_post", "hedge_both") and _backward(gap):
                state = "absent" if kind == "neg_post" else "uncertain"
                break
            # "effusion, likely on the left": a forward word with no finding after it looks back, if it is this one's.
            if kind == "hedge_pre" and last and k + 1 == len(mentions) and "," not in gap and not _VERB.search(gap):
                if state == "present" and re.match(
                    r"[\s(:-]*(?:$|[,.;)]|left|right|the|in|at|small|mild|bi)", clause[end:]
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


def _side_windows(clause: str, mentions: list[_Mention]) -> list[str | None]:
    """Side of every mention: its own words first (up to the connector to the next), then those it shares in a list."""
    if not _SIDES.search(clause):
        return [None] * len(mentions)
    bounds = [0]
    between_texts = []
    for a, b in zip(mentions, mentions[1:], strict=False):
        between = clause[a.end : b.start]
        hits = list(_CONNECTOR.finditer(between))
        # The last comma, else the first connector: "effusion at the left base, right lower lobe consolidation".
        hit = hits[-1] if hits and "," in hits[-1].group() else (hits[0] if hits else None)
        if (
            hit
            and not _SIDES.search(between[: hit.start()])
            and _SIDES.search(between)
            and re.match(r"(?:left|right) and |both ", between.strip())
        ):
            hit = None
        bounds.append(a.end + hit.start() if hit else a.end)
        between_texts.append(between)
    bounds.append(len(clause))
    sides: list[str | None] = []
    pushed = any({"Pneumothorax", "Pleural Effusion"} & {*m.labels} for m in mentions)  # then the shift is theirs
    for k, m in enumerate(mentions):
        own = clause[bounds[k] : bounds[k + 1]]
        if "Atelectasis" not in m.labels or pushed:
            own = _blank(_SHIFT, own)
        sides.append(_sides(own))
    for k in range(len(mentions) - 2, -1, -1):  # "effusion and atelectasis on the left"
        tail = clause[mentions[k + 1].end : bounds[k + 2]]
        if (
            sides[k] is None
            and _sides(tail)
            and re.fullmatch(r"\s*(?:,|and|or|, and|, or|/|with)\s*(?:[a-z]+ ){0,2}", between_texts[k])
        ):
            sides[k] = sides[k + 1]
    for k, m in enumerate(mentions):  # the same finding twice in one clause
        sides[k] = sides[k] or next((sides[j] for j in range(k) if mentions[j].labels == m.labels), None)
    for k in range(len(mentions) - 1):  # "left basilar opacity consistent with pneumonia": a sign and its reading
        reading = mentions[k].labels == ("Lung Opacity",) and {"Atelectasis", "Consolidation", "Pneumonia"} & {
            *mentions[k + 1].labels
        }
        if _LINK.fullmatch(_SIDES.sub("", between_texts[k])) or (reading and not between_texts[k].strip(" ,")):
            sides[k] = sides[k] or sides[k + 1]
            sides[k + 1] = sides[k + 1] or sides[k]
    for k in range(1, len(mentions)):  # "left effusion and atelectasis", but not "left effusion and support devices"
        if (
            sides[k] is None
            and "Support Devices" not in mentions[k].labels
            and sides[k - 1]
            and re.fullmatch(
                r"\s*(?:and|or|/|with|, and)\s*(?:(?:adjacent|associated|overlying|underlying|compressive) )?",
                between_texts[k - 1],
            )
        ):
            sides[k] = sides[k - 1]
    return sides


@lru_cache(maxsize=1 << 16)
def _read_sentence(sentence: str) -> tuple[tuple[str, str, str | None], ...] | None:
    """(label, state, side) of every claim in one normalised sentence; None if it is general knowledge."""
    if _TEXTBOOK.search(sentence):
        return None
    claims: list[tuple[str, str, str | None]] = []
    masked = _blank(_NOT_A_SIDE, sentence)
    edges = [0, *(e for m in _CLAUSE.finditer(sentence) for e in (m.start(), m.end())), len(sentence)]
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        clause = sentence[start:end]
        mentions = [m for m in _mentions(clause) if m.labels]
        if not mentions:
            continue
        sides = _side_windows(masked[start:end], mentions)
        for m, state, side in zip(mentions, _states(clause, mentions), sides, strict=True):
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


# --- the text -------------------------------------------------------------------------------------------------------


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Spans of the sentences of one line of normalised text."""
    spans, start = [], 0
    for m in _SENTENCE_END.finditer(text):
        spans.append((start, m.end()))
        start = m.end()
    spans.append((start, len(text)))
    out = []
    for a, b in spans:
        while a < b and text[a].isspace():
            a += 1
        while b > a and text[b - 1].isspace():
            b -= 1
        if any(c.isalpha() or c == "\u2717" for c in text[a:b]):
            out.append((a, b))
    return out


def _heading_labels(title: str) -> tuple[str, ...]:
    """The labels that a heading names, () if it is a sentence, denies or doubts ("1. No edema"), or names none."""
    names, rest, at = [], [], 0
    mentions = _mentions(title)
    for m in mentions:
        if not m.is_name:
            return ()
        names += m.labels
        rest.append(title[at : m.start])
        at = m.end
    if not names or "No Finding" in names or _FILLER.sub("", " ".join([*rest, title[at:]])).strip():
        return ()
    if set(_states(re.sub(r"\bor\b", "/ ", title), mentions)) != {"present"}:
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


def _inherited(sentence: str, block: _Block) -> list[tuple[str, str, str | None]]:
    """Claims of a sentence under a heading that does not itself name a finding."""
    if not _EVIDENCE.search(sentence):
        return []
    if re.search(
        r"\b(?:recommend|correlat|follow-?up|differential|consider|not (?:assessed|evaluated)|summary|overall|compare)",
        sentence,
    ):
        return []
    if re.search(r"\b(?:can ?not|not|could not) be (?:entirely |completely |fully )?(?:excluded|ruled out)", sentence):
        state = "uncertain"
    elif _BLOCK_NEGATIVE.search(sentence):
        state = "absent"
    elif re.match(
        r"\W*(?:possible|possibly|likely|probable|suspected|questionable|uncertain|equivocal|cannot)\b", sentence
    ) or re.search(r"\b(?:may|might|could|possibl\w+|cannot be excluded|uncertain|equivocal)\b", sentence):
        state = "uncertain"
    else:
        state = "present"
    out = []
    for label in block.labels:
        text = _blank(_NOT_A_SIDE, sentence)
        side = _sides(text if label == "Atelectasis" else _blank(_SHIFT, text))
        out.append((label, state, None if label in SIDELESS else side))
    return out


def read_findings(text: str) -> list[Claim]:
    """All claims of a text, in reading order.

    Returns: list of Claim; start and end are character offsets into `text` (of the sentence or bullet that makes the
    claim). Empty for empty, refusing or purely general text. Never raises for a str.
    """
    norm = _normalise(text)
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
                _sides(_blank(_NOT_A_SIDE, title)),
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
            own = _read_sentence(sentence)
            if block is not None:
                said = True
            if own is None:
                continue
            found = list(own)
            if crossed and found:
                found = [(label, "absent", None) for label, _, _ in found]
            if block is not None and not any(label not in WEAK or label in block.labels for label, _, _ in own):
                denied = {c.label for c in claims[block.first :] if c.state == "absent"}
                found += [c for c in _inherited(sentence, block) if c[1] == "absent" or c[0] not in denied]
            elif labels and a == 0 and not any(label in labels for label, _, _ in own):
                # "Pneumothorax: none; edema: mild": the title belongs to the sentence.
                found = list(_read_sentence(re.sub(r"\s+", " ", content[: body_at + b])) or found)
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
    return bool(_REFUSAL.search(_normalise(text))) and not read_findings(text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.findings", description="Read findings out of report text.")
    parser.add_argument("--text", required=True, help="print what is read in this text, one claim a line")
    args = parser.parse_args(argv)
    for c in read_findings(args.text):
        print(f"{c.label}\t{c.state}\t{c.side or '-'}\t{args.text[c.start : c.end]!r}")


if __name__ == "__main__":
    from data.errors import run_cli

    run_cli(main)
