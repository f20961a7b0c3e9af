"""What is decided of each finding, and by whose votes."""

import numpy as np
import pytest

from apo import decisions, error_rates
from apo.consensus import STRATEGIES, dawid_skene, vote
from data.findings import read_findings, summarise
from tests.apo.voices import cohort, misled, said, simulate, study


def test_majority_and_tie():
    (result,) = vote([study(["Left effusion. No edema."] * 2 + ["No effusion. No edema."] * 2)])
    assert said(result) == {"Pleural Effusion": ("absent", None), "Edema": ("absent", None)}
    (result,) = vote([study(["Left effusion."] * 3 + ["No effusion."] * 2)])
    assert said(result) == {"Pleural Effusion": ("present", "left")}


def test_what_no_teacher_claims_is_never_present_nor_denied_against_its_posterior(monkeypatch):
    studies = [study(["No effusion. Cardiomegaly."] * 2, name="none"), study(["Effusion.", "No effusion."], name="one")]

    def sure(votes, classes=2, **_):
        return error_rates.Fit(np.tile([0.1, 0.9], (len(votes), 1)), np.full((2, 2, 2), 0.5), np.array([0.1, 0.9]))

    monkeypatch.setattr(decisions, "fit_dawid_skene", sure)
    none, one = dawid_skene(studies)
    assert set(said(none)) == {"Cardiomegaly"} and said(one)["Pleural Effusion"][0] == "present"
    entry = none["audit"]["findings"]["Pleural Effusion"]
    assert (entry["state"], entry["stated"], entry["posterior"]) == ("absent", False, 0.9)


def test_tied_side_is_not_named():
    (result,) = vote([study(["Left effusion.", "Right effusion.", "Effusion."])])
    assert said(result) == {"Pleural Effusion": ("present", None)}


def test_unsupported_finding_is_dropped_and_nothing_is_denied_that_nobody_denied():
    (result,) = vote([study(["Left effusion. Right pneumothorax.", "Left effusion.", "Left effusion."])])
    assert said(result) == {"Pleural Effusion": ("present", "left")}
    entry = result["audit"]["findings"]["Pneumothorax"]
    assert entry["state"] == "absent" and not entry["stated"]
    assert entry["votes"] == {"present": 1, "absent": 0, "uncertain": 0, "silent": 2}


@pytest.mark.parametrize("name", ["vote", "dawid_skene"])
def test_refused_and_failed_trajectories_do_not_vote(name):
    texts = ["Left effusion.", "No effusion.", "As an AI, I cannot interpret medical images.", "No effusion."]
    (result,) = STRATEGIES[name]([study(texts, statuses={"beta-2": "truncated", "delta": "filtered"})])
    assert said(result) == {"Pleural Effusion": ("present", "left")}  # N = 1 is allowed
    assert result["audit"]["unheard"] == {"beta-2": "truncated", "gamma": "refused", "delta": "filtered"}


@pytest.mark.parametrize("name", ["vote", "dawid_skene"])
def test_no_consensus_where_nothing_can_be_said(name):
    nothing = [
        study([]),
        study(["Left effusion."], statuses={"alpha": "empty"}),
        study(["The film is rotated."]),
        study(["Left effusion."]),
    ]
    assert [r is None for r in STRATEGIES[name](nothing)] == [True, True, True, False]


def test_only_uncertain_stays_uncertain():
    (result,) = vote([study(["Possible left effusion.", "Left effusion cannot be excluded."])])
    assert said(result) == {"Pleural Effusion": ("uncertain", "left")}


def test_normal_cannot_stand_beside_a_finding():
    normal = "No acute cardiopulmonary abnormality."
    (result,) = vote([study([f"{normal} Left effusion.", f"{normal} Left effusion.", "Left effusion."])])
    assert said(result) == {"Pleural Effusion": ("present", "left")}
    (result,) = vote([study([normal, normal])])
    assert said(result) == {"No Finding": ("present", None)}


def test_hedges_count_only_where_nobody_votes():
    maybe = "Possible left effusion."
    (result,) = vote([study([maybe, "No effusion."])])
    assert said(result) == {"Pleural Effusion": ("absent", None)}
    (result,) = vote([study(["Left effusion.", maybe, maybe])])
    assert said(result) == {"Pleural Effusion": ("present", "left")}


def test_devices_do_not_overrule_normal_and_a_finding_overrules_perhaps_normal():
    (result,) = vote([study(["No acute cardiopulmonary abnormality. Support devices."] * 2)])
    assert said(result) == {"No Finding": ("present", None), "Support Devices": ("present", None)}
    (result,) = vote([study(["Possibly normal chest radiograph. Left effusion."] * 2)])
    assert said(result) == {"Pleural Effusion": ("present", "left")}


def accuracy(readings, truth):
    pairs = [(r.get(k, ("absent",)), side) for r, f in zip(readings, truth, strict=True) for k, side in f.items()]
    right = [said[0] == ("present" if side else "absent") for said, side in pairs]
    return float(np.mean(right))


def test_consensus_beats_majority_and_the_best_teacher_end_to_end():
    studies, truth = cohort(0)
    modelled = accuracy([said(r) for r in dawid_skene(studies)], truth)
    majority = accuracy([said(r) for r in vote(studies)], truth)
    texts = [[s["trajectories"][t]["text"] for s in studies] for t in range(5)]
    teachers = [accuracy([summarise(read_findings(text)) for text in one], truth) for one in texts]
    assert modelled > max(teachers) + 0.02 and modelled > majority + 0.05


def test_strategies_never_look_at_labels_or_reports():
    studies, _ = cohort(1, n=60)
    plain = dawid_skene(studies)
    for s in studies:
        s["findings"] = {"Edema": {"state": "present", "side": None}}
        s["report"] = "Bilateral pneumothorax."
    assert dawid_skene(studies) == plain


def test_sides_are_weighed_by_what_teachers_are_worth():
    """Three of five teachers have the right side in half of the films, two always: the two are believed."""
    rng = np.random.default_rng(0)
    sides = [str(rng.choice(["left", "right"])) for _ in range(150)]
    told = [[side, side, *(str(rng.choice(["left", "right"])) for _ in range(3))] for side in sides]
    films = [study([f"{s.capitalize()} effusion." for s in row], name=f"s{n}") for n, row in enumerate(told)]

    def right(strategy):
        return np.mean([said(r)["Pleural Effusion"][1] == side for r, side in zip(strategy(films), sides, strict=True)])

    assert right(dawid_skene) > 0.97 > 0.9 > right(vote)


def test_a_side_is_one_that_somebody_names():
    """The first teacher swaps sides in every film; alone, it is still quoted and not turned round."""
    sides = [("Left", "Right"), ("Right", "Left")] * 30
    films = [study([f"{a} effusion.", *[f"{b} effusion."] * 3], name=f"s{n}") for n, (a, b) in enumerate(sides)]
    films.append(study(["Left effusion.", *["There is an effusion."] * 3], name="alone"))
    for result in (dawid_skene(films)[-1], vote(films)[-1]):
        assert said(result)["Pleural Effusion"] == ("present", "left")


def test_a_finding_that_was_turned_round_is_told(monkeypatch):
    monkeypatch.setattr(decisions, "orient", lambda fits, votes: (fits, ["Edema"]))
    (result,) = dawid_skene([study(["Edema. Left effusion."] * 2)])
    told = {label: entry.get("against_majority") for label, entry in result["audit"]["findings"].items()}
    assert told == {"Edema": True, "Pleural Effusion": None}


def test_what_labels_say_is_in_consensus_and_audit():
    rng = np.random.default_rng(3)
    truth, votes = misled(rng, 300)
    films = [
        study(["Edema." if v else "No edema." for v in row[:5]], name=f"s{n}") for n, row in enumerate(votes.tolist())
    ]
    labels = {f"s{n}": {"Edema": bool(truth[n])} for n in range(20)}

    def right(results):
        states = [r["audit"]["findings"]["Edema"]["state"] if r else "absent" for r in results]
        return np.mean([(state == "present") == t for state, t in zip(states, truth, strict=True)])

    free, told = dawid_skene(films), dawid_skene(films, labels=labels)
    assert right(free) < 0.3 and right(told) > 0.7
    told = list(filter(None, told))  # what nobody said is not stated
    (entries,) = {tuple(r["audit"]["findings"]["Edema"].get(k) for k in ("labels", "against_majority")) for r in told}
    assert entries == ("turned", True)
    assert all("labels" not in r["audit"]["findings"]["Edema"] for r in filter(None, free))
    assert dawid_skene(films, labels={}) == free
    films[0]["findings"] = {"Edema": {"state": "present"}}
    assert dawid_skene(films) == free, "what a study itself says of the truth is never looked at"


def test_labels_overrule_what_the_other_findings_say(monkeypatch):
    """`orient` turned a finding that labels turn back: nothing was turned in the end, and the audit says so."""
    truth, votes = simulate(np.random.default_rng(4), 200, [0.9] * 3, [0.9] * 3, 0.4)
    films = [study(["Edema." if v else "No edema." for v in row], name=f"s{n}") for n, row in enumerate(votes.tolist())]
    monkeypatch.setattr(
        decisions, "orient", lambda fits, votes: ({"Edema": error_rates.mirror(fits["Edema"])}, ["Edema"])
    )
    told = dawid_skene(films, labels={f"s{n}": {"Edema": bool(truth[n])} for n in range(10)})
    entry = told[50]["audit"]["findings"]["Edema"]
    assert entry["labels"] == "turned" and "against_majority" not in entry
