"""All that drift counts, as sums over some studies; two such parts can be added."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from apo.distances import text_measures, tokens_of
from apo.drift_outcomes import COMPARABLE, CONFLICTS, OUTCOMES, consensus_decisions, outcome
from apo.heard import Decision, Heard, hear, in_context
from apo.stationarity import BINS
from data.findings import Claim, summarise
from data.findings_lexicon import LABELS, SIDELESS

CONSENSUS = ""  # stands for the consensus among the teachers' names; no teacher can be called so
CLAIM = np.dtype(
    [("trajectory", "i4"), ("teacher", "i2"), ("label", "i1"), ("state", "i1"), ("sided", "i1"), ("bin", "i1")]
    + [("conflict", "f4"), ("error", "f4")]
)


def depth_bin(start: int, end: int, length: int) -> int:
    """The tenth of a text of `length` characters in which the middle of a span lies."""
    return min(BINS * (start + end) // (2 * max(length, 1)), BINS - 1)


def states_by_depth(one: Heard, teacher: str) -> list[dict[str, Decision]]:
    """What a trajectory has said of every finding after the first tenth, two tenths, ... of it (BINS readings)."""
    length = len(one.texts[teacher].rstrip())
    by_bin: dict[int, list[Claim]] = {}
    for claim in one.claims[teacher]:
        by_bin.setdefault(depth_bin(claim.start, claim.end, length), []).append(claim)
    out: list[dict[str, Decision]] = []
    seen: dict[str, list[Claim]] = {}
    for j in range(BINS):
        now = out[-1] if out else {}
        if j in by_bin:
            now = dict(now)
            for claim in by_bin[j]:
                seen.setdefault(claim.label, []).append(claim)
            for label in {claim.label for claim in by_bin[j]}:
                now[label] = summarise(seen[label])[label]
        out.append(now)
    return out


def measure(studies: Sequence[dict]) -> dict:
    """All sums over some studies; `merge` adds two such parts. Pairs are keyed (teacher, other), other later in the
    alphabet or CONSENSUS.

    {"counts", "strategies", "sources": Counter, "status": {teacher: Counter}, "tokens", "claims_said": {teacher: [n]},
    "text": {pair: [n, precision, recall, similarity]}, "findings": {pair: int [labels, OUTCOMES]},
    "laterality": int [labels, (studies where two teachers name a side, of these some opposed, some differing)],
    "names": [teacher], "claims": CLAIM array (teacher indexes names), "trajectories": n,
    "accumulated": [BINS, 4, (sum, n)]}
    """
    part = {
        "counts": Counter(),
        "strategies": Counter(),
        "sources": Counter(),
        "status": {},
        "tokens": {},
        "claims_said": {},
        "text": {},
        "findings": {},
        "laterality": np.zeros((len(LABELS), 3), np.int64),
        "names": sorted({t["teacher"] for s in studies for t in s["trajectories"]}),
        "claims": [],
        "trajectories": 0,
        "accumulated": np.zeros((BINS, 4, 2)),
    }
    for study in studies:
        _measure_study(study, part)
    part["claims"] = np.array(part["claims"], CLAIM)
    return part


def _measure_study(study: dict, part: dict) -> None:
    one = hear(study)
    part["counts"]["studies"] += 1
    part["sources"][study["source"]] += 1
    part["counts"]["unheard"] += not one.says
    part["counts"]["single"] += len(one.says) == 1
    for trajectory in study["trajectories"]:
        teacher, status = trajectory["teacher"], trajectory["status"]
        by_text = status == "ok" and teacher in one.unheard
        part["status"].setdefault(teacher, Counter())["refused by its text" if by_text else status] += 1
    if not one.says:
        return
    consensus = (study.get("consensus") or {}).get("text")
    decisions: dict[str, Decision] = {}
    bags = {teacher: tokens_of(text) for teacher, text in one.texts.items()}
    if consensus:
        part["counts"]["consensus"] += 1
        part["strategies"][study["consensus"]["strategy"]] += 1
        decisions = consensus_decisions(consensus, {label for says in one.says.values() for label in says})
        bags[CONSENSUS] = tokens_of(consensus)
    for teacher in one.says:
        part["tokens"].setdefault(teacher, []).append(len(bags[teacher].tokens))
        part["claims_said"].setdefault(teacher, []).append(len(one.claims[teacher]))
    _measure_pairs(one, bags, decisions if consensus else None, part)
    _measure_sides(one, part["laterality"])
    _measure_claims(one, decisions, part)
    _measure_accumulated(one, decisions, part["accumulated"])


def _measure_pairs(one: Heard, bags: dict, decisions: dict | None, part: dict) -> None:
    teachers = sorted(one.says)
    rows = range(len(LABELS))
    for i, a in enumerate(teachers):
        mine = [one.says[a].get(label) for label in LABELS]
        for b in teachers[i + 1 :] + ([CONSENSUS] if decisions is not None else []):
            theirs = decisions if b == CONSENSUS else one.says[b]
            codes = [outcome(said, theirs.get(label)) for said, label in zip(mine, LABELS, strict=True)]
            part["text"].setdefault((a, b), np.zeros(4))[:] += (1.0, *text_measures(bags[a], bags[b]))
            if (a, b) not in part["findings"]:
                part["findings"][a, b] = np.zeros((len(LABELS), len(OUTCOMES)), np.int64)
            part["findings"][a, b][rows, codes] += 1


def _measure_sides(one: Heard, table: np.ndarray) -> None:
    for i, label in enumerate(LABELS):
        if label in SIDELESS:
            continue
        sides = [says[label][1] for says in one.says.values() if label in says and says[label][0] == "present"]
        sides = [side for side in sides if side]
        if len(sides) > 1:
            table[i] += 1, {"left", "right"} <= set(sides), len(set(sides)) > 1


def _measure_claims(one: Heard, decisions: dict, part: dict) -> None:
    for teacher, claims in one.claims.items():
        length = len(one.texts[teacher].rstrip())
        number = part["trajectories"]
        part["trajectories"] += 1
        for claim in claims:
            if claim.state == "uncertain":
                continue
            mine = in_context(claim, one.says[teacher])
            against = [outcome(mine, says.get(claim.label)) for name, says in one.says.items() if name != teacher]
            against = [code in CONFLICTS for code in against if code in COMPARABLE]
            code = outcome(mine, decisions.get(claim.label))
            part["claims"].append(
                (
                    number,
                    part["names"].index(teacher),
                    LABELS.index(claim.label),
                    claim.state == "present",
                    claim.side is not None,
                    depth_bin(claim.start, claim.end, length),
                    sum(against) / len(against) if against else np.nan,
                    float(code in CONFLICTS) if code in COMPARABLE else np.nan,
                )
            )


def _measure_accumulated(one: Heard, decisions: dict, table: np.ndarray) -> None:
    steps = [states_by_depth(one, teacher) for teacher in one.says]
    labels = [label for label in LABELS if any(label in says for says in one.says.values())]
    total = sum(len(says) for says in one.says.values())
    row, before = None, [None] * len(steps)
    for j in range(BINS):
        now = [by_depth[j] for by_depth in steps]
        if row is None or any(a is not b for a, b in zip(now, before, strict=True)):
            row = np.zeros((4, 2))
            row[0] = sum(map(len, now)), total
            for label in labels:
                said = sorted((state.get(label) for state in now), key=str)
                row[1:] += _parting(tuple(said), decisions.get(label))
        table[j] += row
        before = now


@lru_cache(maxsize=1 << 16)
def _parting(said: tuple[Decision | None, ...], decision: Decision | None) -> tuple[tuple[float, float], ...]:
    """(sum, n) of conflict between teachers, of divergence in bits, and of conflict with the consensus; one finding."""

    def rate(codes: list[int]) -> tuple[int, int]:
        return sum(code in CONFLICTS for code in codes), sum(code in COMPARABLE for code in codes)

    pairs = [outcome(a, b) for i, a in enumerate(said) for b in said[i + 1 :]]
    shares = [n / len(said) for n in Counter(a[0] if a else None for a in said).values()]
    bits = -sum(share * math.log2(share) for share in shares)
    return rate(pairs), (bits, 1.0), rate([outcome(a, decision) for a in said])


def merge(total: dict | None, part: dict) -> dict:
    """Add a part's sums to `total` (None: nothing yet) and return it. Memory grows by claims only, 20 bytes each."""
    if total is None:
        total = measure([])
        total["claims"], total["names"] = [], []
    for key in ("counts", "strategies", "sources"):
        total[key].update(part[key])
    for teacher, counts in part["status"].items():
        total["status"].setdefault(teacher, Counter()).update(counts)
    for key in ("tokens", "claims_said"):
        for teacher, values in part[key].items():
            total[key].setdefault(teacher, []).append(np.array(values, np.int32))
    for key in ("text", "findings"):
        for pair, table in part[key].items():
            total[key][pair] = total[key].get(pair, 0) + table
    total["laterality"] += part["laterality"]
    total["accumulated"] += part["accumulated"]
    total["names"] += [name for name in part["names"] if name not in total["names"]]
    claims = part["claims"].copy()
    if len(claims):
        claims["teacher"] = np.array([total["names"].index(name) for name in part["names"]], np.int16)[
            claims["teacher"]
        ]
        claims["trajectory"] += total["trajectories"]
    total["claims"].append(claims)
    total["trajectories"] += part["trajectories"]
    return total
