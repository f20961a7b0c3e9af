"""How two texts' statements on one finding go together, and what a consensus' silence states."""

from collections.abc import Iterable

from apo.heard import Decision, denies_another_side, normal_by_others
from data.findings import read_findings, summarise

OUTCOMES = ("agree", "same_side", "state", "opposed", "partial", "uncertain", "unsupported", "silent")
AGREE, SAME_SIDE, STATE, OPPOSED, PARTIAL, UNCERTAIN, UNSUPPORTED, SILENT = range(len(OUTCOMES))
AGREEMENTS, CONFLICTS = (AGREE, SAME_SIDE), (STATE, OPPOSED, PARTIAL)
COMPARABLE = AGREEMENTS + CONFLICTS


def outcome(a: Decision | None, b: Decision | None) -> int:
    """How two texts' statements on one finding go together: an index of OUTCOMES, symmetric. None: not mentioned."""
    if a is None or b is None:
        said = a or b
        return UNSUPPORTED if said and said[0] == "present" else SILENT
    if "uncertain" in (a[0], b[0]):
        return UNCERTAIN
    if a[0] != b[0]:
        return AGREE if denies_another_side(a, b) else STATE
    if a[0] == "absent" or not (a[1] and b[1]):
        return AGREE
    if a[1] == b[1]:
        return SAME_SIDE
    return PARTIAL if "bilateral" in (a[1], b[1]) else OPPOSED


def consensus_decisions(text: str, mentioned: Iterable[str] = ()) -> dict[str, Decision]:
    """What a consensus text says of every finding: what is read in it, and absent for all else that is `mentioned`.

    "No Finding" follows from the others where the text does not say it.
    """
    said = summarise(read_findings(text))
    out = {label: said.get(label, ("absent", None)) for label in (*said, *mentioned)}
    if "No Finding" in out and "No Finding" not in said:
        out["No Finding"] = normal_by_others(said)
    return out
