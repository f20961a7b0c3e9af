"""A trajectory's text as a study record may hold it, and its status: ok, empty, refused, or what its source says."""

from typing import Any

from data.findings import is_refusal
from data.records import PLACEHOLDER

# Every refusal that data.findings knows holds one of these; tests/data/test_cxr_status.py compares.
REFUSING = (
    *("i'm", "i am", "i cannot", "i can not", "i can't", "i won't", "i do", "i could"),
    *("able to", "capable", "qualified", "please", "as an ai"),
)
FINISH = {"length": "truncated", "max_tokens": "truncated", "content_filter": "filtered", "refusal": "refused"}


def clean(text: str) -> tuple[str, bool]:
    """(text without what a study record may not hold: special tokens, NUL, half surrogates; whether it changed)."""
    if text.isascii() and "<" not in text and "\0" not in text:
        return text, False
    cleaned = text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
    while PLACEHOLDER.search(cleaned):  # taking one out may join another
        cleaned = PLACEHOLDER.sub("", cleaned)
    return cleaned, cleaned != text


def status_of(text: str, finish: Any = None) -> str:
    """Status of a trajectory by its text and, where the source has one, its finish reason."""
    if not text.strip():
        return "empty"
    by_finish = FINISH.get(str(finish).lower()) if finish is not None else None
    return by_finish or ("refused" if refuses(text) else "ok")


def refuses(text: str) -> bool:
    """`is_refusal`, which takes most of the time of loading, asked only where one of its words is there at all."""
    lower = text.lower().replace("\u00a0", " ").replace("\u2019", "'")
    return any(words in lower for words in REFUSING) and is_refusal(text)
