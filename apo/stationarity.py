"""Does what teachers claim change along their texts? A permutation test of P_j = P_j+delta, with Holm's correction.

    found = permutation_tests(trajectory, teacher, depth_bin, values, groups=7, permutations=1000, seed=0)

Every claim has a trajectory, a relative depth (one of BINS bins) and a value, e.g. 1 if it is in conflict with another
teacher. The claims of one trajectory in one bin are a cell. Under the null hypothesis depth does not matter, and the
cells of a trajectory may exchange their bins: that is what is drawn, within each trajectory, so that differences
between films and between teachers stay as they are. Cells and not claims, because "no effusion, edema or pneumothorax"
is said in one breath.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BINS = 10


class Tests(NamedTuple):
    """For V columns of values; the last of groups + 1 is all groups together.

    means, counts: [V, groups + 1, BINS] mean value and [groups + 1, BINS] number of claims by bin (nan, 0 where none).
    spread, spread_p: [V, groups + 1] standard deviation of the bins' means about the overall mean, weighted by claims.
    lag, lag_p: [V, BINS - 1] for delta = 1..BINS-1, all groups together: root mean square difference of the means of
        bins delta apart, weighted by n_j n_j+delta / (n_j + n_j+delta); nan where no two bins have claims.
    A p-value is nan where nothing is tested: no statistic, or no trajectory (of that group) with claims in two bins.
    trajectories: how many have claims in two bins or more; only these can tell anything.
    """

    means: np.ndarray
    counts: np.ndarray
    spread: np.ndarray
    spread_p: np.ndarray
    lag: np.ndarray
    lag_p: np.ndarray
    trajectories: int


def permutation_tests(
    trajectory: np.ndarray,
    group: np.ndarray,
    bins: np.ndarray,
    values: np.ndarray,
    *,
    groups: int,
    permutations: int,
    seed: int,
) -> Tests:
    """Test each group and all together for equal means in all bins.

    Args:
        trajectory: [n] integer, one number a trajectory; group: [n] in 0..groups-1, the same within a trajectory.
        bins: [n] in 0..BINS-1.
        values: [n, V]; the columns share their permutations.
        permutations: B; a p-value is (1 + number of permuted statistics >= the observed one) / (1 + B).
    """
    values = np.asarray(values, np.float64).reshape(len(trajectory), -1)
    _, number = np.unique(trajectory, return_inverse=True)
    key, inverse = np.unique(number.astype(np.int64) * BINS + bins, return_inverse=True)
    count = np.bincount(inverse, minlength=len(key)).astype(np.float64)
    sums = np.stack([np.bincount(inverse, column, minlength=len(key)) for column in values.T])
    cell_group = np.zeros(len(key), np.int64)
    cell_group[inverse] = group
    cell_bin, owner = key % BINS, key // BINS
    # Keys are sorted, so that a trajectory's cells stand together: rows of equal width can be shuffled at once.
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    width = np.diff(np.append(first, len(key)))
    blocks = [first[width == k][:, None] + np.arange(k) for k in range(2, BINS + 1) if (width == k).any()]

    def tables(bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at, size = cell_group * BINS + bins, groups * BINS
        n = np.bincount(at, count, minlength=size).reshape(groups, BINS)
        s = np.stack([np.bincount(at, row, minlength=size).reshape(groups, BINS) for row in sums])
        return np.vstack([n, n.sum(0)]), np.concatenate([s, s.sum(1, keepdims=True)], 1)

    n, s = tables(cell_bin)
    spread, lag = _statistics(n, s)
    above_spread, above_lag = np.ones_like(spread), np.ones_like(lag)
    rng = np.random.default_rng(seed)
    shuffled = cell_bin.copy()
    for _ in range(permutations):
        for rows in blocks:
            order = rng.random(rows.shape, dtype=np.float32).argsort(1)
            shuffled[rows] = np.take_along_axis(cell_bin[rows], order, 1)
        other_spread, other_lag = _statistics(*tables(shuffled))
        # Equal statistics differ in the last digits, for the order of summation.
        above_spread += ~(other_spread < spread - 1e-9)
        above_lag += ~(other_lag < lag - 1e-9)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(n > 0, s / n, np.nan)
    total = 1.0 + permutations
    # A p of 1 would make the others' correction (`holm`) stricter for a test that cannot reject.
    tested = np.zeros(groups + 1, bool)
    for rows in blocks:
        tested[cell_group[rows[:, 0]]] = tested[groups] = True
    spread_p = np.where(tested, above_spread / total, np.nan)
    lag_p = np.where(tested[groups] & ~np.isnan(lag), above_lag / total, np.nan)
    return Tests(means, n, spread, spread_p, lag, lag_p, sum(len(rows) for rows in blocks))


def _statistics(n: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """spread [V, G] and lag [V, BINS - 1] of counts [G, BINS] and sums [V, G, BINS]; lag is that of the last group."""
    safe = np.maximum(n, 1e-12)
    means = s / safe
    total = np.maximum(n.sum(-1), 1e-12)
    overall = s.sum(-1) / total
    spread = np.sqrt((n * (means - overall[..., None]) ** 2).sum(-1) / total)
    m, k = means[:, -1], n[-1]
    lag = np.full((len(m), BINS - 1), np.nan)
    for delta in range(1, BINS):
        weight = k[:-delta] * k[delta:] / np.maximum(k[:-delta] + k[delta:], 1e-12)
        if weight.sum() > 0:
            lag[:, delta - 1] = np.sqrt((weight * (m[:, delta:] - m[:, :-delta]) ** 2).sum(-1) / weight.sum())
    return spread, lag


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979, Scand J Stat 6:65-70) of a family of p-values; nan is left out of it."""
    p = np.asarray(p, float)
    out = np.full(len(p), np.nan)
    order = [i for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, (len(order) - rank) * p[i])
        out[i] = min(running, 1.0)
    return out.tolist()
