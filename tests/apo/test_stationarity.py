"""The permutation test: by hand, against all permutations counted, and its level."""

import itertools

import numpy as np
import pytest

from apo.stationarity import BINS, holm, permutation_tests


def claims_of(rng, trajectories, rate, per=6, late=None):
    """Claims with a chance of conflict rate(bin): trajectory, group (two), bin, value; `late` ones have bins 5 to 9."""
    trajectory = np.repeat(np.arange(trajectories), per)
    bins = rng.integers(0, BINS, len(trajectory))
    if late is not None:
        bins = bins // 2 + 5 * late
    value = (rng.random(len(trajectory)) < rate(bins)).astype(float)
    return trajectory, trajectory % 2, bins, value


def test_the_test_holds_its_level_and_finds_drift():
    spread, lag = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        # Each trajectory has its own rate all along, and those of high rate speak late: across trajectories this looks
        # like drift, within them there is none.
        base = np.repeat(rng.random(30), 6)
        flat = claims_of(rng, 30, lambda b, base=base: base, late=base > 0.5)
        tests = permutation_tests(*flat, groups=2, permutations=59, seed=seed)
        spread.append(tests.spread_p[0, -1])
        lag.append(tests.lag_p[0, 3])
    for p in (spread, lag):
        for level in (0.05, 0.2, 0.5):
            # The bounds are three standard errors wide, and p comes in steps of 1/60.
            slack = 3 * np.sqrt(level * (1 - level) / 100) + 1 / 60
            assert abs(np.mean(np.array(p) <= level) - level) < slack
    for seed in range(5):
        rising = claims_of(np.random.default_rng(seed), 150, lambda b: 0.1 + 0.08 * b)
        tests = permutation_tests(*rising, groups=2, permutations=59, seed=seed)
        assert tests.spread_p[0, -1] == tests.lag_p[0, 4] == 1 / 60, "the smallest p that 59 permutations allow"


def test_p_is_that_of_all_permutations_counted():
    # One trajectory, three cells in bins 0, 4, 9: six orders, of which two are as extreme as the observed one.
    trajectory, bins = np.zeros(3, int), np.array([0, 4, 9])
    values = np.array([0.0, 0.5, 1.0])
    tests = permutation_tests(trajectory, trajectory, bins, values, groups=1, permutations=6000, seed=0)

    def lag9(order):
        return abs(values[order[2]] - values[order[0]])

    exact = np.mean([lag9(o) >= lag9((0, 1, 2)) for o in itertools.permutations(range(3))])
    assert exact == 1 / 3 and abs(tests.lag_p[0, 8] - exact) < 0.03
    assert tests.spread_p[0, 0] == 1.0, "every order of three single cells has the same spread"
    assert np.isnan(tests.lag[0, 0]) and tests.lag[0, 8] == 1.0


def test_cells_stay_whole_and_trajectories_apart():
    # Two claims in one breath are one cell: with one cell a trajectory there is nothing to permute.
    trajectory, bins = np.array([0, 0, 1, 1]), np.array([0, 0, 9, 9])
    tests = permutation_tests(
        trajectory, trajectory * 0, bins, np.array([1.0, 1, 0, 0]), groups=1, permutations=50, seed=0
    )
    assert tests.trajectories == 0 and np.isnan(tests.spread_p).all() and np.isnan(tests.lag_p).all()
    assert tests.means[0, -1, 0] == 1.0 and tests.counts[-1].tolist() == [2] + [0] * 8 + [2]


def test_what_cannot_be_tested_has_no_p_and_does_not_count_in_the_correction():
    # Group 0 speaks in bins 0 and 1 only, group 1 has one cell a trajectory.
    trajectory, group = np.array([0, 0, 1, 1, 2, 3]), np.array([0, 0, 0, 0, 1, 1])
    tests = permutation_tests(
        trajectory,
        group,
        np.array([0, 1, 0, 1, 0, 1]),
        np.array([0.0, 1, 0, 1, 0, 1]),
        groups=2,
        permutations=50,
        seed=0,
    )
    assert np.isnan(tests.lag_p[0]).tolist() == [False] + [True] * 8 == np.isnan(tests.lag[0]).tolist()
    assert holm(tests.lag_p[0])[0] == tests.lag_p[0, 0]
    assert np.isnan(tests.spread_p[0]).tolist() == [False, True, False]


def test_lags_are_those_of_all_groups_together():
    trajectory, bins, values = np.arange(4), np.array([0, 9, 0, 9]), np.array([1.0, 1.0, 0.0, 1.0])
    tests = permutation_tests(trajectory, np.array([0, 0, 1, 1]), bins, values, groups=2, permutations=5, seed=0)
    assert tests.lag[0, 8] == 0.5, "1 and 1 in the first group, 0 and 1 in the second"


def test_spread_and_lag_weigh_bins_by_their_claims():
    bins, values = np.array([0, 1, 2, 2, 2]), np.array([0.0, 1.0, 1.0, 1.0, 1.0])
    tests = permutation_tests(np.arange(5), np.zeros(5, int), bins, values, groups=1, permutations=5, seed=0)
    assert tests.spread[0, 0] == pytest.approx(np.sqrt((0.8**2 + 4 * 0.2**2) / 5))
    assert tests.lag[0, 0] == pytest.approx(np.sqrt((1 / 2) / (1 / 2 + 3 / 4)))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, float("nan")])[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert np.isnan(holm([0.01, float("nan")])[1]) and holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
