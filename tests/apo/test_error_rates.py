"""Dawid and Skene's estimator: against the truth, by hand, against the library; which way round a finding is."""

import numpy as np
import pytest

from apo import error_rates
from apo.error_rates import evidence, fit_dawid_skene, mirror, orient, orient_by_labels
from tests.apo.voices import misled, simulate

BIASED = ([0.95, 0.30, 0.35, 0.25, 0.40, 0.90, 0.45], [0.60, 0.95, 0.97, 0.93, 0.96, 0.85, 0.95])


def test_teachers_count_by_their_votes_in_which_way_round_a_finding_is():
    """The first teacher misleads on "B" and has nearly all of its votes; the mean over teachers would not see it."""

    def fit(*worth):
        right = [[[0.5 + y / 2, 0.5 - y / 2], [0.5 - y / 2, 0.5 + y / 2]] for y in worth]
        return error_rates.Fit(np.full((100, 2), 0.5), np.array(right), np.array([0.5, 0.5]))

    votes = np.full((100, 2), -1, np.int8)
    votes[:, 0] = votes[:2, 1] = 1
    fits = {"A": fit(0.8, 0.8), "B": fit(-0.3, 0.6), "C": fit(0.8, 0.8)}
    everyone = dict.fromkeys(fits, np.ones((100, 2), np.int8))
    assert orient(fits, everyone | {"B": votes})[1] == ["B"]
    assert orient(fits, everyone)[1] == []


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_dawid_skene_beats_majority_and_every_teacher(missing):
    rng = np.random.default_rng(0)
    truth, votes = simulate(rng, 3000, *BIASED, prevalence=0.5, missing=missing)
    found = fit_dawid_skene(votes).posterior[:, 1] > 0.5
    majority = (votes == 1).sum(1) > (votes == 0).sum(1)
    teachers = [(votes[:, t] == truth)[votes[:, t] >= 0].mean() for t in range(7)]
    accuracy = (found == truth).mean()
    assert accuracy > max(teachers)  # judged where they voted, so that a missing vote costs them nothing
    assert accuracy > (majority == truth).mean() + 0.05


def test_dawid_skene_recovers_sensitivity_and_specificity():
    truth, votes = simulate(np.random.default_rng(1), 6000, *BIASED, prevalence=0.4, missing=0.1)
    fit = fit_dawid_skene(votes)
    np.testing.assert_allclose(fit.confusion[:, 1, 1], BIASED[0], atol=0.04)
    np.testing.assert_allclose(fit.confusion[:, 0, 0], BIASED[1], atol=0.04)
    np.testing.assert_allclose(fit.prevalence[1], truth.mean(), atol=0.03)
    np.testing.assert_allclose(fit.posterior.sum(1), 1.0)


@pytest.mark.filterwarnings("ignore")  # of pandas, for the library's use of it
@pytest.mark.parametrize("seed", range(3))
def test_without_its_prior_it_is_the_model_that_crowd_kit_fits(seed):
    import pandas as pd
    from crowdkit.aggregation import DawidSkene

    rng = np.random.default_rng(seed)
    _, votes = simulate(rng, 1500, rng.uniform(0.6, 0.95, 7), rng.uniform(0.6, 0.95, 7), 0.4, missing=0.1)
    votes = votes[(votes >= 0).any(1)]
    items, teachers = np.nonzero(votes >= 0)
    theirs = DawidSkene(n_iter=500, tol=1e-8)
    theirs.fit(pd.DataFrame({"task": items, "worker": teachers, "label": votes[items, teachers]}))
    ours = fit_dawid_skene(votes, prior=(1e-9, 1e-9), iterations=500)
    posterior = theirs.probas_[1].to_numpy()
    # What is left is our pseudo-count of one study a class in the prevalence.
    assert np.abs(ours.posterior[:, 1] - posterior).max() < 0.005
    sensitivity = [theirs.errors_.loc[(teacher, 1), 1] for teacher in range(7)]
    specificity = [theirs.errors_.loc[(teacher, 0), 0] for teacher in range(7)]
    assert np.allclose(ours.confusion[:, 1, 1], sensitivity, atol=1e-3)
    assert np.allclose(ours.confusion[:, 0, 0], specificity, atol=1e-3)
    weighted = fit_dawid_skene(votes).posterior[:, 1]
    assert ((weighted > 0.5) == (posterior > 0.5)).mean() > 0.995


def test_one_em_step_by_hand():
    """Two teachers, one iteration, no prior to speak of: worked out on paper from the formulas of Dawid & Skene."""
    votes = np.array([[1, 1], [0, 0], [1, 0]], np.int8)
    fit = fit_dawid_skene(votes, prior=(1e-9, 1e-9), iterations=1)
    start = np.array([(2 + 0.5) / 3, 0.5 / 3, 1.5 / 3])  # smoothed shares
    sens = np.array([start[0] + start[2], start[0]]) / start.sum()
    fpr = np.array([(1 - start)[0] + (1 - start)[2], (1 - start)[0]]) / (1 - start).sum()
    prevalence = (start.sum() + 1) / (3 + 2)
    like1 = prevalence * np.prod(np.where(votes == 1, sens, 1 - sens), axis=1)
    like0 = (1 - prevalence) * np.prod(np.where(votes == 1, fpr, 1 - fpr), axis=1)
    np.testing.assert_allclose(fit.posterior[:, 1], like1 / (like1 + like0), rtol=1e-6)


@pytest.mark.parametrize("prevalence", [0.03, 0.5, 0.97])
@pytest.mark.parametrize("seed", range(5))
def test_classes_never_flip(prevalence, seed):
    truth, votes = simulate(np.random.default_rng(seed), 400, [0.7] * 5, [0.7] * 5, prevalence)
    fit = fit_dawid_skene(votes)
    assert (fit.confusion[:, 1, 1] + fit.confusion[:, 0, 0] - 1).mean() > 0
    assert ((fit.posterior[:, 1] > 0.5) == truth).mean() > 0.7


def test_a_flipped_start_is_turned_back(monkeypatch):
    truth, votes = simulate(np.random.default_rng(3), 800, [0.8] * 5, [0.8] * 5, 0.5)
    right = fit_dawid_skene(votes)
    # A prior that holds every teacher for worse than chance drives EM into the mirror image; the last guard undoes it.
    mirrored = fit_dawid_skene(votes, prior=(1.0, 3000.0))
    assert ((mirrored.posterior[:, 1] > 0.5) == (right.posterior[:, 1] > 0.5)).mean() > 0.95
    assert ((mirrored.posterior[:, 1] > 0.5) == truth).mean() > 0.9


def test_a_fit_is_mirrored_in_all_parts():
    _, votes = simulate(np.random.default_rng(3), 300, [0.9] * 4, [0.6] * 4, 0.5)
    fit = fit_dawid_skene(votes)
    turned = mirror(fit)
    np.testing.assert_array_equal(turned.confusion[:, 1, 1], fit.confusion[:, 0, 1])
    np.testing.assert_array_equal(turned.posterior[:, 1], fit.posterior[:, 0])


def three_findings(seed, third):
    """Votes and truth of three findings; on the third the teachers have the given sensitivity = specificity."""
    rng = np.random.default_rng(seed)
    rates = {"Edema": [0.85, 0.8, 0.75, 0.7, 0.6], "Pneumonia": [0.8, 0.85, 0.8, 0.6, 0.65], "Pneumothorax": third}
    made = {label: simulate(rng, 800, q, q, 0.4) for label, q in rates.items()}
    return {k: v for k, (_, v) in made.items()}, {k: t for k, (t, _) in made.items()}


def test_a_finding_that_misleads_most_teachers_is_turned_by_the_others():
    votes, truth = three_findings(0, [0.8, 0.75, 0.3, 0.1, 0.1])
    fits = {k: fit_dawid_skene(v) for k, v in votes.items()}
    assert ((fits["Pneumothorax"].posterior[:, 1] > 0.5) == truth["Pneumothorax"]).mean() < 0.2
    oriented, turned = orient(fits, votes)
    assert turned == ["Pneumothorax"]
    for label, fit in oriented.items():
        assert ((fit.posterior[:, 1] > 0.5) == truth[label]).mean() > 0.85


@pytest.mark.parametrize("seed", range(5))
def test_a_hard_finding_is_not_turned(seed):
    votes, truth = three_findings(seed, [0.55, 0.6, 0.7, 0.75, 0.6])
    oriented, turned = orient({k: fit_dawid_skene(v) for k, v in votes.items()}, votes)
    assert turned == []
    assert orient({"Edema": oriented["Edema"]}, votes)[1] == []


def test_an_item_without_votes_gets_the_prevalence_and_harms_nothing():
    truth, votes = simulate(np.random.default_rng(4), 500, [0.8] * 4, [0.9] * 4, 0.3)
    with_hole = np.vstack([votes, np.full((1, 4), -1, np.int8)])
    fit, hole = fit_dawid_skene(votes), fit_dawid_skene(with_hole)
    np.testing.assert_allclose(hole.posterior[:-1], fit.posterior, atol=0.02)
    np.testing.assert_allclose(hole.posterior[-1], hole.prevalence, atol=1e-3)


def test_order_of_items_and_teachers_does_not_matter():
    _, votes = simulate(np.random.default_rng(5), 300, *BIASED, prevalence=0.4, missing=0.2)
    items, teachers = np.random.default_rng(6).permutation(300), np.random.default_rng(7).permutation(7)
    a, b = fit_dawid_skene(votes), fit_dawid_skene(votes[items][:, teachers])
    np.testing.assert_allclose(a.posterior[items], b.posterior, atol=1e-4)
    np.testing.assert_allclose(a.confusion[teachers], b.confusion, atol=1e-4)


def test_votes_out_of_range_are_refused():
    with pytest.raises(ValueError, match="votes must be"):
        fit_dawid_skene(np.array([[0, 2]]))


def test_three_classes_find_the_teacher_who_swaps_sides():
    rng = np.random.default_rng(8)
    truth = rng.integers(0, 3, 900)
    votes = np.stack([np.where(rng.random(900) < q, truth, rng.integers(0, 3, 900)) for q in (0.9, 0.8, 0.8)], 1)
    swapping = np.where(truth == 2, 2, 1 - truth)
    votes = np.concatenate([votes, swapping[:, None]], 1).astype(np.int8)
    fit = fit_dawid_skene(votes, 3)
    assert fit.confusion[3, 0, 1] > 0.9 and fit.confusion[3, 1, 0] > 0.9
    assert (fit.posterior.argmax(1) == truth).mean() > 0.95


def test_evidence_is_the_difference_of_two_likelihoods():
    truth, votes = misled(np.random.default_rng(0), 40)
    fit, told = fit_dawid_skene(votes), np.where(np.arange(40) < 3, truth, -1)

    def by_hand(one):
        total = 0.0
        for item in range(3):
            total += sum(np.log(one.confusion[t, told[item], v]) for t, v in enumerate(votes[item]) if v >= 0)
        return total

    votes[1, 2] = -1  # one who does not vote says nothing
    assert evidence(fit, votes, told) == pytest.approx(by_hand(fit) - by_hand(mirror(fit)))
    assert evidence(fit, votes, np.full(40, -1)) == 0.0
    nobody = np.full_like(votes, -1)
    assert evidence(fit, nobody, np.ones(40, int)) == 0.0, "which films were labelled says nothing"


def test_labels_turn_a_finding_round_that_agreement_has_the_wrong_way():
    truth, votes = misled(np.random.default_rng(1))
    fits = {"Edema": fit_dawid_skene(votes), "Pneumonia": fit_dawid_skene(truth[:, None].repeat(3, 1).astype(np.int8))}
    ballots = {"Edema": votes, "Pneumonia": truth[:, None].repeat(3, 1).astype(np.int8)}
    assert ((fits["Edema"].posterior[:, 1] > 0.5) == truth).mean() < 0.2, "most are wrong, and agree"
    told = np.where(np.arange(600) < 20, truth, -1)
    turned, verdicts = orient_by_labels(fits, ballots, {"Edema": told, "Pneumonia": told, "Fracture": told})
    assert verdicts == {"Edema": "turned", "Pneumonia": "kept"}
    assert ((turned["Edema"].posterior[:, 1] > 0.5) == truth).mean() > 0.8
    assert turned["Pneumonia"] is fits["Pneumonia"]
    seen = {"Edema": np.where(truth & (told >= 0), 1, -1), "Pneumonia": np.where(truth & (told >= 0), 1, -1)}
    assert orient_by_labels(fits, ballots, seen)[1] == verdicts, "what is there alone, as reports name it"
    assert orient_by_labels(fits, ballots, {"Edema": np.full(600, -1)}) == (fits, {}), "nothing is known"


def test_labels_that_hardly_speak_change_nothing(monkeypatch):
    _, votes = misled(np.random.default_rng(2), 100)
    fits = {"Edema": fit_dawid_skene(votes)}
    for nats, verdict in ((-2.9, "undecided"), (-3.1, "turned"), (2.9, "undecided"), (3.1, "kept")):
        monkeypatch.setattr(error_rates, "evidence", lambda fit, votes, truth, nats=nats: nats)
        found, verdicts = orient_by_labels(fits, {"Edema": votes}, {"Edema": np.zeros(100, np.int8)})
        assert verdicts == {"Edema": verdict} and (found["Edema"] is fits["Edema"]) == (verdict != "turned")
