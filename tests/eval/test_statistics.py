import math

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from data.errors import UserError
from eval import statistics

RNG_SEED = 20260


def scored(n=300, *, share=0.3, ties=True, seed=RNG_SEED):
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < share
    scores = truth * 0.5 + rng.normal(size=n)
    return truth, np.round(scores, 1) if ties else scores


@pytest.mark.parametrize("ties", [True, False])
def test_auc_is_that_of_scikit_learn_plain_and_with_counts(ties):
    truth, scores = scored(ties=ties)
    assert statistics.auc(truth, scores) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    prepared = statistics.Auc(truth, scores)
    for seed in range(5):
        counts = np.random.default_rng(seed).integers(0, 4, len(truth))
        assert prepared(counts) == pytest.approx(roc_auc_score(truth, scores, sample_weight=counts), abs=1e-12)


def test_auc_with_one_class_is_not_defined_and_constant_scores_are_a_half():
    assert statistics.auc([1, 1], [0.1, 0.2]) is None and statistics.auc([0], [0.1]) is None
    assert statistics.auc([], []) is None
    assert statistics.auc([0, 1, 1], [0.3] * 3) == 0.5
    with pytest.raises(UserError, match="finite"):
        statistics.auc([0, 1], [0.1, float("nan")])


def repeated(patients, statistic, **options):
    """The interval of one number, by its definition: `statistic` gets the indices of the items, one drawn twice twice.
    None is not defined."""

    def numbers(counts):
        value = statistic(np.repeat(np.arange(len(counts)), counts))
        return [np.nan if value is None else value]

    return statistics.bootstrap(patients, numbers, **options)[0]


def test_bootstrap_draws_whole_patients_and_is_deterministic():
    patients, values = ["a", "a", "b", "c"], np.array([1.0, 0.0, 0.0, 1.0])
    seen = []

    def mean(indices):
        seen.append(indices)
        return float(values[indices].mean())

    first = repeated(patients, mean, resamples=200, seed=5)
    for indices in seen:
        counts = np.bincount(indices, minlength=4)
        assert counts[0] == counts[1] and counts[0] + counts[2] + counts[3] == 3
    assert first == repeated(patients, mean, resamples=200, seed=5)
    wide = [str(i) for i in range(9)]
    numbers = np.arange(9.0) ** 2
    one, two = (repeated(wide, lambda i: numbers[i].mean(), resamples=50, seed=seed) for seed in (5, 6))
    assert one != two
    assert 0 <= first["low"] < 0.5 < first["high"] <= 1 and first["skipped_resamples"] == 0


def test_bootstrap_equals_drawing_by_hand():
    patients, values = ["p", "q", "q", "r"], np.array([0.0, 1.0, 3.0, 8.0])
    index, draws = statistics.patient_draws(patients, 300, seed=1)
    by_hand = [np.repeat(values, draw[index]).mean() for draw in draws]
    found = repeated(patients, lambda i: float(values[i].mean()), resamples=300, seed=1)
    assert [found["low"], found["high"]] == pytest.approx(list(np.quantile(by_hand, [0.025, 0.975])))


def test_resamples_in_which_a_number_is_not_defined_are_counted():
    truth, scores = np.array([1, 0, 0, 0]), np.array([0.9, 0.1, 0.95, 0.2])
    found = repeated(list("abcd"), lambda i: statistics.auc(truth[i], scores[i]), resamples=400, seed=0)
    # The only positive is absent from a resample of four with chance (3/4)^4; four times it, with (1/4)^4.
    expected = 400 * ((3 / 4) ** 4 + (1 / 4) ** 4)
    assert abs(found["skipped_resamples"] - expected) < 40
    assert found["low"] is not None
    rare = repeated(list("abcd"), lambda i: 1.0 if (i == 0).sum() > 1 else None, resamples=400, seed=0)
    assert rare["skipped_resamples"] > 200 and rare["low"] is rare["high"] is None
    with pytest.raises(UserError, match="no item"):
        repeated([], lambda i: 0.0)


def test_several_numbers_at_once_are_those_one_by_one():
    truth, scores = scored(80)
    patients = [str(i // 2) for i in range(80)]
    prepared = statistics.Auc(truth, scores)

    def both(counts):
        return [prepared(counts), float(counts @ truth / counts.sum())]

    together = statistics.bootstrap(patients, both, resamples=100, seed=2)
    one = repeated(patients, lambda i: statistics.auc(truth[i], scores[i]), resamples=100, seed=2)
    assert together[0] == pytest.approx(one)
    assert together[1]["low"] == pytest.approx(
        repeated(patients, lambda i: truth[i].mean(), resamples=100, seed=2)["low"]
    )


def test_delong_computed_by_hand():
    # Positives 1, 2; negatives 3, 4. Shares of negatives below a positive: A (1, 1/2), B (1/4, 1/2), ties half.
    # Shares of positives above a negative: A (1/2, 1), B (3/4, 0). AUC 3/4 and 3/8.
    found = statistics.delong([1, 1, 0, 0], [0.9, 0.4, 0.5, 0.1], [0.6, 0.7, 0.6, 0.8])
    # Differences (3/4, 0) and (-1/4, 1): variances 9/32 and 25/32, each over two items.
    variance = 9 / 64 + 25 / 64
    z = (3 / 8) / math.sqrt(variance)
    assert (found["auc_a"], found["auc_b"], found["difference"]) == (0.75, 0.375, 0.375)
    assert found["p"] == pytest.approx(math.erfc(z / math.sqrt(2)), abs=1e-12) == pytest.approx(0.6069, abs=1e-4)
    assert found["high"] - found["difference"] == pytest.approx(1.959964 * math.sqrt(variance), abs=1e-5)


def test_delong_agrees_with_the_paired_bootstrap_and_with_scikit_learn():
    truth, a = scored(400, ties=False)
    b = a + np.random.default_rng(1).normal(size=400)
    found = statistics.delong(truth, a, b)
    assert found["auc_a"] == pytest.approx(roc_auc_score(truth, a)) and found["auc_b"] < found["auc_a"]
    one, two = statistics.Auc(truth, a), statistics.Auc(truth, b)
    names = [str(i) for i in range(400)]
    paired = statistics.bootstrap(names, lambda c: [one(c) - two(c)], resamples=2000, seed=0)[0]
    assert paired["low"] == pytest.approx(found["low"], abs=0.01)
    assert paired["high"] == pytest.approx(found["high"], abs=0.01)


def test_delong_at_its_edges():
    truth, a = scored(50)
    assert statistics.delong(truth, a, 2 * a + 1)["p"] == 1.0
    single = statistics.delong([1, 0, 0], [0.5, 0.1, 0.2], [0.1, 0.2, 0.3])  # one positive has no variance
    assert (single["low"], single["high"], single["p"]) == (None, None, None) and single["difference"] == 1.0
    assert statistics.delong([1, 1, 0, 0], [0.9, 0.8, 0.2, 0.1], [0.5] * 4)["p"] is None
    with pytest.raises(UserError, match="one class"):
        statistics.delong([1, 1], [0.1, 0.2], [0.2, 0.1])


def test_mcnemar_computed_by_hand():
    a = [1] * 10 + [0] * 2 + [1] * 7 + [0] * 3
    b = [0] * 10 + [1] * 2 + [1] * 7 + [0] * 3
    # 12 items differ: twice the chance of at most 2 heads in 12 throws.
    expected = 2 * (1 + 12 + 66) / 2**12
    assert statistics.mcnemar(a, b) == pytest.approx(expected, abs=1e-12) == statistics.mcnemar(b, a)
    assert statistics.mcnemar(a, a) == 1.0
    assert statistics.mcnemar([1, 0], [0, 1]) == 1.0


def test_randomisation_follows_the_exact_test_and_is_never_zero():
    # All 2^3 exchanges of three items with differences 1, 1, 1: |mean| is 1 in two of the eight.
    p = statistics.approximate_randomisation([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], rounds=4000, seed=0)
    assert p == pytest.approx(2 / 8, abs=0.025)
    strong = statistics.approximate_randomisation(np.ones(40), np.zeros(40), rounds=99, seed=0)
    assert strong == 1 / 100
    assert statistics.approximate_randomisation([0.3, 0.1], [0.3, 0.1], rounds=50) == 1.0


def test_randomisation_of_a_corpus_statistic_and_by_patient():
    a, b = np.array([[3, 4], [1, 4], [4, 4]]), np.array([[1, 4], [2, 4], [0, 4]])

    def ratio(rows):
        return rows[:, 0].sum() / rows[:, 1].sum()

    # Differences 2, -1, 4: the sum is 5; of the sums +-2 +-1 +-4, four of eight reach 5 in size (7, 5, -5, -7).
    assert statistics.approximate_randomisation(a, b, ratio, rounds=4000, seed=3) == pytest.approx(0.5, abs=0.03)
    together = statistics.approximate_randomisation(a, b, ratio, rounds=200, seed=3, patients=["x"] * 3)
    assert together == 1.0, "one patient can only be exchanged as a whole"


def test_holm_computed_by_hand():
    adjusted = statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": None})
    assert statistics.holm({}) == {} and statistics.holm({"x": None}) == {"x": None}


def test_macro_accuracy_of_scikit_learn_fits_the_bootstrap():
    truth, scores = scored(60)
    said = scores > 0.5
    found = repeated(
        [str(i) for i in range(60)], lambda i: balanced_accuracy_score(truth[i], said[i]), resamples=50, seed=0
    )
    assert found["low"] < balanced_accuracy_score(truth, said) < found["high"]


def test_exchanges_that_only_rounding_puts_beneath_count():
    # Differences .2, .2, -.2: every exchange is at least as far apart as what was observed.
    assert statistics.approximate_randomisation([0.6, 0.8, 0.2], [0.4, 0.6, 0.4], rounds=200) == 1.0


def test_half_of_the_resamples_are_enough_for_an_interval():
    calls = iter(range(100))
    half = repeated(list("abcd"), lambda i: 1.0 if next(calls) % 2 else None, resamples=100)
    assert half == {"low": 1.0, "high": 1.0, "skipped_resamples": 50}


def test_delong_of_unequal_classes_is_its_definition():
    truth, a = scored(60, share=0.2)
    b = np.round(a + np.random.default_rng(2).normal(size=60), 1)
    found = statistics.delong(truth, a, b)
    wins = [np.sign(s[truth][:, None] - s[~truth][None]) / 2 + 0.5 for s in (a, b)]  # [positives, negatives]
    spread = sum((wins[0] - wins[1]).mean(axis).var(ddof=1) / wins[0].shape[1 - axis] for axis in (0, 1))
    assert found["difference"] == pytest.approx(wins[0].mean() - wins[1].mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.959964 * math.sqrt(spread), rel=1e-6)
    assert found["p"] == pytest.approx(math.erfc(abs(found["difference"]) / math.sqrt(2 * spread)), rel=1e-6)
