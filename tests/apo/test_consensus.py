"""Consensus strategies: medoid, oracle, what `self` wrote, and the audit of each."""

import pytest

from apo.consensus import dawid_skene, medoid, oracle, self_result, vote
from apo.self_prompt import self_prompt
from data.draws import study_rng
from data.errors import UserError
from data.findings_lexicon import FIVE
from tests.apo.voices import TEACHERS, said, study


@pytest.mark.parametrize("text", ["Small left effusion. Small right effusion.", "Right effusion. No left effusion."])
def test_audit_marks_no_conflict_where_all_say_the_same_of_two_sides(text):
    (result,) = vote([study([text] * 3)])
    assert result["audit"]["findings"]["Pleural Effusion"]["corrected"] == []
    assert {kind for spans in result["audit"]["spans"].values() for *_, kind in spans} == {"consistent"}


@pytest.mark.parametrize("strategy", [vote, dawid_skene, medoid])
@pytest.mark.parametrize(
    ("text", "state", "corrected"), [("No edema.", "present", []), ("Edema.", "absent", ["gamma"])]
)
def test_no_finding_that_is_not_said_follows_from_the_others(strategy, text, state, corrected):
    texts = [f"No pleural effusion. {text} No pneumothorax."] * 2 + ["No acute cardiopulmonary abnormality."]
    (result,) = strategy([study(texts)])
    entry = result["audit"]["findings"]["No Finding"]
    assert (entry["state"], entry["stated"], entry["corrected"]) == (state, False, corrected)


def test_audit_is_complete():
    texts = [
        "Left effusion. Cardiomegaly.",
        "Right effusion. Cardiomegaly.",
        "Left effusion.",
        "Possible left effusion.",
    ]
    (result,) = dawid_skene([study(texts, statuses={})], compose="plain")
    audit = result["audit"]
    effusion = audit["findings"]["Pleural Effusion"]
    assert effusion["said"] == {
        "alpha": ["present", "left"],
        "beta-2": ["present", "right"],
        "gamma": ["present", "left"],
        "delta": ["uncertain", "left"],
    }
    assert (effusion["state"], effusion["side"], effusion["stated"]) == ("present", "left", True)
    assert effusion["votes"] == {"present": 3, "absent": 0, "uncertain": 1, "silent": 0}
    assert effusion["sides"] == {"left": 2, "right": 1} and 0.5 < effusion["posterior"] <= 1
    assert effusion["corrected"] == ["beta-2"] and effusion["source"] == "template"
    marks = {
        (teacher, texts[TEACHERS.index(teacher)][start:end]): mark
        for teacher, spans in audit["spans"].items()
        for start, end, label, mark in spans
        if label == "Pleural Effusion"
    }
    assert marks == {
        ("alpha", "Left effusion."): "consistent",
        ("beta-2", "Right effusion."): "conflict",
        ("gamma", "Left effusion."): "consistent",
        ("delta", "Possible left effusion."): "uncertain",
    }
    spans = {label: (result["text"][a:b], mark) for a, b, label, mark in audit["consensus_spans"]}
    assert spans["Pleural Effusion"] == ("Left pleural effusion.", "corrected")
    assert set(spans) == {k for k, v in audit["findings"].items() if v["stated"]}


def test_medoid_is_the_trajectory_nearest_by_findings_and_not_by_words():
    texts = [
        "Right effusion is seen on this film. No edema.",
        "Left effusion is seen on this film. No edema.",  # in words nearest to all others, in findings only to two
        "Layering fluid in the right pleural space.",
        "Blunting of the right costophrenic angle.",
        "Left effusion is seen on this film.",
    ]
    (result,) = medoid([study(texts)])
    assert result["strategy"] == "medoid"
    assert result["text"] == texts[0], "of equal findings the one whose words the others share"
    audit = result["audit"]
    assert audit["medoid"]["teacher"] == "alpha" and audit["medoid"]["distance"]["alpha"] == 0.5
    assert audit["findings"]["Pleural Effusion"]["corrected"] == ["beta-2", "epsilon"]
    assert audit["findings"]["Pleural Effusion"]["source"] == "alpha"
    spans = {label: (result["text"][a:b], mark) for a, b, label, mark in audit["consensus_spans"]}
    assert spans["Pleural Effusion"] == ("Right effusion is seen on this film.", "corrected")
    assert spans["Edema"] == ("No edema.", "agreed")


def test_medoid_never_takes_a_text_without_a_finding_or_without_a_vote():
    texts = [
        "The film is rotated.",
        "Left effusion.",
        "As an AI, I cannot interpret medical images.",
        "Right effusion.",
    ]
    (result,) = medoid([study(texts, statuses={"delta": "truncated"})])
    assert result["text"] == "Left effusion."
    assert result["audit"]["unheard"] == {"gamma": "refused", "delta": "truncated"}
    assert medoid([study([]), study(["The film is rotated."])]) == [None, None]


def test_a_text_without_a_finding_counts_among_the_others_of_a_medoid():
    (result,) = medoid([study(["Left effusion.", "Left effusion.", "The film is rotated."])])
    assert result["audit"]["medoid"]["distance"] == {"alpha": 0.5, "beta-2": 0.5}


def test_between_two_teachers_the_name_does_not_decide():
    pair = ["Left effusion.", "Right effusion."]
    chosen = [medoid([study(pair, name=f"s{i}")])[0]["audit"]["medoid"]["teacher"] for i in range(60)]
    assert 15 < chosen.count("alpha") < 45
    again = study(pair, name="s0")
    again["trajectories"].reverse()
    assert medoid([again])[0]["audit"]["medoid"]["teacher"] == chosen[0], "nor does the order in the file"


def phantom(texts, findings, source="phantom"):
    return study(texts) | {"source": source, "findings": findings}


def test_oracle_states_the_truth_whatever_the_teachers_say():
    truth = {
        "Pleural Effusion": {"state": "present", "side": "left", "severity": "small"},
        "Edema": {"state": "absent", "side": None},
        "Cardiomegaly": {"state": "present", "side": None},
        "Atelectasis": {"state": "absent", "side": None},
    }
    (result,) = oracle([phantom(["Right effusion. No cardiomegaly.", "No effusion."], truth)])
    assert said(result) == {
        "Pleural Effusion": ("present", "left"),
        "Cardiomegaly": ("present", None),
        **{label: ("absent", None) for label in FIVE if label != "Pleural Effusion"},
    }
    assert result["strategy"] == "oracle" and "upper bound" in result["audit"]["upper_bound"]
    assert result["audit"]["findings"]["Pleural Effusion"]["corrected"] == ["alpha", "beta-2"]
    (quoted,) = oracle([phantom(["There is a left effusion.", "No effusion."], truth)], compose="quote")
    assert "There is a left effusion." in quoted["text"]
    assert oracle([phantom([], truth)]) == [None]


def test_the_oracle_gives_no_side_to_what_has_none():
    truth = {
        "Pleural Effusion": {"state": "absent", "side": "left"},
        "Cardiomegaly": {"state": "present", "side": "left"},
    }
    (result,) = oracle([phantom(["No effusion."], truth)])
    sides = {label: result["audit"]["findings"][label]["side"] for label in truth}
    assert sides == {"Pleural Effusion": None, "Cardiomegaly": None}


def test_oracle_refuses_every_other_source_and_missing_truth():
    with pytest.raises(UserError, match="study 's1': source is 'MIMIC-CXR'.*phantom cohort only"):
        oracle([phantom(["Left effusion."], {"Edema": {"state": "absent"}}, source="MIMIC-CXR")])
    with pytest.raises(UserError, match="study 's1': has no findings"):
        oracle([phantom(["Left effusion."], None)])


def test_self_result_is_audited():
    s = study(["Left effusion.", "Right effusion.", "No edema."])
    prompt = self_prompt(s, study_rng(s))
    result = self_result(s, prompt, "Left pleural effusion. No pneumonia.")
    audit = result["audit"]
    assert result["strategy"] == "self" and audit["order"] == prompt.order and audit["dropped"] == []
    assert audit["findings"]["Pleural Effusion"]["corrected"] == ["beta-2"]
    assert audit["findings"]["Pneumonia"]["said"] == {}  # its own addition shows
    assert audit["findings"]["Edema"]["state"] is None and not audit["findings"]["Edema"]["stated"]
    assert [result["text"][a:b] for a, b, label, _ in audit["consensus_spans"]] == [
        "Left pleural effusion.",
        "No pneumonia.",
    ]
