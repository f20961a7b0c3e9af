"""Held-out trajectories against labels and consensus: numbers on paper, scikit-learn's F1, exclusions, bad input."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from data.errors import UserError
from data.findings_lexicon import LABELS
from eval import held_out, run
from tests.eval.cases import report, study, trajectory

DRAW = {"seed": 0, "resamples": 20}
REFUSAL = "I'm sorry, but I can't interpret medical images. Please consult a qualified radiologist."


@pytest.fixture
def cohort(make_file):
    """Four test studies (truth: left effusion; edema; normal; right effusion and edema) and three to train."""
    teachers = [[trajectory("a", report(PleuralEffusion=("present", "left"))), trajectory("b", REFUSAL, "refused")]] * 4
    truths = [{"Pleural Effusion": "left"}, {"Edema": None}, {}, {"Pleural Effusion": "right", "Edema": None}]
    consensus = [report(PleuralEffusion=("present", "right")), report(Edema="present"), report(), None]
    studies = [
        study(n, truth, teachers[n], consensus=agreed)
        for n, (truth, agreed) in enumerate(zip(truths, consensus, strict=True))
    ]
    studies += [study(n, {"Edema": None} if n else {}, split="train") for n in range(3)]
    return make_file(studies).parent


ANSWERS = (
    report(PleuralEffusion=("present", "right")),  # wrong side
    report(Pneumonia="present"),  # misses edema, hallucinates pneumonia
    report(),  # right: normal
    REFUSAL,
)


def answers(*texts):
    return [{"text": text, "finish_reason": "stop"} for text in texts]


def load(root, name="phantom-held-out", **options):
    return held_out.load(name, root, options=options)


def cells(scored, name="student"):
    return next(row["metrics"] for row in scored["rows"] if row["name"] == name)


def value(scored, metric, name="student"):
    return cells(scored, name)[metric]["value"]


def test_labels_against_scikit_learn(cohort):
    scored = held_out.score(load(cohort), answers(*ANSWERS), **DRAW)
    columns = {label: LABELS.index(label) for label in ("Pleural Effusion", "Edema", "Pneumonia", "No Finding")}
    truth, said = np.zeros((4, 14), int), np.zeros((4, 14), int)
    for study_, labels in enumerate([["Pleural Effusion"], ["Edema"], ["No Finding"], ["Pleural Effusion", "Edema"]]):
        truth[study_, [columns[label] for label in labels]] = 1
    for study_, labels in enumerate([["Pleural Effusion"], ["Pneumonia"], ["No Finding"]]):
        said[study_, [columns[label] for label in labels]] = 1
    said[3] = 1 - truth[3]  # a refusal is wrong for every label
    assert value(scored, "14 labels/micro F1") == pytest.approx(f1_score(truth, said, average="micro"))
    some = truth.any(0)
    assert some.sum() == 3
    assert value(scored, "14 labels/macro F1") == pytest.approx(
        f1_score(truth[:, some], said[:, some], average="macro")
    )
    assert value(scored, "14 labels/exact match") == 2 / 4
    assert value(scored, "F1 by label/Edema") == 0
    by_label = f1_score(truth, said, average=None, zero_division=0)
    assert value(scored, "F1 by label/Pleural Effusion") == pytest.approx(by_label[columns["Pleural Effusion"]])
    assert any("macro F1 is over 3 labels; no study has" in note for note in scored["notes"])
    assert list(cells(scored))[:3] == ["14 labels/micro F1", "14 labels/macro F1", "14 labels/exact match"]


def test_hallucinated_and_missed_over_readable_answers(cohort):
    scored = held_out.score(load(cohort), answers(*ANSWERS), **DRAW)
    found = cells(scored)
    assert (found["hallucinated/Pneumonia"]["value"], found["hallucinated/Pneumonia"]["n"]) == (pytest.approx(1 / 3), 3)
    assert found["hallucinated/findings an answer"]["value"] == pytest.approx(1 / 3)
    assert found["hallucinated/Fracture"]["value"] == 0
    # The refused study has edema, too, but an answer that says nothing neither misses nor invents.
    assert (found["missed/Edema"]["value"], found["missed/Edema"]["n"]) == (1, 1)
    assert (found["missed/Pleural Effusion"]["value"], found["missed/Pleural Effusion"]["n"]) == (0, 1)
    assert found["missed/findings an answer"]["value"] == pytest.approx(1 / 3)
    assert "missed/Pneumonia" not in found
    assert value(scored, "answers/refused") == value(scored, "answers/malformed") == 1 / 4


def test_laterality_of_findings_rightly_called_present(cohort):
    scored = held_out.score(load(cohort), answers(*ANSWERS), **DRAW)
    assert (value(scored, "laterality/another side"), value(scored, "laterality/no side named")) == (1, 0)
    assert cells(scored)["laterality/another side"]["n"] == 1
    texts = [report(PleuralEffusion=("present", "left")), *ANSWERS[1:3], report(PleuralEffusion="present")]
    scored = held_out.score(load(cohort), answers(*texts), **DRAW)
    assert (value(scored, "laterality/another side"), value(scored, "laterality/no side named")) == (0, 1 / 2)
    none = held_out.score(load(cohort), answers(*[report()] * 4), **DRAW)
    assert cells(none)["laterality/another side"]["value"] is None


def test_side_comes_from_the_report_where_the_labels_have_none():
    one = study(0, {"Pleural Effusion": None})
    assert held_out.sides_of(one) == {}
    one["report"] = "FINDINGS: Left pleural effusion."
    assert held_out.sides_of(one) == {"Pleural Effusion": "left"}
    two = study(0, {"Pleural Effusion": "right"}) | {"report": one["report"]}
    assert held_out.sides_of(two) == {"Pleural Effusion": "right"}


def test_agreement_with_the_consensus(cohort):
    scored = held_out.score(load(cohort), answers(*ANSWERS), **DRAW)
    group = "agreement with the consensus"
    # Three studies have one: effusion (same label and side), edema (pneumonia said), normal (same).
    assert value(scored, f"{group}/exact match") == pytest.approx(2 / 3)
    assert value(scored, f"{group}/micro F1") == pytest.approx(2 * 2 / (3 + 3))
    assert value(scored, f"{group}/labels that agree") == pytest.approx((14 + 12 + 14) / 42)
    assert value(scored, f"{group}/another side") == 0
    assert cells(scored)[f"{group}/exact match"]["n"] == 3
    # The fourth study has none to agree with, whatever is answered.
    normal = held_out.score(load(cohort), answers(*ANSWERS[:3], report()), **DRAW)
    assert value(normal, f"{group}/exact match") == pytest.approx(2 / 3)
    assert value(normal, f"{group}/micro F1") == pytest.approx(2 * 2 / (3 + 3))
    assert "1 of 4 studies have no readable consensus; agreement leaves them out" in scored["notes"]
    other = held_out.score(load(cohort), answers(report(PleuralEffusion=("present", "left")), *ANSWERS[1:]), **DRAW)
    assert value(other, f"{group}/another side") == 1
    assert value(other, "laterality/another side") == 0
    silent = held_out.score(load(cohort), answers(*[REFUSAL] * 4), **DRAW)
    assert value(silent, f"{group}/labels that agree") == 0


def test_rows_of_teachers_consensus_and_majority_class(cohort):
    scored = held_out.score(load(cohort), answers(*ANSWERS), **DRAW)
    names = [(row["name"], row.get("baseline", False)) for row in scored["rows"]]
    assert names == [("student", False), ("a", True), ("b", True), ("consensus", True), ("majority class", True)]
    assert value(scored, "answers/malformed", "b") == 1 and value(scored, "14 labels/micro F1", "b") == 0
    assert value(scored, "14 labels/exact match", "a") == 1 / 4
    # Edema is in two of three training studies.
    assert value(scored, "missed/Edema", "majority class") == 0
    assert value(scored, "14 labels/exact match", "majority class") == 1 / 4
    assert "answers/malformed" not in cells(scored, "majority class")
    assert not [name for name in cells(scored, "consensus") if name.startswith("agreement")]
    fewer = held_out.score(load(cohort, teachers="no"), answers(*ANSWERS), **DRAW)
    assert [row["name"] for row in fewer["rows"]] == ["student", "majority class"]


def test_no_finding_follows_from_the_other_labels(make_file):
    devices = study(0, {"Support Devices": None})
    stated = study(1, {})
    stated["findings"]["No Finding"] = {"state": "absent"}
    root = make_file([devices, stated]).parent
    one = load(root)
    assert "no majority-class row: the file has no training study with labels" in one.notes
    scored = held_out.score(one, answers("No acute cardiopulmonary abnormality. Left effusion.", report()), **DRAW)
    at = {item["id"]: item for item in scored["per_item"]}
    # A tube alone is normal; what the labels say of "No Finding" stands; an answer with an effusion never is normal.
    assert at["test-0"]["truth"]["No Finding"] == 1 and at["test-0"]["correct"]["No Finding"] is False
    assert at["test-1"]["truth"]["No Finding"] == 0 and at["test-1"]["correct"]["No Finding"] is False


def test_uncertain_findings_by_choice(make_file):
    one = study(0, {})
    one["findings"]["Edema"] = {"state": "uncertain"}
    root = make_file([one]).parent
    hedged = answers("Possible edema.")
    assert value(held_out.score(load(root), hedged, **DRAW), "14 labels/exact match") == 1
    strict = load(root, uncertain="absent")
    scored = held_out.score(strict, hedged, **DRAW)
    assert value(scored, "14 labels/exact match") == 1 and scored["per_item"][0]["truth"] == {"No Finding": 1}
    assert value(held_out.score(strict, answers("Edema."), **DRAW), "14 labels/exact match") == 0


def test_per_item_numbers_serve_paired_tests(cohort):
    scored = held_out.score(load(cohort), answers(*ANSWERS), **DRAW)
    first, last = scored["per_item"][0], scored["per_item"][3]
    assert set(first["correct"]) == set(first["truth"]) == {"Pleural Effusion", "Edema", "No Finding"}
    assert first["truth"]["Pleural Effusion"] == 1 and first["correct"]["Pleural Effusion"] is True
    assert last["refused"] is True and not any(last["correct"].values())
    assert last["words"] == len(REFUSAL.split())


def test_labels_that_list_nothing_are_labels(make_file):
    """data.cxr_max --labels writes {} for a row whose labels are all blank: nothing is there, which is known."""
    blank = {"findings": {}}
    studies = [study(0, {}) | blank, study(2, {"Edema": None})]
    studies += [study(0, {"Edema": None}, split="train"), *(study(n, {}, split="train") | blank for n in (2, 4))]
    one = load(make_file(studies).parent, "cxr-max-held-out")
    assert [item.id for item in one.items] == ["test-0", "test-2"] and one.fingerprint["labelled"] == 2
    assert not any("without labels" in note for note in one.notes)
    assert one.protocol["majority_class"] == []  # edema is in one of three
    scored = held_out.score(one, answers(report(), report(Edema="present")), **DRAW)
    assert scored["per_item"][0]["truth"] == {"Edema": 0, "No Finding": 1}
    assert value(scored, "14 labels/exact match") == 1
    wrong = held_out.score(one, answers(report(Edema="present"), report(Edema="present")), **DRAW)
    assert value(wrong, "hallucinated/Edema") == 1 and value(wrong, "14 labels/exact match") == 1 / 2


def test_items_and_exclusions(cohort, make_file, tmp_path):
    one = load(cohort, "cxr-max-held-out")
    assert [item.id for item in one.items] == ["test-0", "test-1", "test-2", "test-3"]
    assert one.items[0].patient == "test-patient-0" and one.items[0].images == (str(cohort / "films/test-0.png"),)
    assert one.items[0].prompt.count("<image>") == 1
    assert one.fingerprint["with_consensus"] == 3 and one.fingerprint["with_sides"] == 2
    assert one.protocol["majority_class"] == ["Edema"]
    assert len(held_out.load("cxr-max-held-out", cohort, limit=2, options={}).items) == 2
    bare = study(9, {})
    del bare["findings"]
    make_file([study(0, {}), bare], "some.jsonl")
    two = load(cohort, studies="some.jsonl", images=str(tmp_path))
    assert "1 studies without labels were left out" in two.notes and len(two.items) == 1
    assert value(held_out.score(two, answers(report()), **DRAW), "14 labels/exact match") == 1
    make_file([bare], "none.jsonl")
    with pytest.raises(UserError, match='none.jsonl: no study of split "test" has findings'):
        load(cohort, studies="none.jsonl")
    with pytest.raises(UserError, match='none.jsonl: no study of split "train"; check --set split= and'):
        load(cohort, studies="none.jsonl", split="train")
    with pytest.raises(UserError, match="gone.jsonl: no such file.*--set studies=FILE"):
        load(cohort, studies="gone.jsonl")
    with pytest.raises(UserError, match="no such option; did you mean 'uncertain'"):
        load(cohort, uncertian="absent")


@pytest.mark.parametrize("name", ["A", "consensus", "Majority class"])
def test_a_name_of_another_row_is_refused_before_any_answer(cohort, tmp_path, name):
    given = tmp_path / "answers.jsonl"
    given.touch()
    words = ["--predictions", str(given), "--benchmark", "phantom-held-out", "--data-root", str(cohort), "--name", name]
    with pytest.raises(UserError, match=f"the name {name} is that of a teacher or another row"):
        run.main([*words, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    free = name != "Majority class"  # without the teachers' rows
    with pytest.raises(UserError, match="answers.jsonl" if free else f"the name {name} is"):
        run.main([*words, "--out", str(tmp_path / "out"), "--set", "teachers=no"])
