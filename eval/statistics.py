"""Intervals and tests for results: bootstrap by patient, AUC, DeLong, McNemar, randomisation, Holm. Needs no torch.

The rules, stated once:

- Intervals are percentile intervals over resamples of **patients**: all items of a drawn patient come together, because
  their errors hang together. A resample in which a number is not defined (an AUC without both classes) is skipped and
  counted; when more than half are skipped there is no interval, since what is left says nothing about such data.
- All tests are two-sided. McNemar and DeLong take items as independent; where patients repeat, their p is too small and
  the paired bootstrap by patient is the number to trust.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from scipy.stats import norm, rankdata

from data.errors import UserError

LEVEL = 0.95  # of every interval
BINS = 10  # of probabilities, equal in width


def interval(samples: np.ndarray) -> list[float]:
    """Percentile interval [low, high]."""
    tail = (1 - LEVEL) / 2
    return [float(x) for x in np.quantile(samples, [tail, 1 - tail])]


def draws_of(patients: Sequence[str], resamples: int, seed: int) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """(index [n] of each item's patient, an iterator over `resamples` arrays [patients]: how often each was drawn)."""
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    rng, even = np.random.default_rng(seed), np.full(len(names), 1 / len(names))
    return index, (rng.multinomial(len(names), even) for _ in range(resamples))


def patient_draws(patients: Sequence[str], resamples: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap by patient: films of one patient are drawn together, because their errors hang together.

    Returns (index [n] of each study's patient, counts [resamples, patients]: how often a resample drew the patient).
    """
    index, draws = draws_of(patients, resamples, seed)
    return index, np.stack(list(draws))


def bootstrap(
    patients: Sequence[str],
    statistics: Callable[[np.ndarray], Sequence[float]],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[dict]:
    """Percentile intervals of any numbers by patient, all over the same draws.

    Args:
        patients: patient of each item [n].
        statistics: maps counts [n] (how often an item is drawn, integers) to the numbers, NaN where one is not defined.

    Returns {"low", "high" (None when more than half of the resamples are skipped), "skipped_resamples"} by number.
    Raises UserError without an item, and without a resample.
    """
    if not len(patients):
        raise UserError("no item to resample; check the predictions and --limit")
    if resamples < 1:
        raise UserError(f"{resamples} resamples: at least 1")
    index, draws = draws_of(patients, resamples, seed)
    samples = np.array([statistics(counts[index]) for counts in draws], float)
    out = []
    for column in samples.T:
        kept = column[~np.isnan(column)]
        low, high = interval(kept) if 2 * len(kept) >= resamples else (None, None)
        out.append({"low": low, "high": high, "skipped_resamples": int(resamples - len(kept))})
    return out


class Auc:
    """Area under the ROC curve of one label, prepared for thousands of resamples: the scores are sorted once.

    Equal to scikit-learn's `roc_auc_score(truth, scores, sample_weight=counts)`, which is too slow for 192 labels times
    1,000 resamples of 39,053 films.

    Args:
        truth: 0/1 or boolean [n]; scores: [n], higher means present.
    """

    def __init__(self, truth: Sequence, scores: Sequence[float]):
        truth, scores = np.asarray(truth, bool), np.asarray(scores, float)
        if truth.shape != scores.shape or truth.ndim != 1:
            raise ValueError(f"{truth.shape} truths and {scores.shape} scores")
        if not np.isfinite(scores).all():
            raise UserError("a score is not a finite number; score the benchmark again")
        self.order = np.argsort(scores, kind="stable")
        self.truth = truth[self.order]
        ordered = scores[self.order]
        self.starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.array([], int)

    def __call__(self, counts: np.ndarray | None = None) -> float:
        """AUC with every item counted `counts` [n] times (once by default); NaN without both classes."""
        weights = np.ones(len(self.order)) if counts is None else counts[self.order].astype(float)
        positive = weights * self.truth
        total, hits = weights.sum(), positive.sum()
        if not 0 < hits < total:
            return float("nan")
        # Mann-Whitney: for every group of equal scores, the negatives below and half of those beside its positives.
        positive = np.add.reduceat(positive, self.starts)
        negative = np.add.reduceat(weights, self.starts) - positive
        return float(positive @ (np.cumsum(negative) - negative / 2) / (hits * (total - hits)))


def auc(truth: Sequence, scores: Sequence[float]) -> float | None:
    """Area under the ROC curve, ties counted half; None when the truth has only one class."""
    value = Auc(truth, scores)()
    return None if np.isnan(value) else value


def delong(truth: Sequence, score_a: Sequence[float], score_b: Sequence[float]) -> dict:
    """Test of two correlated AUCs on the same items: DeLong et al. 1988, Biometrics 44:837, by the mid-ranks of Sun and
    Xu 2014, IEEE Signal Process Lett 21:1389. Returns {"auc_a", "auc_b", "difference" (a minus b), "low", "high", "p"};
    the interval is the normal one. p is 1 when the two rank alike; it is None with fewer than two items of a class and
    for a difference with an estimated variance of 0 (perfect against constant scores), where the test says nothing."""
    truth = np.asarray(truth, bool)
    scores = np.stack([np.asarray(score_a, float), np.asarray(score_b, float)])
    positive, negative = scores[:, truth], scores[:, ~truth]
    m, n = positive.shape[1], negative.shape[1]
    if not m or not n:
        raise UserError("DeLong: the truth has one class only, an AUC is not defined; leave the label out")
    ranks = rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    of_positive = (ranks[:, :m] - rankdata(positive, axis=1)) / n  # share of negatives below each positive
    of_negative = 1 - (ranks[:, m:] - rankdata(negative, axis=1)) / m  # share of positives above each negative
    a, b = of_positive.mean(1)
    row = {"auc_a": float(a), "auc_b": float(b), "difference": float(a - b)}
    if m < 2 or n < 2:
        return row | {"low": None, "high": None, "p": None}
    contrast = np.array([1.0, -1.0])
    variance = contrast @ (np.cov(of_positive) / m + np.cov(of_negative) / n) @ contrast
    spread = float(np.sqrt(max(variance, 0.0)))
    reach = float(norm.ppf((1 + LEVEL) / 2)) * spread
    same = abs(a - b) < 1e-12
    # Without spread the statistic is 0/0: no difference at all, or one that the normal approximation cannot judge.
    p = float(2 * norm.sf(abs(a - b) / spread)) if spread > 1e-12 else 1.0 if same else None
    return row | {"low": float(a - b - reach), "high": float(a - b + reach), "p": p}


def mcnemar(a_correct: Sequence, b_correct: Sequence) -> float:
    """Exact McNemar p for two systems' right and wrong answers to the same items; 1 when they never differ."""
    from statsmodels.stats.contingency_tables import mcnemar as exact_mcnemar

    a, b = np.asarray(a_correct, bool), np.asarray(b_correct, bool)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} answers against {b.shape}")
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    return float(exact_mcnemar(table, exact=True).pvalue)


def approximate_randomisation(
    a: Sequence,
    b: Sequence,
    statistic: Callable[[np.ndarray], float] = np.mean,
    *,
    rounds: int = 10_000,
    seed: int = 0,
    patients: Sequence[str] | None = None,
) -> float:
    """p of |statistic(a) - statistic(b)| when the two systems' outputs are exchanged at random, item by item.

    (count + 1) / (rounds + 1) as Phipson and Smyth 2010, Stat Appl Genet Mol Biol 9:39, so p is never 0.

    Args:
        a, b: one number, or one row of numbers (n-gram counts of a corpus metric), for each item [n] or [n, k].
        statistic: maps such an array to a number.
        patients: patient of each item [n]; all items of a patient are then exchanged together.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or not len(a):
        raise ValueError(f"{a.shape} outputs against {b.shape}")
    index = np.arange(len(a)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    groups = int(index.max()) + 1
    rng = np.random.default_rng(seed)
    # A hair below: a round that only rounding puts beneath the observed difference must count as equal to it.
    observed = abs(statistic(a) - statistic(b)) * (1 - 1e-12) - 1e-15
    count = 0
    for _ in range(rounds):
        swap = (rng.random(groups) < 0.5)[index].reshape(-1, *[1] * (a.ndim - 1))
        count += abs(statistic(np.where(swap, b, a)) - statistic(np.where(swap, a, b))) >= observed
    return (count + 1) / (rounds + 1)


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """p values adjusted by Holm for their number; one that is None (not defined) stays None and is not counted."""
    from statsmodels.stats.multitest import multipletests

    given = [name for name, p in p_values.items() if p is not None]
    adjusted = multipletests([p_values[name] for name in given], method="holm")[1] if given else []
    found = dict(zip(given, map(float, adjusted), strict=True))
    return {name: found.get(name) for name in p_values}


def calibration(truth: Sequence[bool], probability: Sequence[float]) -> dict[str, float | int | None]:
    """Brier score, expected calibration error over BINS bins of equal width (Naeini et al. 2015), AUC, and n.

    The AUC is null where all are present or all absent; everything is null for n = 0.
    """
    from sklearn.metrics import brier_score_loss, roc_auc_score

    there, p = np.asarray(truth, bool), np.asarray(probability, float)
    if not len(p):
        return {"n": 0, "brier": None, "ece": None, "auc": None}
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    gaps = [abs(p[place == b].mean() - there[place == b].mean()) * (place == b).mean() for b in set(place.tolist())]
    both = there.any() and not there.all()
    return {
        "n": len(p),
        "brier": float(brier_score_loss(there, p, pos_label=True)),
        "ece": float(sum(gaps)),
        "auc": float(roc_auc_score(there, p)) if both else None,
    }
