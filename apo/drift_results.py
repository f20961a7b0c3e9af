"""The sums of apo/drift_measures.py -> the content of drift.json, with what each number means."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from apo.drift_measures import CLAIM, CONSENSUS
from apo.drift_outcomes import COMPARABLE, CONFLICTS, OPPOSED, OUTCOMES, PARTIAL, SAME_SIDE
from apo.stationarity import BINS, Tests, holm, permutation_tests
from data.findings_lexicon import LABELS

SCHEMA = "drift/1"
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
    "right in the next is bilateral, and a text that only denies a side denies the finding. Rates are shares of the "
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
    counts = total["counts"]

    def with_consensus(of_teacher: Callable[[str], dict | None]) -> dict | None:
        return {t: of_teacher(t) for t in heard} if counts["consensus"] else None

    def pairs(of_pair: Callable[[str, str], dict | None]) -> dict:
        return {a: {b: of_pair(a, b) for b in heard if b != a} for a in heard}

    return {
        "schema": SCHEMA,
        "definitions": DEFINITIONS,
        "teachers": teachers,
        "heard": heard,
        "labels": list(LABELS),
        "studies": {
            "n": counts["studies"],
            "with_consensus": counts["consensus"],
            "with_a_single_voice": counts["single"],
            "without_a_voice": counts["unheard"],
            "trajectories": total["trajectories"],
            "claims": int(sum(len(c) for c in total["claims"])),
            "strategies": dict(total["strategies"]),
            "sources": dict(total["sources"]),
        },
        "status": {
            t: dict(total["status"][t]) | {"not asked": counts["studies"] - total["status"][t].total()}
            for t in teachers
        },
        "lengths": {t: _lengths(total["tokens"][t], total["claims_said"][t]) for t in heard},
        "text": {
            "consensus": with_consensus(lambda t: _text(total, t, CONSENSUS)),
            "teachers": {t: _mean_text([_text(total, t, b) for b in heard]) for t in heard},
            "pairs": pairs(lambda a, b: _text(total, a, b)),
        },
        "findings": {
            "consensus": with_consensus(lambda t: _found(total, t, CONSENSUS, _rates)),
            "pairs": pairs(lambda a, b: _found(total, a, b, _rates)),
            "by_label": {t: _by_label(total, t, heard) for t in heard},
            "by_label_consensus": with_consensus(lambda t: _by_label(total, t, [CONSENSUS])),
        },
        "laterality": {
            "findings": {
                label: {"n": int(n), "opposed": int(o), "differing": int(d), "opposed_share": _share(o, n)}
                for label, (n, o, d) in zip(LABELS, total["laterality"], strict=True)
                if n
            },
            "pairs": pairs(lambda a, b: _found(total, a, b, _sides)),
            "consensus": with_consensus(lambda t: _found(total, t, CONSENSUS, _sides)),
        },
        "depth": depth_results(total, heard, permutations=permutations, seed=seed),
    }


def _lengths(tokens: Sequence[np.ndarray], claims: Sequence[np.ndarray]) -> dict:
    n, claims = np.concatenate(tokens), np.concatenate(claims)
    low, median, high = np.quantile(n, (0.1, 0.5, 0.9))
    return {
        "tokens_mean": _number(n.mean(), 1),
        "tokens_p10": _number(low, 1),
        "tokens_median": _number(median, 1),
        "tokens_p90": _number(high, 1),
        "claims_mean": _number(claims.mean(), 2),
        "without_a_claim": int((claims == 0).sum()),
    }


def _pair(total: dict, what: str, a: str, b: str) -> np.ndarray | None:
    """The table of a pair, which is kept once a pair: turned round, precision and recall change places."""
    if b == CONSENSUS or a < b or (b, a) not in total[what]:
        return total[what].get((a, b))
    return total[what][b, a][[0, 2, 1, 3]] if what == "text" else total[what][b, a]


def _text(total: dict, a: str, b: str) -> dict | None:
    row = _pair(total, "text", a, b)
    if row is None:
        return None
    p, r, s = (_number(v / row[0]) for v in row[1:])
    return {"precision": p, "recall": r, "similarity": s, "n": int(row[0])}


def _mean_text(rows: Sequence[dict | None]) -> dict | None:
    rows = [row for row in rows if row]
    if not rows:
        return None
    return {k: _number(np.mean([row[k] for row in rows])) for k in ("precision", "recall", "similarity")}


def _found(total: dict, a: str, b: str, what: Callable[[np.ndarray], dict]) -> dict | None:
    table = _pair(total, "findings", a, b)
    return None if table is None else what(table.sum(0))


def _by_label(total: dict, teacher: str, others: Sequence[str]) -> dict:
    found = (_pair(total, "findings", teacher, other) for other in others if other != teacher)
    tables = [table for table in found if table is not None]
    if not tables:
        return {}
    rows = {label: _rates(row) for label, row in zip(LABELS, np.sum(tables, axis=0), strict=True)}
    return {label: row for label, row in rows.items() if row["comparable"] or row["unsupported"]}


def depth_results(total: dict, heard: Sequence[str], *, permutations: int, seed: int) -> dict:
    """Drift along the reasoning: conflict (and error against the consensus) by depth, raw and adjusted, with tests."""
    claims = np.concatenate(total["claims"]) if total["claims"] else np.zeros(0, CLAIM)
    group_of = np.array([heard.index(name) if name in heard else -1 for name in total["names"]], np.int64)
    names = ("stated", "conflict", "divergence_bits", "error")
    accumulated = {name: [_share(*row) for row in total["accumulated"][:, k]] for k, name in enumerate(names)}
    out: dict = {"bins": BINS, "permutations": permutations, "seed": seed, "accumulated": accumulated}
    for measure in ("conflict", "error"):
        use = claims[~np.isnan(claims[measure])]
        group, value = group_of[use["teacher"]], use[measure].astype(np.float64)
        out[measure] = _by_depth(use, group, value, heard, permutations, seed) if len(use) else None
    return out


def _by_depth(
    use: np.ndarray, group: np.ndarray, value: np.ndarray, heard: Sequence[str], permutations: int, seed: int
) -> dict:
    """One measure, `value` [claims], of the claims `use` by teacher (`group`) and depth."""
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
    rows = [("all", len(heard)), *((t, i) for i, t in enumerate(heard))]
    return {
        "claims": len(use),
        "trajectories_tested": tests.trajectories,
        "counts": {t: tests.counts[i].astype(int).tolist() for t, i in rows},
        "raw": _tested(tests, 0, rows),
        "adjusted": _tested(tests, 1, rows),
    }


def _tested(tests: Tests, v: int, rows: Sequence[tuple[str, int]]) -> dict:
    """Means and tests of value `v`, of all and of each teacher."""

    def row(statistic: float, p: float, p_holm: float) -> dict:
        return {"statistic": _number(statistic), "p": _number(p, 6), "p_holm": _number(p_holm, 6)}

    spread_holm, lag_holm = holm(tests.spread_p[v]), holm(tests.lag_p[v])
    return {
        "means": {t: _numbers(tests.means[v, i]) for t, i in rows},
        "spread": [{"teacher": t} | row(tests.spread[v, i], tests.spread_p[v, i], spread_holm[i]) for t, i in rows],
        "lags": [
            {"delta": lag + 1} | row(tests.lag[v, lag], tests.lag_p[v, lag], lag_holm[lag])
            for lag in range(BINS - 1)
            if not np.isnan(tests.lag[v, lag])
        ],
    }
