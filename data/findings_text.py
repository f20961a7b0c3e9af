"""Text -> normalised text, which the lexicon is matched against, and its sentences."""

from __future__ import annotations

import re

_SENTENCE_END = re.compile(
    r"(?<!\bvs)(?<!\be\.g)(?<!\bi\.e)(?<!\bdr)"
    # A question and its answer are one sentence.
    r"(?:[.!]|\?(?! ?(?:(?:i (?:see|find|note)|there (?:is|are)|(?:it|they) (?:is|are|does|do)) )?"
    r"(?:none|no|yes|not|absent|present|possibly|probably|perhaps|maybe)\b))+"
    r"(?=[\s\"')\]]|$)[\"')\]]*"
)
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

# What other systems end a line with, and the full-width forms in which some models write ASCII's punctuation.
_LINE_END = re.compile(r"\r(?!\n)|[\v\f\x85\u2028\u2029]")
_ASCII = {ord("\r"): " ", ord("。"): ".", ord("、"): ","} | {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}


def in_ascii(text: str) -> str:
    """Every line ends with "\\n" and punctuation is ASCII's, one character for one character."""
    return _LINE_END.sub("\n", text).translate(_ASCII)


def normalise(text: str) -> str:
    """Lower case, Markdown marks blanked, one character for one character, so that offsets stay those of `text`.

    A table's row and an object of JSON become what they say in prose: "edema : no".
    """
    text = in_ascii(text)
    text = _TABLE_ROW.sub(lambda row: f"{row[1]} {row[2].replace('|', ':')} {row[3]}", text)
    if _JSON_KEY.search(text):
        text = _JSON_NEXT.sub(" ", text).translate(_JSON_MARKS)
    text = _BINARY.sub(lambda digit: "\u2717" if digit.group() == "0" else " ", text)  # a bare name is present
    text = text.translate(_NORMAL_CHARS)
    lower = text.lower()
    return lower if len(lower) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


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
