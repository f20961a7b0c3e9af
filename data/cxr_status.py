"""The status of a trajectory that a source tells: ok, empty, refused, or what the source says of it."""

import re
from typing import Any

from data.answers import ended
from data.findings import is_refusal


def status_of(text: str, finish: Any = None) -> str:
    """Status of a trajectory by its text and, where the source has one, its finish reason.

    A reason that is not known to mean a complete answer makes it truncated, as in data/collect/classify.py; so does one
    that declares it broken, for which a study record has no status.
    """
    if not text.strip():
        return "empty"
    reason = _reason(finish)
    meaning = ended(reason) if reason else "complete"
    if meaning in ("filtered", "refused"):
        return meaning
    if meaning != "complete":
        return "truncated"
    return "refused" if is_refusal(text) else "ok"


def unknown_reason(finish: Any) -> str | None:
    """A finish reason that is not known, to be counted by its name; "other" for what looks like none. Else None."""
    reason = _reason(finish)
    if not reason or ended(reason):
        return None
    # The column may be the wrong one and hold a patient's text, which no summary may show.
    return reason if re.fullmatch(r"[A-Za-z0-9_.:-]{1,40}", reason) else "other"


def _reason(finish: Any) -> str:
    """ "" for null, a blank, and NaN (a blank of pandas), which say nothing."""
    return "" if finish is None or finish != finish else str(finish).strip()
