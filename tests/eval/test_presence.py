import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from data.errors import UserError
from eval import presence
from eval.presence import FIVE
from eval.statistics import interval, patient_draws

PRESENT, ABSENT = ("present", None), ("absent", None)


def truths(*present):
    return [{f: PRESENT if f in labels else ABSENT for f in FIVE} for labels in present]


def test_a_case_computed_by_hand():
    truth = truths({"Edema"}, {"Edema"}, {"Edema"}, set())
    answers = [{"Edema": PRESENT}, {"Edema": PRESENT}, {"Edema": ABSENT}, {"Edema": PRESENT}]
    row = presence.score_answers(truth, answers)
    assert row["accuracy"]["Edema"] == 2 / 4
    assert row["balanced_accuracy"]["Edema"] == (2 / 3 + 0 / 1) / 2
    assert row["f1"]["Edema"] == 2 * 2 / (2 * 2 + 1 + 1)
    assert row["prevalence"]["Edema"] == 3 / 4 and row["positive_rate"]["Edema"] == 3 / 4
    assert row["accuracy"]["Pneumonia"] == 1.0, "not mentioned counts as absent"
    assert row["mean_accuracy"] == pytest.approx((0.5 + 4 * 1.0) / 5)
    assert row["balanced_accuracy"]["Pneumonia"] is None, "one class only: not defined"
    assert row["mean_balanced_accuracy"] is None, "never a mean over fewer than five"


def test_malformed_is_wrong_for_every_finding_whatever_the_truth():
    truth = truths(set(FIVE), set())
    row = presence.score_answers(truth, [None, None])
    assert (row["n"], row["malformed"], row["malformed_rate"]) == (2, 2, 1.0)
    assert set(row["accuracy"].values()) == {0.0}
    assert set(row["balanced_accuracy"].values()) == {0.0}
    assert set(row["f1"].values()) == {0.0}
    assert set(row["positive_rate"].values()) == {None}
    half = presence.score_answers(truth, [{f: PRESENT for f in FIVE}, None])
    assert half["mean_accuracy"] == half["mean_balanced_accuracy"] == 0.5


@pytest.mark.parametrize(
    "text",
    [None, "", "  \n", "I'm sorry, but I can't help with interpreting medical images.", "A film of a chest."],
)
def test_malformed_texts(text):
    assert presence.read_answer(text) is None


def test_a_readable_text_is_not_malformed():
    assert presence.read_answer("Small left pleural effusion. No pneumothorax.") == {
        "Pleural Effusion": ("present", "left"),
        "Pneumothorax": ("absent", None),
    }


@pytest.mark.parametrize("uncertain", ["present", "absent"])
def test_uncertain_counts_as_told_in_truth_and_answer(uncertain):
    maybe, clear = {"Edema": ("uncertain", None)}, {"Edema": ABSENT}
    row = presence.score_answers([maybe, maybe, clear], [{"Edema": PRESENT}, clear, maybe], uncertain=uncertain)
    right = {"present": 1 / 3, "absent": 2 / 3}
    assert row["accuracy"]["Edema"] == pytest.approx(right[uncertain])


def test_an_unknown_uncertain_rule_is_refused():
    with pytest.raises(UserError, match="maybe"):
        presence.score_answers(truths(set()), [{}], uncertain="maybe")


def test_balanced_accuracy_equals_recomputation_from_counts():
    rng = np.random.default_rng(3)
    truth, said = rng.random((200, 5)) < 0.3, rng.random((200, 5)) < 0.6
    for j in range(5):
        scores = presence.score(truth[:, j], said[:, j], np.zeros(200, bool))
        t, s = truth[:, j], said[:, j]
        by_hand = ((t & s).sum() / t.sum() + (~t & ~s).sum() / (~t).sum()) / 2
        assert scores["balanced_accuracy"] == pytest.approx(by_hand)
        assert scores["balanced_accuracy"] == balanced_accuracy_score(t, s)


def test_laterality_only_among_true_positives_with_a_side():
    truth = [
        {"Pneumothorax": ("present", "left")},
        {"Pneumothorax": ("present", "right")},
        {"Pneumothorax": ("present", "left")},
        {"Pneumothorax": ABSENT},
        {"Edema": ("present", None)},
        {"Pneumothorax": ("present", "left")},
    ]
    answers = [
        {"Pneumothorax": ("present", "left")},
        {"Pneumothorax": ("present", "left")},
        {"Pneumothorax": ("present", None)},  # found, side not said: wrong
        {"Pneumothorax": ("present", "left")},  # not there
        {"Edema": ("present", "left")},  # has no side
        None,
    ]
    assert presence.laterality(truth, answers) == {"n": 3, "accuracy": pytest.approx(1 / 3)}
    assert presence.laterality(truth[3:4], answers[3:4]) == {"n": 0, "accuracy": None}


def test_other_findings_are_scored_apart_from_the_means():
    truth = [{"Cardiomegaly": PRESENT}, {}]
    row = presence.score_answers(truth, [{"Edema": ABSENT}, {"Edema": ABSENT}], others=["Cardiomegaly"])
    assert row["other_findings"]["Cardiomegaly"]["accuracy"] == 0.5
    assert row["mean_accuracy"] == 1.0


def test_truth_without_findings_is_refused():
    with pytest.raises(UserError, match="s-1.*findings"):
        presence.read_truth({"id": "s-1"})


def test_bootstrap_is_deterministic_and_draws_whole_patients():
    patients = ["a", "a", "b", "b", "c"]
    correct = np.array([[1] * 5, [1] * 5, [0] * 5, [0] * 5, [1] * 5], bool)
    runs = [presence.bootstrap_mean(correct, *patient_draws(patients, 500, seed=7)) for _ in range(2)]
    assert np.array_equal(*runs)
    other = presence.bootstrap_mean(correct, *patient_draws(patients, 500, seed=8))
    assert not np.array_equal(runs[0], other)
    # Whole patients: with counts a, b, c the mean can only be (2a + c) / (2a + 2b + c).
    _, draws = patient_draws(patients, 500, seed=7)
    assert (draws.sum(1) == 3).all()
    a, b, c = draws.T
    assert np.allclose(runs[0], (2 * a + c) / (2 * a + 2 * b + c))
    low, high = interval(runs[0])
    assert 0 <= low < correct.mean() < high <= 1


def test_a_perfect_row_has_no_spread():
    index, draws = patient_draws(["a", "b"], 50)
    assert set(presence.bootstrap_mean(np.ones((2, 5), bool), index, draws)) == {1.0}


def test_positive_rate_is_that_of_the_readable_answers():
    row = presence.score_answers(truths({"Edema"}, set(), set()), [{"Edema": PRESENT}, {"Edema": ABSENT}, None])
    assert row["positive_rate"]["Edema"] == 1 / 2 and row["positive_rate"]["Pneumonia"] == 0


def test_sides_and_right_answers_follow_the_uncertain_rule():
    maybe, sure = {"Pneumothorax": ("uncertain", "left")}, {"Pneumothorax": ("present", "left")}
    assert presence.score_answers([maybe], [sure])["laterality"] == {"n": 1, "accuracy": 1.0}
    assert presence.score_answers([maybe], [sure], uncertain="absent")["laterality"]["n"] == 0
    at = FIVE.index("Pneumothorax")
    for truth, answer in ((maybe, {"Pneumothorax": ABSENT}), ({}, maybe)):
        assert presence.correct_matrix([truth], [answer], "absent")[0, at]
        assert not presence.correct_matrix([truth], [answer])[0, at]
