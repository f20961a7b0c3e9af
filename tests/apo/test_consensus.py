"""Consensus strategies: estimates, decisions, text, audit, and the prompt of `self`."""

import random

import numpy as np
import pytest

from apo import consensus
from apo.consensus import (
    STRATEGIES,
    claim_distance,
    dawid_skene,
    fit_dawid_skene,
    medoid,
    oracle,
    plain_sentence,
    self_prompt,
    study_rng,
    token_overlap,
    vote,
    words,
)
from data.errors import UserError
from data.findings import FIVE, LABELS, SIDELESS, read_findings, summarise

TEACHERS = ("alpha", "beta-2", "gamma", "delta", "epsilon")


def study(texts, *, name="s1", statuses=None):
    trajectories = [
        {"teacher": t, "text": text, "status": (statuses or {}).get(t, "ok")}
        for t, text in zip(TEACHERS, texts, strict=False)
    ]
    return {
        "id": name,
        "patient": name,
        "source": "test",
        "split": "train",
        "images": ["films/a.png"],
        "prompt": "A chest film <image>. What is there?",
        "trajectories": trajectories,
    }


def said(result):
    return {k: v for k, v in summarise(read_findings(result["text"])).items()}


def simulate(rng, items, sensitivity, specificity, prevalence, missing=0.0):
    truth = rng.random(items) < prevalence
    hit = rng.random((items, len(sensitivity)))
    votes = np.where(truth[:, None], hit < np.array(sensitivity), hit >= np.array(specificity)).astype(np.int8)
    votes[rng.random(votes.shape) < missing] = -1
    return truth, votes


# --- the estimator ---------------------------------------------------------------------------------------------------

BIASED = ([0.95, 0.30, 0.35, 0.25, 0.40, 0.90, 0.45], [0.60, 0.95, 0.97, 0.93, 0.96, 0.85, 0.95])


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
    oriented, turned = consensus.orient(fits, votes)
    assert turned == ["Pneumothorax"]
    for label, fit in oriented.items():
        assert ((fit.posterior[:, 1] > 0.5) == truth[label]).mean() > 0.85


@pytest.mark.parametrize("seed", range(5))
def test_a_hard_finding_is_not_turned(seed):
    votes, truth = three_findings(seed, [0.55, 0.6, 0.7, 0.75, 0.6])
    oriented, turned = consensus.orient({k: fit_dawid_skene(v) for k, v in votes.items()}, votes)
    assert turned == []
    assert consensus.orient({"Edema": oriented["Edema"]}, votes)[1] == []


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


# --- decisions ------------------------------------------------------------------------------------------------------


def test_majority_and_tie():
    (result,) = vote([study(["Left effusion. No edema."] * 2 + ["No effusion. No edema."] * 2)])
    assert said(result) == {"Pleural Effusion": ("absent", None), "Edema": ("absent", None)}
    (result,) = vote([study(["Left effusion."] * 3 + ["No effusion."] * 2)])
    assert said(result) == {"Pleural Effusion": ("present", "left")}


def test_what_no_teacher_claims_is_never_present(monkeypatch):
    studies = [study(["No effusion.", "No effusion."], name="none"), study(["Effusion.", "No effusion."], name="one")]

    def sure(votes, classes=2, **_):
        return consensus.Fit(np.tile([0.1, 0.9], (len(votes), 1)), np.full((2, 2, 2), 0.5), np.array([0.1, 0.9]))

    monkeypatch.setattr(consensus, "fit_dawid_skene", sure)
    assert [said(r)["Pleural Effusion"][0] for r in dawid_skene(studies)] == ["absent", "present"]


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


def cohort(seed, n=400):
    """Five teachers of known rates, who always speak of three findings; (studies, truth)."""
    rng = np.random.default_rng(seed)
    names = {"Pleural Effusion": "pleural effusion", "Edema": "pulmonary edema", "Consolidation": "consolidation"}
    sens, spec, sides = [0.95, 0.3, 0.35, 0.9, 0.3], [0.7, 0.95, 0.95, 0.8, 0.95], [0.95, 0.9, 0.9, 0.95, 0.1]
    forms = ("{}.", "There is {}.", "- **{}** is seen.", "{} noted.", "{} is evident.")
    studies, truth = [], []
    for s in range(n):
        facts = {k: str(rng.choice(["left", "right"])) if rng.random() < 0.5 else None for k in names}
        texts = []
        for t in range(5):
            lines = []
            for label, side in facts.items():
                present = rng.random() < (sens[t] if side else 1 - spec[t])
                told = side or "left"
                told = told if rng.random() < sides[t] else {"left": "right", "right": "left"}[told]
                phrase = f"{told} {names[label]}" if present else f"no {names[label]}"
                lines.append(forms[t].format(phrase[0].upper() + phrase[1:] if forms[t][0] != "T" else phrase))
            texts.append("\n".join(lines))
        studies.append(study(texts, name=f"s{s}"))
        truth.append(facts)
    return studies, truth


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


# --- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", LABELS)
def test_plain_sentences_are_read_back(label):
    for state in ("present", "absent", "uncertain"):
        for side in (None, "left", "right", "bilateral"):
            if (label in SIDELESS and side) or (state == "absent" and (side or label == "No Finding")):
                continue
            assert summarise(read_findings(plain_sentence(label, state, side))) == {label: (state, side)}


@pytest.mark.parametrize("compose", ["plain", "quote"])
@pytest.mark.parametrize("name", ["vote", "dawid_skene"])
def test_text_says_the_decisions_and_nothing_else(name, compose):
    studies, _ = cohort(2, n=80)
    for result in STRATEGIES[name](studies, compose=compose):
        decided = {k: (v["state"], v["side"]) for k, v in result["audit"]["findings"].items() if v["stated"]}
        assert said(result) == decided
        for start, end, label, _ in result["audit"]["consensus_spans"]:
            alone = summarise(read_findings(result["text"][start:end]))
            assert alone[label] == decided[label]


def test_labels_stand_in_fixed_order():
    text = (
        "Cardiomegaly. Left pneumothorax. No edema. Right consolidation. No effusion. No pneumonia. Left atelectasis."
    )
    (result,) = dawid_skene([study([text, text])])
    assert result["text"] == (
        "Right consolidation. No pleural effusion. No pneumonia. Left pneumothorax. No pulmonary edema. "
        "Left atelectasis. Cardiomegaly."
    )
    assert FIVE == ("Consolidation", "Pleural Effusion", "Pneumonia", "Pneumothorax", "Edema")


def test_plain_form_does_not_depend_on_who_said_it():
    words = ["Left effusion.", "- **Left-sided** pleural effusion is noted", "On the left there is a pleural effusion."]
    texts = {vote([study([w])])[0]["text"] for w in words}
    assert texts == {"Left pleural effusion."}


def test_quotes_are_the_teachers_sentences():
    texts = ["There is a small left effusion.", "* **No effusion** on this film", "Small effusion on the left side."]
    (result,) = vote([study(texts)], compose="quote")
    assert result["text"] in (texts[0], texts[2])
    assert result["audit"]["findings"]["Pleural Effusion"]["source"] in ("alpha", "gamma")


def test_a_sentence_against_the_decisions_is_never_quoted():
    texts = [
        "Left effusion with right pneumothorax.",
        "Effusion is present on the left.",
        "No pneumothorax. Left effusion.",
    ]
    (result,) = vote([study(texts)], compose="quote")
    assert "right pneumothorax" not in result["text"]
    assert said(result) == {"Pleural Effusion": ("present", "left"), "Pneumothorax": ("absent", None)}


def test_template_stands_in_and_is_marked():
    text = "**Pleural effusion:**\n- Blunted on the left."  # the bullet alone does not name the finding
    (result,) = vote([study([text])], compose="quote")
    assert result["text"] == "Left pleural effusion."
    assert result["audit"]["findings"]["Pleural Effusion"]["source"] == "template"


def test_quote_keeps_markup_and_special_tokens_out():
    texts = ["✔ **Effusion** on the left <image> seen.", "- *Left* effusion,\n  which is  small"]
    (result,) = vote([study(texts)], compose="quote")
    assert result["text"] == "Left effusion, which is small."


def test_unknown_compose_is_refused():
    with pytest.raises(ValueError, match="plain or quote"):
        vote([study(["Left effusion."])], compose="pretty")


# --- audit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["Small left effusion. Small right effusion.", "Right effusion. No left effusion."])
def test_audit_marks_no_conflict_where_all_say_the_same_of_two_sides(text):
    (result,) = vote([study([text] * 3)])
    assert result["audit"]["findings"]["Pleural Effusion"]["corrected"] == []
    assert {kind for spans in result["audit"]["spans"].values() for *_, kind in spans} == {"consistent"}


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


# --- medoid and oracle ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "a, b, want",
    [
        ("Left effusion.", "Left effusion. No edema.", 0.0),  # a denial and silence are the same
        ("Left effusion.", "No effusion.", 1.0),
        ("Left effusion.", "Right effusion.", 1.0),
        ("Left effusion.", "Bilateral effusions.", 0.5),
        ("Left effusion.", "Effusion.", 0.5),  # a vague text is not close to everybody
        ("Left effusion.", "Possible left effusion.", 0.5),
        ("Possible left effusion.", "Possible right effusion.", 0.5),
        ("Left effusion. Edema.", "Right effusion. Cardiomegaly.", 3.0),
        ("No acute cardiopulmonary abnormality.", "No edema. No effusion.", 0.0),
    ],
)
def test_claim_distance(a, b, want):
    a, b = summarise(read_findings(a)), summarise(read_findings(b))
    assert claim_distance(a, b) == claim_distance(b, a) == want
    assert claim_distance(a, a) == 0


def test_token_overlap_by_hand():
    bags = [consensus.Counter(words(t)) for t in ("No **edema**. No effusion.", "No edema", "")]
    assert token_overlap(bags[0], bags[1]) == 2 * 2 / (4 + 2)
    assert token_overlap(bags[0], bags[2]) == token_overlap(bags[2], bags[2]) == 0


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


def test_oracle_refuses_every_other_source_and_missing_truth():
    with pytest.raises(UserError, match="study 's1': source is 'MIMIC-CXR'.*phantom cohort only"):
        oracle([phantom(["Left effusion."], {"Edema": {"state": "absent"}}, source="MIMIC-CXR")])
    with pytest.raises(UserError, match="study 's1': has no findings"):
        oracle([phantom(["Left effusion."], None)])


# --- self -----------------------------------------------------------------------------------------------------------


def seven(name="s1"):
    s = study([], name=name)
    s["trajectories"] = [
        {"teacher": f"Model-{c}", "text": f"As Model-{c}, I see finding {c}.", "status": "ok"} for c in "ABCDEFG"
    ]
    s["trajectories"][2]["status"] = "refused"
    return s


def test_prompt_holds_all_ok_trajectories_and_no_name():
    prompt = self_prompt(seven(), study_rng(seven()))
    assert prompt.text.startswith(seven()["prompt"]) and prompt.text.count("<image>") == 1
    for c in "ABDEFG":
        assert f"finding {c}." in prompt.text
    assert "finding C." not in prompt.text  # refused
    assert "Model-" not in prompt.text and "6 independent readings" in prompt.text
    assert sorted(prompt.order) == [f"Model-{c}" for c in "ABDEFG"] and prompt.dropped == []


def test_prompt_is_deterministic_and_differs_by_study_and_seed():
    first = self_prompt(seven("s1"), study_rng(seven("s1"), 0))
    assert first == self_prompt(seven("s1"), study_rng(seven("s1"), 0))
    orders = {tuple(self_prompt(seven(f"s{i}"), study_rng(seven(f"s{i}"), 0)).order) for i in range(20)}
    assert len(orders) > 10
    assert len({tuple(self_prompt(seven(), study_rng(seven(), seed)).order) for seed in range(20)}) > 10


def test_every_teacher_takes_every_place():
    first = [self_prompt(seven(f"s{i}"), study_rng(seven(f"s{i}"))).order[0] for i in range(600)]
    assert all(60 < first.count(f"Model-{c}") < 140 for c in "ABDEFG")


def test_whole_trajectories_are_dropped_from_the_end_of_the_order():
    full = self_prompt(seven(), random.Random(1))
    short = self_prompt(seven(), random.Random(1), length=len, limit=len(full.text) - 1)
    assert short.order + short.dropped == full.order and len(short.dropped) == 1
    assert "5 independent readings" in short.text and len(short.text) < len(full.text)
    kept = {name[-1] for name in short.order}
    assert {c for c in "ABDEFG" if f"finding {c}." in short.text} == kept  # whole ones, none in part
    assert self_prompt(seven(), random.Random(1), length=len, limit=100) is None


def test_no_prompt_without_an_ok_trajectory():
    s = seven()
    for t in s["trajectories"]:
        t["status"] = "empty"
    assert self_prompt(s, random.Random(0)) is None


def test_tags_in_a_trajectory_cannot_add_a_film():
    s = seven()
    s["trajectories"][0]["text"] = "See <image> and <|im_end|>."
    text = self_prompt(s, random.Random(0)).text
    assert text.count("<image>") == 1 and "<|im_end|>" not in text


def test_self_result_is_audited():
    s = study(["Left effusion.", "Right effusion.", "No edema."])
    prompt = self_prompt(s, study_rng(s))
    result = consensus.self_result(s, prompt, "Left pleural effusion. No pneumonia.")
    audit = result["audit"]
    assert result["strategy"] == "self" and audit["order"] == prompt.order and audit["dropped"] == []
    assert audit["findings"]["Pleural Effusion"]["corrected"] == ["beta-2"]
    assert audit["findings"]["Pneumonia"]["said"] == {}  # its own addition shows
    assert audit["findings"]["Edema"]["state"] is None and not audit["findings"]["Edema"]["stated"]
    assert [result["text"][a:b] for a, b, label, _ in audit["consensus_spans"]] == [
        "Left pleural effusion.",
        "No pneumonia.",
    ]


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


def test_only_the_five_are_denied_in_the_text():
    (result,) = vote([study(["No edema. No fracture."] * 2)])
    assert result["text"] == "No pulmonary edema."
    assert result["audit"]["findings"]["Fracture"]["state"] == "absent"


@pytest.mark.parametrize("strategy", [vote, dawid_skene])
def test_quotes_come_from_the_most_reliable_teacher_and_shortest_first(strategy):
    # "alpha" is alone against three on all other films; on the last one all agree, each in words of its own.
    films = [study(["No effusion. Edema."] + ["Left effusion. No edema."] * 3, name=f"s{n}") for n in range(12)]
    last = ["Effusion on the left.", "There is a left effusion. Left effusion.", "A left effusion.", "Left fluid."]
    result = strategy([*films, study(last, name="last")], compose="quote")[-1]
    assert result["text"] == "Left effusion." and result["audit"]["findings"]["Pleural Effusion"]["source"] == "beta-2"


def test_a_sentence_with_a_side_against_the_decisions_is_never_quoted():
    texts = [
        "Left effusion with right pneumothorax.",
        "No effusion. Left pneumothorax.",
        "Left pneumothorax. Effusion on the left.",
    ]
    (result,) = vote([study(texts)], compose="quote")
    assert said(result) == {"Pleural Effusion": ("present", "left"), "Pneumothorax": ("present", "left")}
    assert "right" not in result["text"]


def test_a_text_without_a_finding_counts_among_the_others_of_a_medoid():
    (result,) = medoid([study(["Left effusion.", "Left effusion.", "The film is rotated."])])
    assert result["audit"]["medoid"]["distance"] == {"alpha": 0.5, "beta-2": 0.5}


def test_the_oracle_gives_no_side_to_what_has_none():
    truth = {
        "Pleural Effusion": {"state": "absent", "side": "left"},
        "Cardiomegaly": {"state": "present", "side": "left"},
    }
    (result,) = oracle([phantom(["No effusion."], truth)])
    sides = {label: result["audit"]["findings"][label]["side"] for label in truth}
    assert sides == {"Pleural Effusion": None, "Cardiomegaly": None}


def test_no_part_of_a_teachers_name_is_left_in_any_case_or_status():
    s = study([])
    s["trajectories"] = [
        {"teacher": "GPT-5", "text": "As gpt-5-NANO or Grok I see an effusion.", "status": "ok"},
        {"teacher": "GPT-5-nano", "text": "GPT-5 and GPT-5-nano see edema.", "status": "ok"},
        {"teacher": "Grok", "text": "", "status": "empty"},
    ]
    text = self_prompt(s, random.Random(0)).text.lower()
    assert not any(part in text for part in ("gpt", "nano", "grok")) and "effusion" in text and "edema" in text


def test_a_prompt_may_be_as_long_as_the_limit():
    full = self_prompt(seven(), random.Random(1))
    assert self_prompt(seven(), random.Random(1), length=len, limit=len(full.text)) == full


def test_films_of_one_patient_are_drawn_apart():
    one, other = seven("s1"), seven("s2") | {"patient": "s1"}
    assert study_rng(one).random() != study_rng(other).random()


def test_sides_are_weighed_by_what_teachers_are_worth():
    """Three of five teachers have the right side in half of the films, two always: the two are believed."""
    rng = np.random.default_rng(0)
    sides = [str(rng.choice(["left", "right"])) for _ in range(150)]
    told = [[side, side, *(str(rng.choice(["left", "right"])) for _ in range(3))] for side in sides]
    films = [study([f"{s.capitalize()} effusion." for s in row], name=f"s{n}") for n, row in enumerate(told)]

    def right(strategy):
        return np.mean([said(r)["Pleural Effusion"][1] == side for r, side in zip(strategy(films), sides, strict=True)])

    assert right(dawid_skene) > 0.97 > 0.9 > right(vote)


def test_a_finding_that_was_turned_round_is_so_in_all_parts_and_told(monkeypatch):
    _, votes = simulate(np.random.default_rng(3), 300, [0.9] * 4, [0.6] * 4, 0.5)
    fit = fit_dawid_skene(votes)
    turned = consensus.mirror(fit)
    np.testing.assert_array_equal(turned.confusion[:, 1, 1], fit.confusion[:, 0, 1])
    np.testing.assert_array_equal(turned.posterior[:, 1], fit.posterior[:, 0])
    monkeypatch.setattr(consensus, "orient", lambda fits, votes: (fits, ["Edema"]))
    (result,) = dawid_skene([study(["Edema. Left effusion."] * 2)])
    told = {label: entry.get("against_majority") for label, entry in result["audit"]["findings"].items()}
    assert told == {"Edema": True, "Pleural Effusion": None}


# --- labels ----------------------------------------------------------------------------------------------------------


def misled(rng, items=600):
    """Votes of which most are wrong, and the truth: four teachers call it seldom where it is, and often where not."""
    return simulate(rng, items, [0.9, 0.85, 0.2, 0.15, 0.2, 0.25], [0.9, 0.9, 0.3, 0.25, 0.2, 0.3], 0.35)


def test_evidence_is_the_difference_of_two_likelihoods():
    truth, votes = misled(np.random.default_rng(0), 40)
    fit, told = fit_dawid_skene(votes), np.where(np.arange(40) < 3, truth, -1)

    def by_hand(one):
        total = 0.0
        for item in range(3):
            total += sum(np.log(one.confusion[t, told[item], v]) for t, v in enumerate(votes[item]) if v >= 0)
        return total

    votes[1, 2] = -1  # one who does not vote says nothing
    assert consensus.evidence(fit, votes, told) == pytest.approx(by_hand(fit) - by_hand(consensus.mirror(fit)))
    assert consensus.evidence(fit, votes, np.full(40, -1)) == 0.0
    nobody = np.full_like(votes, -1)
    assert consensus.evidence(fit, nobody, np.ones(40, int)) == 0.0, "which films were labelled says nothing"


def test_labels_turn_a_finding_round_that_agreement_has_the_wrong_way():
    truth, votes = misled(np.random.default_rng(1))
    fits = {"Edema": fit_dawid_skene(votes), "Pneumonia": fit_dawid_skene(truth[:, None].repeat(3, 1).astype(np.int8))}
    ballots = {"Edema": votes, "Pneumonia": truth[:, None].repeat(3, 1).astype(np.int8)}
    assert ((fits["Edema"].posterior[:, 1] > 0.5) == truth).mean() < 0.2, "most are wrong, and agree"
    told = np.where(np.arange(600) < 20, truth, -1)
    turned, verdicts = consensus.orient_by_labels(fits, ballots, {"Edema": told, "Pneumonia": told, "Fracture": told})
    assert verdicts == {"Edema": "turned", "Pneumonia": "kept"}
    assert ((turned["Edema"].posterior[:, 1] > 0.5) == truth).mean() > 0.8
    assert turned["Pneumonia"] is fits["Pneumonia"]
    seen = {"Edema": np.where(truth & (told >= 0), 1, -1), "Pneumonia": np.where(truth & (told >= 0), 1, -1)}
    assert consensus.orient_by_labels(fits, ballots, seen)[1] == verdicts, "what is there alone, as reports name it"
    assert consensus.orient_by_labels(fits, ballots, {"Edema": np.full(600, -1)}) == (fits, {}), "nothing is known"


def test_labels_that_hardly_speak_change_nothing(monkeypatch):
    _, votes = misled(np.random.default_rng(2), 100)
    fits = {"Edema": fit_dawid_skene(votes)}
    for nats, verdict in ((-2.9, "undecided"), (-3.1, "turned"), (2.9, "undecided"), (3.1, "kept")):
        monkeypatch.setattr(consensus, "evidence", lambda fit, votes, truth, nats=nats: nats)
        found, verdicts = consensus.orient_by_labels(fits, {"Edema": votes}, {"Edema": np.zeros(100, np.int8)})
        assert verdicts == {"Edema": verdict} and (found["Edema"] is fits["Edema"]) == (verdict != "turned")


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
    assert all("labels" not in r["audit"]["findings"]["Edema"] for r in free)
    assert dawid_skene(films, labels={}) == free
    films[0]["findings"] = {"Edema": {"state": "present"}}
    assert dawid_skene(films) == free, "what a study itself says of the truth is never looked at"


def test_labels_overrule_what_the_other_findings_say(monkeypatch):
    """`orient` turned a finding that labels turn back: nothing was turned in the end, and the audit says so."""
    truth, votes = simulate(np.random.default_rng(4), 200, [0.9] * 3, [0.9] * 3, 0.4)
    films = [study(["Edema." if v else "No edema." for v in row], name=f"s{n}") for n, row in enumerate(votes.tolist())]
    monkeypatch.setattr(
        consensus, "orient", lambda fits, votes: ({"Edema": consensus.mirror(fits["Edema"])}, ["Edema"])
    )
    told = dawid_skene(films, labels={f"s{n}": {"Edema": bool(truth[n])} for n in range(10)})
    entry = told[50]["audit"]["findings"]["Edema"]
    assert entry["labels"] == "turned" and "against_majority" not in entry
