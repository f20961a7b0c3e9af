"""What drift counts: outcomes, texts, sides and depth by hand; worlds with and without drift along the text."""

import numpy as np
import pytest

from apo import drift_page
from apo.consensus import STRATEGIES
from apo.drift_measures import CLAIM, depth_bin, measure, merge, states_by_depth
from apo.drift_outcomes import AGREE, OUTCOMES, STATE, consensus_decisions, outcome
from apo.drift_results import depth_results, results
from apo.heard import hear
from apo.stationarity import BINS
from data.findings import summarise
from data.phantom import cohort
from tests.apo.drift_cases import found, study


def test_precision_of_one_is_recall_of_the_other():
    r = found([study({"a": "No edema.", "b": "Small left effusion. No edema.", "c": "Edema."}, consensus="No edema.")])
    pairs = r["text"]["pairs"]
    assert pairs["a"]["b"]["precision"] == pairs["b"]["a"]["recall"] == 1.0
    assert pairs["a"]["b"]["recall"] == pairs["b"]["a"]["precision"] == 0.4
    assert pairs["a"]["b"]["similarity"] == pairs["b"]["a"]["similarity"] == round(4 / 7, 4)
    assert r["text"]["consensus"]["a"] == {"precision": 1.0, "recall": 1.0, "similarity": 1.0, "n": 1}
    assert r["text"]["consensus"]["b"] == {"precision": 0.4, "recall": 1.0, "similarity": round(4 / 7, 4), "n": 1}
    assert r["text"]["teachers"]["a"]["recall"] == (0.4 + 1.0) / 2


@pytest.mark.parametrize(
    "a, b, want",
    [
        (("present", "left"), ("present", "left"), "same_side"),
        (("present", "left"), ("present", "right"), "opposed"),
        (("present", "left"), ("present", "bilateral"), "partial"),
        (("present", "left"), ("present", None), "agree"),
        (("absent", None), ("absent", "left"), "agree"),
        (("present", "left"), ("absent", None), "state"),
        (("uncertain", None), ("absent", None), "uncertain"),
        (("present", None), None, "unsupported"),
        (("absent", None), None, "silent"),
        (("uncertain", "left"), None, "silent"),
        (None, None, "silent"),
    ],
)
def test_outcomes(a, b, want):
    assert OUTCOMES[outcome(a, b)] == OUTCOMES[outcome(b, a)] == want


def test_silence_of_the_consensus_is_absent_and_normal_follows():
    assert consensus_decisions("Left effusion.", ["Edema", "No Finding"]) == {
        "Pleural Effusion": ("present", "left"),
        "Edema": ("absent", None),
        "No Finding": ("absent", None),
    }
    assert consensus_decisions("No edema.", ["No Finding"])["No Finding"] == ("present", None)


def test_normal_beside_devices_and_beside_a_hedge():
    assert consensus_decisions("Support devices.", ["No Finding"])["No Finding"] == ("present", None)
    assert consensus_decisions("Possible edema.", ["No Finding"])["No Finding"] == ("absent", None)


def test_conflicts_by_hand():
    texts = {"a": "Left effusion. Edema.", "b": "Right effusion. No edema.", "c": "Left effusion. Possible edema."}
    r = found([study(texts, consensus="Left pleural effusion. No pulmonary edema.")])
    pairs = r["findings"]["pairs"]
    assert pairs["a"]["b"]["conflict"] == 1.0 and (pairs["a"]["b"]["state"], pairs["a"]["b"]["opposed"]) == (1, 1)
    assert pairs["a"]["c"]["conflict"] == 0.0 and pairs["a"]["c"]["uncertain"] == 1
    assert {t: row["conflict"] for t, row in r["findings"]["consensus"].items()} == {"a": 0.5, "b": 0.5, "c": 0.0}
    assert r["findings"]["by_label"]["a"]["Pleural Effusion"]["conflict"] == 0.5
    assert r["findings"]["by_label_consensus"]["b"]["Edema"]["conflict"] == 0.0
    assert r["laterality"]["findings"] == {
        "Pleural Effusion": {"n": 1, "opposed": 1, "differing": 1, "opposed_share": 1.0}
    }
    assert r["laterality"]["pairs"]["a"]["b"] == {"n": 1, "opposed": 1, "partial": 0, "opposed_share": 1.0}
    assert r["laterality"]["consensus"]["a"] == {"n": 1, "opposed": 0, "partial": 0, "opposed_share": 0.0}


def test_both_sides_against_one_differ_and_are_not_opposed():
    r = found([study({"a": "Left effusion.", "b": "Bilateral effusions."})])
    assert r["laterality"]["findings"]["Pleural Effusion"] == {
        "n": 1,
        "opposed": 0,
        "differing": 1,
        "opposed_share": 0.0,
    }


def test_what_is_not_ok_is_counted_and_not_compared():
    texts = {"a": "Left effusion.", "b": "As an AI, I cannot interpret medical images.", "c": "Right effu", "d": ""}
    r = found([study(texts, statuses={"c": "truncated", "d": "empty"}), study({"a": "Edema."}, name="s2")])
    assert r["heard"] == ["a"] and r["teachers"] == ["a", "b", "c", "d"]
    assert r["status"]["a"] == {"ok": 2, "not asked": 0}
    assert r["status"]["b"] == {"refused by its text": 1, "not asked": 1}
    assert r["status"]["c"] == {"truncated": 1, "not asked": 1}
    assert r["studies"]["with_a_single_voice"] == 2 and r["findings"]["consensus"] is None
    assert r["lengths"]["a"]["tokens_mean"] == 1.5


def test_lengths_and_silence_of_teachers_by_hand():
    films = [study({"a": " ".join(["word"] * n)}, name=f"s{n}") for n in range(1, 12)]
    films.append(study({"a": ""}, name="none", statuses={"a": "empty"}))
    r = found(films)
    lengths = {key: r["lengths"]["a"][f"tokens_{key}"] for key in ("p10", "median", "p90")}
    assert lengths == {"p10": 2.0, "median": 6.0, "p90": 10.0}
    assert r["lengths"]["a"]["without_a_claim"] == 11 and r["studies"]["without_a_voice"] == 1


def test_parts_add_up_whatever_teachers_a_part_has():
    studies = cohort.plan("train", 24, seed=0, world="balanced")
    for s, c in zip(studies, STRATEGIES["vote"](studies), strict=True):
        s["consensus"] = c
    for s in studies[:8]:  # the first part lacks the first teacher by name
        s["trajectories"] = [t for t in s["trajectories"] if not t["teacher"].startswith("gemini")]
    whole = found(studies)
    total = None
    for at in range(0, 24, 8):
        total = merge(total, measure(studies[at : at + 8]))
    assert results(total, permutations=20, seed=0) == whole


TWO_SIDED = [
    "Small left effusion. Small right effusion.",
    "Right effusion. No left effusion.",
    "Left pneumothorax. The right lung shows no pneumothorax.",
    "Bilateral effusions. The left effusion is large.",
]


@pytest.mark.parametrize("text", TWO_SIDED)
def test_texts_that_say_the_same_are_in_no_conflict_anywhere(text):
    one = study({"a": text, "b": text, "c": text}, consensus=text)
    claims = measure([one])["claims"]
    assert len(claims) == 6 and claims["conflict"].tolist() == claims["error"].tolist() == [0.0] * 6
    heard = hear(one)
    for decisions in (consensus_decisions(text), None):
        for claim in heard.claims["a"]:
            assert drift_page.mark(claim, "a", heard, decisions)[0] == "consistent"


def test_a_denial_of_one_side_contradicts_that_side_and_both():
    denial = ("absent", "left")
    assert outcome(denial, ("present", "right")) == outcome(("present", "right"), denial) == AGREE
    for side in ("left", "bilateral", None):
        assert outcome(denial, ("present", side)) == STATE
    assert outcome(("absent", None), ("present", "right")) == STATE


def test_a_claim_is_held_against_the_others_and_hedged_sides_against_nobody():
    one = study({"a": "Left effusion.", "b": "Right effusion.", "c": "Left effusion. Edema. Possible pneumonia."})
    claims = measure([one])["claims"]
    assert [round(float(x), 3) for x in claims["conflict"][:3]] == [0.5, 1.0, 0.5], "its own text is no other"
    assert len(claims) == 4 and np.isnan(claims["conflict"][3]), "nobody else speaks of edema, and hedges are no claims"
    r = found([study({"a": "Possible left effusion.", "b": "Right effusion."})])
    assert r["laterality"]["findings"] == {}


def test_depth_bins():
    spans = ((0, 10), (9, 11), (10, 11), (99, 100), (100, 100))
    assert [depth_bin(*span, 100) for span in spans] == [0, 1, 1, 9, 9]


def test_states_by_depth_are_the_readings_of_the_beginnings():
    text = "No edema. " + "The film is well exposed. " * 6 + "Left effusion. Possible edema. Right effusion."
    one = hear(study({"a": text}))
    states = states_by_depth(one, "a")
    for j, state in enumerate(states):
        begun = [c for c in one.claims["a"] if depth_bin(c.start, c.end, len(text)) <= j]
        assert state == summarise(begun)
    assert states[0] == {"Edema": ("absent", None)} and states[-1] == one.says["a"]
    assert states[-1]["Pleural Effusion"] == ("present", "bilateral") and states[-1]["Edema"] == ("uncertain", None)


def test_accumulated_divergence_by_hand():
    filler = "The film is well exposed and not rotated at all. "
    early, late = "Left effusion. " + filler * 6, filler * 6 + "Right effusion."
    r = found([study({"a": early, "b": late})])["depth"]["accumulated"]
    assert r["stated"][0] == 0.5 and r["stated"][-1] == 1.0
    assert r["conflict"] == [None] * 9 + [1.0]
    assert r["divergence_bits"][0] == 1.0, "one has spoken, one has not"
    assert r["divergence_bits"][-1] == 0.0, "both say present; the side is no state"
    assert r["error"] == [None] * BINS


@pytest.mark.parametrize("which", range(4))
def test_adjusting_takes_off_what_teacher_finding_state_or_side_explain(which):
    """Early claims are all in conflict and late ones never, but the two differ in one thing else."""
    late = [int(which == n) for n in range(4)]
    rows = [(n, *((0, 0, 0, 0, 0, 1.0) if n % 2 else (*late, 9, 0.0)), np.nan) for n in range(8)]
    total = {"claims": [np.array(rows, CLAIM)], "names": ["a", "b"], "accumulated": np.zeros((BINS, 4, 2))}
    found_ = depth_results(total, ["a", "b"], permutations=1, seed=0)["conflict"]
    means = {form: found_[form]["means"]["all"] for form in ("raw", "adjusted")}
    assert (means["raw"][0], means["raw"][9]) == (1.0, 0.0)
    assert (means["adjusted"][0], means["adjusted"][9]) == (0.5, 0.5)


@pytest.fixture(scope="module")
def worlds():
    out = {}
    # The first has the same rates along the text, the second a steep ramp. Four families of tests at a level of 5 %
    # each: with one cohort in six or so the first world would look like drift by chance (seed 3 does, in one lag).
    for world in ("published", "drift"):
        studies = cohort.plan("train", 250, seed=1, world=world)
        for s, c in zip(studies, STRATEGIES["vote"](studies), strict=True):
            s["consensus"] = c
        out[world] = found(studies, permutations=199)["depth"]
    return out


def test_a_world_without_drift_along_the_text_is_found_stationary(worlds):
    depth = worlds["published"]
    # Unadjusted it looks like drift: other findings are told last, and only when present.
    assert depth["conflict"]["raw"]["spread"][0]["p_holm"] <= 0.05
    for name in ("conflict", "error"):
        tested = [row["p_holm"] for row in depth[name]["adjusted"]["spread"] if row["p_holm"] is not None]
        assert tested and min(tested) > 0.05
        assert min(row["p_holm"] for row in depth[name]["adjusted"]["lags"]) > 0.05


def test_a_world_with_drift_along_the_text_is_found_drifting(worlds):
    depth = worlds["drift"]
    for name in ("conflict", "error"):
        first = depth[name]["adjusted"]["spread"][0]
        assert (first["teacher"], first["p"]) == ("all", 0.005), "the smallest p that 199 permutations allow"
        means = depth[name]["adjusted"]["means"]["all"]
        assert means[7] > means[2] + 0.08
        assert [row["delta"] for row in depth[name]["adjusted"]["lags"]] == list(range(1, 10))
        assert depth[name]["adjusted"]["lags"][3]["p_holm"] <= 0.05
