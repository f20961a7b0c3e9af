"""Why a consensus says what it says: what each teacher said of a finding, and whom the consensus contradicts."""

from collections.abc import Iterable, Sequence

from apo.heard import Decision, Heard, denies_another_side, in_context, normal_by_others, tally
from data.findings_lexicon import ORDER


def _mark(state: str, side: str | None, decision: Decision | None) -> str:
    decision = decision or ("absent", None)  # a consensus that does not say it has dropped it
    if "uncertain" in (state, decision[0]):
        return "uncertain"
    if decision[0] != state:
        return "consistent" if denies_another_side((state, side), decision) else "conflict"
    return "conflict" if side and decision[1] and side != decision[1] and state == "present" else "consistent"


def make_audit(
    one: Heard,
    findings: dict[str, Decision],
    stated: Sequence[str],
    support: dict[str, dict],
    pieces: Iterable[tuple[str, int, int, str | None]],
) -> dict:
    """Why a consensus says what it says, after the workflow figure of the method. JSON.

    {"findings": {label: {"state", "side", "stated": bool, "said": {teacher: [state, side]}, "votes": {state: n},
    "posterior"?, "sides"?, "against_majority"?: true where the finding was turned round, "labels"?: what labels said to
    that, see `orient_by_labels`, "source"?: teacher or "template", "corrected": [teachers contradicted]}},
    "spans": {teacher: [[start, end, label, "consistent" | "conflict" | "uncertain"]]} into each trajectory's text,
    "consensus_spans": [[start, end, label, "agreed" | "corrected"]] into the consensus ("corrected": it contradicts at
    least one teacher), "unheard": {teacher: why it has no vote}}

    Where the text does not say "No Finding", it follows from what the text says, as on the page of the drift.
    """
    if "No Finding" not in stated and ("No Finding" in findings or any("No Finding" in v for v in one.says.values())):
        findings = findings | {"No Finding": normal_by_others({label: findings[label] for label in stated})}
    out: dict = {"findings": {}, "spans": {}, "consensus_spans": [], "unheard": dict(one.unheard)}
    pieces = list(pieces)
    sources = {label: source for label, _, _, source in pieces}
    for label in ORDER:
        said = {teacher: list(says[label]) for teacher, says in one.says.items() if label in says}
        if label not in findings and not said:
            continue
        state, side = findings.get(label, (None, None))
        corrected = [t for t, v in said.items() if _mark(v[0], v[1], findings.get(label)) == "conflict"]
        entry = {"state": state, "side": side, "stated": label in stated, "said": said, "corrected": corrected}
        entry |= support.get(label) or {"votes": tally(one, label)}
        if sources.get(label):
            entry["source"] = sources[label]
        out["findings"][label] = entry
    for teacher, claims in one.claims.items():
        says = one.says[teacher]
        marks = [[c.start, c.end, c.label, _mark(*in_context(c, says), findings.get(c.label))] for c in claims]
        out["spans"][teacher] = [list(m) for m in dict.fromkeys(map(tuple, marks))]
    for label, start, end, _ in pieces:
        corrected = out["findings"].get(label, {}).get("corrected")
        out["consensus_spans"].append([start, end, label, "corrected" if corrected else "agreed"])
    return out
