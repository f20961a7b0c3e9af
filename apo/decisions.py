"""What a consensus says of each finding: by estimated error rates (`dawid_skene`) or by majority (`vote`).

- Present is a vote for, an explicit "absent" and silence are votes against, "uncertain" abstains, and a teacher without
  an ok trajectory (or with one that only refuses) has no vote. Silence votes because a finding that no other teacher
  supports is to be dropped, which is the paper's rule; a teacher who seldom mentions a finding gets a low sensitivity,
  so its silence weighs little in `dawid_skene`.
- The consensus never says what nobody said: a finding that no teacher claims is not present, whatever its posterior,
  and one that is absent by silence alone is left out of the text. So is one that nobody claims and some deny, but whose
  posterior says that it is there: most of all where a finding was turned round, and denials speak for it.
- If there is no vote and somebody is uncertain, the consensus is uncertain too.
- The side is decided among the teachers who claim the decided state: plurality in `vote`, a three-class Dawid-Skene
  over all findings together in `dawid_skene` (wrong sides are a habit of a teacher, not of a finding). A tie names no
  side.
"""

from typing import NamedTuple

import numpy as np

from apo.error_rates import Fit, fit_dawid_skene, orient, orient_by_labels, youden
from apo.heard import Decision, Heard, presence_votes, tally
from data.findings_lexicon import FIVE, ORDER, SIDELESS
from data.records import SIDES


class Decided(NamedTuple):
    """One study's decisions."""

    findings: dict[str, Decision]  # every label that any teacher mentions
    stated: list[str]  # those the text will state, in ORDER
    support: dict[str, dict]  # label -> what the audit says of it


def decide(
    heard: list[Heard], teachers: list[str], *, model: bool, truths: dict[str, np.ndarray]
) -> tuple[list[Decided], dict[str, np.ndarray]]:
    """Decisions for all studies, and each teacher's reliability by label (sensitivity + specificity - 1)."""
    decided = [Decided({}, [], {}) for _ in heard]
    reliability: dict[str, np.ndarray] = {}
    mentions = {
        label: [s for s, one in enumerate(heard) if any(label in says for says in one.says.values())] for label in ORDER
    }
    ballots = {label: presence_votes(heard, teachers, label) for label in ORDER if mentions[label]}
    fits: dict[str, Fit] = {}
    if model:
        fits, turned = orient({label: fit_dawid_skene(votes) for label, votes in ballots.items()}, ballots)
        fits, verdicts = orient_by_labels(fits, ballots, truths)
        turned = set(turned) ^ {label for label, verdict in verdicts.items() if verdict == "turned"}
    for label, votes in ballots.items():
        mentioned = mentions[label]
        for_, against = (votes == 1).sum(1), (votes == 0).sum(1)
        if model:
            p = fits[label].posterior[:, 1]
            reliability[label] = youden(fits[label])
        else:
            p = for_ / np.maximum(for_ + against, 1)
            truth = (for_ > against)[:, None]
            right, cast = ((votes == truth) & (votes >= 0)).sum(0), (votes >= 0).sum(0)
            reliability[label] = 2.0 * (right + 1.0) / (cast + 2.0) - 1.0  # agreement with the majority
        for s in mentioned:
            counts = tally(heard[s], label)
            state = "present" if p[s] > 0.5 and for_[s] > 0 else "absent"
            if for_[s] + against[s] == 0:
                state = "uncertain"
            decided[s].findings[label] = (state, None)
            decided[s].support[label] = {"votes": counts}
            if model:
                decided[s].support[label]["posterior"] = round(float(p[s]), 4)
                if label in turned:
                    decided[s].support[label]["against_majority"] = True
                if label in verdicts:
                    decided[s].support[label]["labels"] = verdicts[label]
    for one in decided:  # "no acute abnormality" cannot stand beside one
        pathology = any(
            v[0] == "present" for k, v in one.findings.items() if k not in ("No Finding", "Support Devices")
        )
        if pathology and one.findings.get("No Finding", ("absent",))[0] != "absent":
            one.findings["No Finding"] = ("absent", None)
            one.support["No Finding"]["overruled"] = True
    _decide_sides(heard, decided, teachers, model=model)
    for one in decided:
        for label, (state, _) in one.findings.items():
            support = one.support[label]
            denied = support["votes"]["absent"] > 0 and support.get("posterior", 0.0) <= 0.5
            if state != "absent" or (label in FIVE and denied):
                one.stated.append(label)
    return decided, reliability


def _decide_sides(heard: list[Heard], decided: list[Decided], teachers: list[str], *, model: bool) -> None:
    items, rows = [], []
    for s, one in enumerate(decided):
        for label, (state, _) in one.findings.items():
            if state == "absent" or label in SIDELESS:
                continue
            row = [-1] * len(teachers)
            for t, teacher in enumerate(teachers):
                said = heard[s].says.get(teacher, {}).get(label)
                if said and said[0] == state and said[1]:
                    row[t] = SIDES.index(said[1])
            if max(row) >= 0:
                items.append((s, label))
                rows.append(row)
    if not items:
        return
    votes = np.array(rows, np.int8)
    count = (votes[:, :, None] == np.arange(3)).sum(1)
    weight = fit_dawid_skene(votes, 3).posterior if model else count.astype(float)
    for (s, label), n, w in zip(items, count, weight, strict=True):
        w = np.where(n > 0, w, -1.0)  # a side that nobody names here is none, however often a teacher swaps sides
        best = np.flatnonzero(w >= w.max() - 1e-9)
        side = SIDES[best[0]] if len(best) == 1 else None
        decided[s].findings[label] = (decided[s].findings[label][0], side)
        decided[s].support[label]["sides"] = {name: int(k) for name, k in zip(SIDES, n, strict=True) if k}
