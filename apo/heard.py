"""What teachers say of one film: their trajectories as data.findings reads them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.findings import Claim, is_refusal, read_findings, summarise

Decision = tuple[str, str | None]  # state, side


class Heard(NamedTuple):
    """One study as read: for each teacher with a vote its text, its claims, and their summary by label."""

    texts: dict[str, str]
    claims: dict[str, list[Claim]]
    says: dict[str, dict[str, Decision]]
    unheard: dict[str, str]  # teacher -> why it has no vote (its status, or "refused" by its text)


def hear(study: dict) -> Heard:
    """Read all trajectories of a study record."""
    heard = Heard({}, {}, {}, {})
    for trajectory in study["trajectories"]:
        teacher, text = trajectory["teacher"], trajectory["text"]
        if trajectory["status"] != "ok":
            heard.unheard[teacher] = trajectory["status"]
        elif is_refusal(text):
            heard.unheard[teacher] = "refused"
        else:
            claims = read_findings(text)
            heard.texts[teacher], heard.claims[teacher], heard.says[teacher] = text, claims, summarise(claims)
    return heard


def in_context(claim: Claim, says: dict[str, Decision]) -> Decision:
    """What a claim states as a part of its text, `says` being the summary of it.

    "Small left effusion. Small right effusion." states bilateral effusion, in each of its sentences.
    """
    state, side = says[claim.label]
    return (state, side if claim.side else None) if claim.state == state else (claim.state, claim.side)


def denies_another_side(a: Decision, b: Decision) -> bool:
    """Whether one denies a finding on one side only, and the other has it on the other: "no left effusion" says nothing
    against a right one."""
    denied, seen = (a, b) if a[0] == "absent" else (b, a)
    return (denied[0], seen[0]) == ("absent", "present") and {denied[1], seen[1]} == {"left", "right"}


def normal_by_others(said: dict[str, Decision]) -> Decision:
    """ "No Finding" as it follows from what a text says of the other findings: present where none of them is, nor may
    be; devices are no disease."""
    sick = any(
        state != "absent" for label, (state, _) in said.items() if label not in ("No Finding", "Support Devices")
    )
    return ("absent" if sick else "present", None)


def presence_votes(heard: Sequence[Heard], teachers: Sequence[str], label: str) -> np.ndarray:
    """[studies, teachers] of 1 (present), 0 (absent or silent), -1 (uncertain, or no ok trajectory)."""
    votes = np.full((len(heard), len(teachers)), -1, np.int8)
    for s, one in enumerate(heard):
        for t, teacher in enumerate(teachers):
            if teacher in one.says:
                votes[s, t] = {"present": 1, "absent": 0, "uncertain": -1}[one.says[teacher].get(label, ("absent",))[0]]
    return votes


def tally(one: Heard, label: str) -> dict[str, int]:
    """State -> how many of the teachers with a vote say so of a finding, "silent" included."""
    states = [says[label][0] if label in says else "silent" for says in one.says.values()]
    return {state: states.count(state) for state in ("present", "absent", "uncertain", "silent")}
