"""Drift: how far N teachers' texts part, from each other, from the consensus, and along the reasoning.

    bash scripts/drift.sh STUDIES.jsonl [--image-root DIR] [--out DIR] [--sample 40] [--seed 0] [--permutations 1000]

Writes drift.json (every number) and drift.html (one page, no network). Only trajectories with status ok that are no
refusal by their text are compared; the others are counted. docs/drift.md explains each measure; the page prints the
definitions below.
"""

import argparse
import collections
import hashlib
import heapq
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from apo.distances import words
from apo.heard import Decision, Heard, denies_another_side, hear, in_context
from apo.stationarity import BINS, holm, permutation_tests
from data.errors import UserError, run_cli
from data.files import sha256_file, write_atomic
from data.findings import LABELS, SIDELESS, Claim, read_findings, summarise
from data.processes import process_pool
from data.records import read_studies, root_of
from scripts.machine import write_problem

SCHEMA = "drift/1"
CONSENSUS = ""  # stands for the consensus among the teachers' names; no teacher can be called so
CHUNK = 64  # studies a task
OUTCOMES = ("agree", "same_side", "state", "opposed", "partial", "uncertain", "unsupported", "silent")
AGREE, SAME_SIDE, STATE, OPPOSED, PARTIAL, UNCERTAIN, UNSUPPORTED, SILENT = range(len(OUTCOMES))
AGREEMENTS, CONFLICTS = (AGREE, SAME_SIDE), (STATE, OPPOSED, PARTIAL)
COMPARABLE = AGREEMENTS + CONFLICTS
CLAIM = np.dtype(
    [("trajectory", "i4"), ("teacher", "i2"), ("label", "i1"), ("state", "i1"), ("sided", "i1"), ("bin", "i1")]
    + [("conflict", "f4"), ("error", "f4")]
)
DEFINITIONS = {
    "tokens": "Words and numbers in lower case, without punctuation and Markdown.",
    "precision": "Share of a teacher's tokens that the reference text has too, each token as often as in both "
    "(multiset): |A & B| / |A|. Mean over studies.",
    "recall": "Share of the reference's tokens that the teacher's text has too: |A & B| / |B|. Mean over studies.",
    "similarity": "ROUGE-L F1: 2 L / (|A| + |B|), L the longest common subsequence of the two token sequences. "
    "Mean over studies.",
    "reference": "The consensus text where there is one, and each other teacher's text. The paper states neither its "
    "reference nor its metric, so its figure can be compared in shape only.",
    "state": "What a text says of a finding is read by rules (data/findings.py): present, absent or uncertain, with a "
    "side. In the consensus, silence is absent: it drops what has no support.",
    "conflict": "Two texts both speak of a finding without hedging, and one says present and the other absent, or both "
    "say present and name different sides. A claim counts as what its whole text makes of it: left in one sentence and "
    "right in the next is bilateral, and who denies one side does not contradict the other. Rates are shares of the "
    "findings that both speak of without hedging.",
    "laterality": "Opposed: left against right. Partial: bilateral against one side. Rates are shares of the present "
    "findings for which both name a side.",
    "unsupported": "One text says present where the other is silent: counted, no conflict.",
    "depth": "Place of the middle of a claim's sentence in its trajectory, in ten equal parts of its characters.",
    "depth_conflict": "Of one claim: the share of the other teachers who speak of the finding (anywhere in their text, "
    "without hedging) and are in conflict with it. Of a bin: mean over its claims.",
    "depth_error": "Of one claim: 1 if in conflict with the consensus, else 0; hedged ones have none. The consensus "
    "is no truth.",
    "adjusted": "The mean of all claims of the same teacher, finding and state, with a side or without, is taken off, "
    "and the overall mean put back: what is left does not come from what is told early and what late.",
    "accumulated": "After the first j tenths of every text: the share of its final statements that are made; of the "
    "findings that two teachers have both spoken of by then, the share in conflict; the Jensen-Shannon divergence of "
    "the teachers' states (present, absent, uncertain, not yet said) of a finding, in bits: for N teachers in one "
    "state each it is the entropy of their shares; and the share in conflict with the consensus.",
    "test": "Null hypothesis: P_j = P_j+delta, depth does not matter. Cells (the claims of one trajectory in one bin) "
    "exchange their bins within the trajectory. Spread: standard deviation of the bins' means. Lag delta: root mean "
    "square difference of bins delta apart. p = (1 + permuted statistics at least as large) / (1 + permutations), "
    "corrected by Holm within each table.",
}


# --- text -----------------------------------------------------------------------------------------------------------


def lcs_length(masks: dict[str, int], length: int, other: Sequence[str]) -> int:
    """Longest common subsequence of a text (as `positions` of it, and its length) with another, bit-parallel.

    Hyyro 2004, "Bit-parallel LCS-length computation revisited": one addition of `length`-bit numbers a token.
    """
    full = (1 << length) - 1
    v = full
    for word in other:
        u = v & masks.get(word, 0)
        v = ((v + u) | (v - u)) & full
    return length - v.bit_count()


def positions(tokens: Sequence[str]) -> dict[str, int]:
    """For every token the bits of its places."""
    masks: dict[str, int] = {}
    for i, word in enumerate(tokens):
        masks[word] = masks.get(word, 0) | 1 << i
    return masks


class Tokens(NamedTuple):
    """A text made ready for comparing."""

    tokens: list[str]
    counts: Counter
    masks: dict[str, int]  # see `positions`


def tokens_of(text: str) -> Tokens:
    tokens = words(text)
    return Tokens(tokens, Counter(tokens), positions(tokens))


def text_measures(a: Tokens, b: Tokens) -> tuple[float, float, float]:
    """(precision, recall, similarity) of text `a` against the reference `b`; see DEFINITIONS. 0 where one is empty."""
    n, m = len(a.tokens), len(b.tokens)
    if not n or not m:
        return 0.0, 0.0, 0.0
    shared = sum(min(k, b.counts.get(word, 0)) for word, k in a.counts.items())
    return shared / n, shared / m, 2.0 * lcs_length(a.masks, n, b.tokens) / (n + m)


# --- findings -------------------------------------------------------------------------------------------------------


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
        sick = any(state != "absent" for label, (state, _) in said.items() if label != "Support Devices")
        out["No Finding"] = ("absent" if sick else "present", None)
    return out


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


# --- one chunk of studies -------------------------------------------------------------------------------------------


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


# --- results --------------------------------------------------------------------------------------------------------


def _number(value: float, digits: int = 4) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), digits)


def _share(part: float, whole: float) -> float | None:
    return _number(part / whole) if whole else None


def _numbers(array: np.ndarray) -> list:
    return [_numbers(row) if np.ndim(row) else _number(row) for row in array]


def _rates(table: np.ndarray) -> dict:
    """Counts by outcome, and the conflict rate, of int [OUTCOMES]."""
    comparable, conflicts = int(table[list(COMPARABLE)].sum()), int(table[list(CONFLICTS)].sum())
    counts = {name: int(n) for name, n in zip(OUTCOMES, table, strict=True)}
    return {**counts, "comparable": comparable, "conflict": _share(conflicts, comparable)}


def _sides(table: np.ndarray) -> dict:
    same, opposed, partial = (int(table[code]) for code in (SAME_SIDE, OPPOSED, PARTIAL))
    n = same + opposed + partial
    return {"n": n, "opposed": opposed, "partial": partial, "opposed_share": _share(opposed, n)}


def results(total: dict, *, permutations: int, seed: int) -> dict:
    """The content of drift.json, `file` and `sample` apart, from the sums of all studies."""
    teachers = sorted(total["status"])
    heard = [t for t in teachers if t in total["tokens"]]
    with_consensus = total["counts"]["consensus"] > 0

    def pair(what: str, a: str, b: str) -> np.ndarray | None:
        """A table of a pair, kept once a pair: turned round, precision and recall change places."""
        if b == CONSENSUS or a < b or (b, a) not in total[what]:
            return total[what].get((a, b))
        return total[what][b, a][[0, 2, 1, 3]] if what == "text" else total[what][b, a]

    def text(a: str, b: str) -> dict | None:
        row = pair("text", a, b)
        if row is None:
            return None
        p, r, s = (_number(v / row[0]) for v in row[1:])
        return {"precision": p, "recall": r, "similarity": s, "n": int(row[0])}

    def found(a: str, b: str, what=_rates) -> dict | None:
        table = pair("findings", a, b)
        return None if table is None else what(table.sum(0))

    def by_label(tables: Sequence[np.ndarray]) -> dict:
        if not tables:
            return {}
        table = np.sum(tables, axis=0)
        rows = {label: _rates(row) for label, row in zip(LABELS, table, strict=True)}
        return {label: row for label, row in rows.items() if row["comparable"] or row["unsupported"]}

    def tables(teacher: str, others: Sequence[str]) -> list[np.ndarray]:
        found = (pair("findings", teacher, other) for other in others if other != teacher)
        return [table for table in found if table is not None]

    lengths = {}
    for teacher in heard:
        n, claims = np.concatenate(total["tokens"][teacher]), np.concatenate(total["claims_said"][teacher])
        low, median, high = np.quantile(n, (0.1, 0.5, 0.9))
        lengths[teacher] = {
            "tokens_mean": _number(n.mean(), 1),
            "tokens_p10": _number(low, 1),
            "tokens_median": _number(median, 1),
            "tokens_p90": _number(high, 1),
            "claims_mean": _number(claims.mean(), 2),
            "without_a_claim": int((claims == 0).sum()),
        }
    return {
        "schema": SCHEMA,
        "definitions": DEFINITIONS,
        "teachers": teachers,
        "heard": heard,
        "labels": list(LABELS),
        "studies": {
            "n": total["counts"]["studies"],
            "with_consensus": total["counts"]["consensus"],
            "with_a_single_voice": total["counts"]["single"],
            "without_a_voice": total["counts"]["unheard"],
            "trajectories": total["trajectories"],
            "claims": int(sum(len(c) for c in total["claims"])),
            "strategies": dict(total["strategies"]),
            "sources": dict(total["sources"]),
        },
        "status": {
            t: dict(total["status"][t]) | {"not asked": total["counts"]["studies"] - total["status"][t].total()}
            for t in teachers
        },
        "lengths": lengths,
        "text": {
            "consensus": {t: text(t, CONSENSUS) for t in heard} if with_consensus else None,
            "teachers": {t: _mean_text([text(t, b) for b in heard]) for t in heard},
            "pairs": {a: {b: text(a, b) for b in heard if b != a} for a in heard},
        },
        "findings": {
            "consensus": {t: found(t, CONSENSUS) for t in heard} if with_consensus else None,
            "pairs": {a: {b: found(a, b) for b in heard if b != a} for a in heard},
            "by_label": {t: by_label(tables(t, heard)) for t in heard},
            "by_label_consensus": {t: by_label(tables(t, [CONSENSUS])) for t in heard} if with_consensus else None,
        },
        "laterality": {
            "findings": {
                label: {"n": int(n), "opposed": int(o), "differing": int(d), "opposed_share": _share(o, n)}
                for label, (n, o, d) in zip(LABELS, total["laterality"], strict=True)
                if n
            },
            "pairs": {a: {b: found(a, b, _sides) for b in heard if b != a} for a in heard},
            "consensus": {t: found(t, CONSENSUS, _sides) for t in heard} if with_consensus else None,
        },
        "depth": depth_results(total, heard, permutations=permutations, seed=seed),
    }


def _mean_text(rows: Sequence[dict | None]) -> dict | None:
    rows = [row for row in rows if row]
    if not rows:
        return None
    return {k: _number(np.mean([row[k] for row in rows])) for k in ("precision", "recall", "similarity")}


def depth_results(total: dict, heard: Sequence[str], *, permutations: int, seed: int) -> dict:
    """Drift along the reasoning: conflict (and error against the consensus) by depth, raw and adjusted, with tests."""
    claims = np.concatenate(total["claims"]) if total["claims"] else np.zeros(0, CLAIM)
    group_of = np.array([heard.index(name) if name in heard else -1 for name in total["names"]], np.int64)
    out: dict = {"bins": BINS, "permutations": permutations, "seed": seed, "accumulated": {}}
    names = ("stated", "conflict", "divergence_bits", "error")
    for k, name in enumerate(names):
        out["accumulated"][name] = [_share(*row) for row in total["accumulated"][:, k]]
    for measure_name in ("conflict", "error"):
        use = claims[~np.isnan(claims[measure_name])]
        if not len(use):
            out[measure_name] = None
            continue
        group, value = group_of[use["teacher"]], use[measure_name].astype(np.float64)
        stratum = ((group * len(LABELS) + use["label"]) * 2 + use["state"]) * 2 + use["sided"]
        n = np.maximum(np.bincount(stratum), 1)
        adjusted = value - (np.bincount(stratum, value) / n)[stratum] + value.mean()
        tests = permutation_tests(
            use["trajectory"],
            group,
            use["bin"].astype(np.int64),
            np.stack([value, adjusted], 1),
            groups=len(heard),
            permutations=permutations,
            seed=seed,
        )
        one: dict = {"claims": len(use), "trajectories_tested": tests.trajectories}
        one["counts"] = {"all": tests.counts[-1].astype(int).tolist()}
        one["counts"] |= {t: tests.counts[i].astype(int).tolist() for i, t in enumerate(heard)}
        for v, form in enumerate(("raw", "adjusted")):
            spread_holm, lag_holm = holm(tests.spread_p[v]), holm(tests.lag_p[v])
            rows = [("all", len(heard)), *((t, i) for i, t in enumerate(heard))]
            one[form] = {
                "means": {t: _numbers(tests.means[v, i]) for t, i in rows},
                "spread": [
                    {
                        "teacher": t,
                        "statistic": _number(tests.spread[v, i]),
                        "p": _number(tests.spread_p[v, i], 6),
                        "p_holm": _number(spread_holm[i], 6),
                    }
                    for t, i in rows
                ],
                "lags": [
                    {
                        "delta": delta + 1,
                        "statistic": _number(tests.lag[v, delta]),
                        "p": _number(tests.lag_p[v, delta], 6),
                        "p_holm": _number(lag_holm[delta], 6),
                    }
                    for delta in range(BINS - 1)
                    if not np.isnan(tests.lag[v, delta])
                ],
            }
        out[measure_name] = one
    return out


# --- the run --------------------------------------------------------------------------------------------------------


def parts(studies: Iterable[dict], workers: int) -> Iterator[dict]:
    """`measure` of all studies, a chunk at a time and in order; never more than a few chunks are in memory."""
    studies = iter(studies)
    if workers == 1:
        while chunk := list(islice(studies, CHUNK)):
            yield measure(chunk)
        return
    with process_pool(workers) as pool:
        waiting: collections.deque = collections.deque()
        while True:
            while len(waiting) < 2 * workers and (chunk := list(islice(studies, CHUNK))):
                waiting.append(pool.submit(measure, chunk))
            if not waiting:
                return
            yield waiting.popleft().result()


class Sampler:
    """Keeps the `size` studies with the smallest hash of seed and id: a random choice that no file order changes."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self.heap: list[tuple[int, int, dict]] = []
        self.seen = 0  # studies with an ok trajectory

    def watch(self, studies: Iterable[dict]) -> Iterator[dict]:
        for place, study in enumerate(studies):
            if any(t["status"] == "ok" for t in study["trajectories"]):
                self.seen += 1
                lot = int.from_bytes(hashlib.sha256(f"{self.seed}:{study['id']}".encode()).digest()[:8], "big")
                heapq.heappush(self.heap, (-lot, place, study))
                if len(self.heap) > self.size:
                    heapq.heappop(self.heap)
            yield study

    def chosen(self) -> list[dict]:
        """In file order."""
        return [study for _, _, study in sorted(self.heap, key=lambda row: row[1])]


def count_lines(path: str | os.PathLike[str]) -> int:
    """Lines of a file that are not blank, for the progress line; 0 where it cannot be read (the reader says why)."""
    try:
        with open(path, "rb") as source:
            return sum(not line.isspace() for line in source)
    except (OSError, ValueError):
        return 0


def run(
    path: Path, *, sample: int, seed: int, permutations: int, workers: int, image_root: Path | None = None
) -> tuple[dict, list[dict]]:
    """(content of drift.json, the sampled study records). Progress goes to stderr.

    Raises UserError for a bad record, an empty file, or one in which no trajectory can be compared.
    """
    lines = count_lines(path)
    sampler = Sampler(sample, seed)
    studies = sampler.watch(read_studies(path, image_root=image_root))
    total, start, shown = None, time.monotonic(), 0.0
    for part in parts(studies, workers if lines > 4 * CHUNK else 1):
        total = merge(total, part)
        now = time.monotonic()
        if now - shown >= 5:
            shown, done = now, total["counts"]["studies"]
            rate = done / (now - start)
            left = max(lines - done, 0) / rate
            print(f"drift: {done}/{lines} studies, {rate:.0f} a second, about {left:.0f} s left", file=sys.stderr)
    if total is None:
        raise UserError(f"{path}: holds no study")
    if not total["trajectories"]:
        counts = sum(total["status"].values(), Counter())
        what = ", ".join(f"{n} {status}" for status, n in counts.items()) or "none at all"
        raise UserError(f"{path}: no trajectory can be compared ({what}); collect answers first")
    read_seconds = time.monotonic() - start
    print(f"drift: {total['counts']['studies']} studies read in {read_seconds:.0f} s; permutations", file=sys.stderr)
    found = results(total, permutations=permutations, seed=seed)
    found["file"] = {"name": Path(path).name, "sha256": sha256_file(path)}
    chosen = sampler.chosen()
    found["sample"] = {"shown": len(chosen), "of": sampler.seen, "seed": seed, "ids": [s["id"] for s in chosen]}
    found["seconds"] = {"reading": round(read_seconds, 1), "all": round(time.monotonic() - start, 1)}
    return found, chosen


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/drift.sh", description=__doc__.split("\n\n")[0])
    parser.add_argument("studies", type=Path, metavar="STUDIES.jsonl", help="study records with trajectories")
    parser.add_argument("--image-root", type=Path, help="what image paths are relative to (default: folder of STUDIES)")
    parser.add_argument("--out", type=Path, default=Path("runs/drift"), help="folder (default: runs/drift)")
    parser.add_argument("--sample", type=int, default=40, help="studies shown on the page (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of sample and permutations (default: 0)")
    parser.add_argument("--permutations", type=int, default=1000, help="of each test (default: 1000)")
    parser.add_argument("--workers", type=int, help="processes (default: one a CPU, at most 8)")
    args = parser.parse_args(argv)
    for name, least in (("sample", 0), ("seed", 0), ("permutations", 1), ("workers", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: must be at least {least}")
    if problem := write_problem("--out", args.out):
        raise UserError(problem)
    return args


def main(argv: list[str] | None = None) -> None:
    from apo import drift_page

    args = parse_args(argv)
    root = root_of(args.studies, args.image_root)
    workers = args.workers or min(len(os.sched_getaffinity(0)), 8)
    found, chosen = run(
        args.studies,
        sample=args.sample,
        seed=args.seed,
        permutations=args.permutations,
        workers=workers,
        image_root=args.image_root,
    )
    page, missing = drift_page.render(found, chosen, root)
    found["sample"]["films_missing"] = missing
    write_atomic(args.out / "drift.json", json.dumps(found, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    write_atomic(args.out / "drift.html", page)
    print(summary(found, len(page.encode())))
    print(f"written: {args.out / 'drift.json'} and {args.out / 'drift.html'}")


def summary(found: dict, size: int) -> str:
    """What a run found, in a few lines."""
    studies, status = found["studies"], Counter()
    for counts in found["status"].values():
        status.update(counts)
    voiceless = ", ".join(f"{n} {name}" for name, n in sorted(status.items()) if n and name != "ok")
    lines = [
        f"drift: {studies['n']} studies, {len(found['teachers'])} teachers, {studies['trajectories']} trajectories "
        f"compared, {studies['with_consensus']} with a consensus",
        f"not compared: {voiceless or 'none'}; studies without a voice: {studies['without_a_voice']}, with one only: "
        f"{studies['with_a_single_voice']}",
    ]
    if not studies["with_consensus"]:
        lines.append("note: no consensus in the file; add one with scripts/compare.sh to measure against it")
    shown = f"page: {found['sample']['shown']} of {found['sample']['of']} studies shown, seed {found['sample']['seed']}"
    lines.append(f"{shown}, {size / 1e6:.1f} MB, films missing: {found['sample']['films_missing']}")
    if size > 5_000_000:
        lines.append("note: a page of this size opens slowly; lower --sample")
    return "\n".join(lines)


if __name__ == "__main__":
    run_cli(main)
