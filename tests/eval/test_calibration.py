import json
import math

import pytest

from data.errors import UserError
from data.variants import plain_text
from eval import calibration, rewards
from eval.ablation_metrics import in_consensus_form, sureness
from eval.ablation_metrics import main as metrics_main
from eval.statistics import calibration as measured
from tests.eval.cases import report, study

SAID = {"Consolidation": ("absent", None), "Pleural Effusion": ("present", "left"), "Edema": ("absent", None)}


def test_one_finding_is_exchanged_at_a_time():
    readings = calibration.readings_of(SAID)
    assert list(readings) == ["Consolidation", "Pleural Effusion", "Pneumonia", "Pneumothorax", "Edema"]
    texts = [plain_text(one) for one in readings["Pleural Effusion"]]
    assert texts == [
        f"No consolidation. {said} No pulmonary edema."
        for said in (
            "No pleural effusion.",
            "Pleural effusion.",
            "Left pleural effusion.",
            "Right pleural effusion.",
            "Bilateral pleural effusion.",
        )
    ]
    assert all(one["Consolidation"] == SAID["Consolidation"] for one in readings["Pleural Effusion"])


def test_a_text_that_says_present_does_not_say_that_there_is_nothing():
    said = {"Edema": ("absent", None), "No Finding": ("present", None)}
    texts = [plain_text(one) for one in calibration.readings_of(said)["Edema"]]
    assert texts[0] == plain_text(said) == "No pulmonary edema. No acute cardiopulmonary abnormality."
    assert texts[1:] == [f"{side}ulmonary edema." for side in ("P", "Left p", "Right p", "Bilateral p")]
    assert in_consensus_form(texts[0]), "such a report is asked about"


def test_a_film_is_scored_in_one_row():
    texts, row = calibration.row_of(study(0, {}), SAID, "/films")
    scored = [row["messages"][1]["content"], *(turns[0]["content"] for turns in row["negative_messages"])]
    assert scored == texts and len(set(texts)) == len(texts) and plain_text(SAID) in texts
    assert row["images"] == ["/films/films/test-0.png"]


def test_probability_is_the_share_of_the_texts_that_say_present():
    texts, _ = calibration.row_of(study(0, {}), SAID, "/")
    logps = dict.fromkeys(texts, -500.0)  # exp(-500) alone would be zero in float32
    assert calibration.p_present(SAID, logps)["Edema"] == pytest.approx(0.8)
    logps[plain_text(SAID | {"Edema": ("present", "bilateral")})] = -500.0 + math.log(4)
    found = calibration.p_present(SAID, logps)
    assert found["Edema"] == pytest.approx(7 / 8) and found["Pneumonia"] == pytest.approx(0.8)


def test_calibration_by_hand():
    found = measured([True, False, True, False], [0.9, 0.8, 0.2, 0.1])
    assert found["brier"] == pytest.approx((0.01 + 0.64 + 0.64 + 0.01) / 4)
    assert found["ece"] == pytest.approx((0.1 + 0.8 + 0.8 + 0.1) / 4) and found["auc"] == 0.75 and found["n"] == 4
    # two in one bin: their means are compared, not each with its own truth
    assert measured([True, False], [0.52, 0.58])["ece"] == pytest.approx(0.05)
    assert measured([True, True], [1.0, 1.0]) == {"n": 2, "brier": 0.0, "ece": 0.0, "auc": None}
    assert measured([], []) == {"n": 0, "brier": None, "ece": None, "auc": None}


def test_rows_are_held_against_the_truth():
    studies = [study(0, {"Edema": None}), study(1, {})]
    rows = [{"id": "test-0", "p": {"Edema": 0.9}}, {"id": "test-1", "p": {"Edema": 0.2}}]
    found = sureness(rows, studies)
    assert found["films"] == 2 and found["auc"] == 1.0 and found["brier"] == pytest.approx((0.01 + 0.04) / 2)
    with pytest.raises(Exception, match="'nobody'.*--studies"):
        sureness([{"id": "nobody", "p": {}}], studies)


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (calibration.main, ["c", "--studies", "file", "--answers", "other"]),
        (calibration.main, ["c", "--studies", "other", "--answers", "file"]),
        (rewards.main, ["c", "--reference", "c", "--studies", "file"]),
        (metrics_main, ["--studies", "file", "--results", "other"]),
        (metrics_main, ["--studies", "other", "--results", "file"]),
        (metrics_main, ["--studies", "other", "--results", "other", "--log", "file"]),
    ],
)
def test_an_input_is_no_output(tmp_path, monkeypatch, main, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="^--out file: is the input file; choose another$"):
        main([*words, "--out", "./file"])
    assert (tmp_path / "file").read_text() == "mine"


def test_command_asks_only_reports_in_the_form_of_the_consensus(tmp_path, monkeypatch, capsys):
    studies = [study(number, {"Edema": None}) for number in range(3)]
    said = [plain_text(SAID), report(), plain_text(SAID | {"Edema": ("present", None)})]
    answers = [{"id": one["id"], "text": text} for one, text in zip(studies, said, strict=True)]
    asked = []

    def scores(_student, rows, _batch_size):
        asked.extend(rows)
        return [[(-float(len(row["images"])), 5)] * (1 + len(row["negative_messages"])) for row in rows]

    monkeypatch.setattr(calibration, "select", lambda *_args, **_kwargs: (studies, "/films", ""))
    monkeypatch.setattr(calibration.checkpoints, "describe", lambda path, base: {"path": path})
    monkeypatch.setattr(calibration, "response_logps", scores)
    monkeypatch.setattr("apo.student_engine.Student", lambda *_args, **_kwargs: None)
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    words = ["checkpoint", "--studies", "x", "--answers", str(tmp_path / "answers.jsonl")]
    calibration.main([*words, "--out", str(tmp_path / "sure.jsonl")])
    found = [json.loads(line) for line in (tmp_path / "sure.jsonl").read_text().splitlines()]
    assert [row["id"] for row in found] == ["test-0", "test-2"] and len(asked) == 2
    assert all(set(row["p"].values()) == {0.8} for row in found)
    out = capsys.readouterr().out
    assert "2 films, 1 left out" in out and "no answers.jsonl.meta.json" in out
    calibration.main([*words, "--limit", "2", "--out", str(tmp_path / "less.jsonl")])
    assert len((tmp_path / "less.jsonl").read_text().splitlines()) == 1

    monkeypatch.setattr(calibration.checkpoints, "fingerprint", lambda path, base: base or "a1b2")
    note = tmp_path / "answers.jsonl.meta.json"
    note.write_text('{"checkpoint": "a1b2"}')
    calibration.main([*words, "--out", str(tmp_path / "same.jsonl")])
    assert (tmp_path / "same.jsonl").read_bytes() == (tmp_path / "sure.jsonl").read_bytes()
    for text, message in (
        ('{"checkpoint": "ffff"}', "answers.jsonl: another checkpoint than checkpoint gave them"),
        ("[]", "meta.json: is not what"),
    ):
        note.write_text(text)
        with pytest.raises(UserError, match=message):
            calibration.main([*words, "--out", str(tmp_path / "other.jsonl")])
    assert not (tmp_path / "other.jsonl").exists()
    note.write_text('{"checkpoint": "moved"}')
    calibration.main([*words, "--base", "moved", "--out", str(tmp_path / "moved.jsonl")])
    assert (tmp_path / "moved.jsonl").read_bytes() == (tmp_path / "sure.jsonl").read_bytes()


def test_a_bin_weighs_by_its_films_and_the_last_holds_certainty():
    assert measured([True] * 4, [0.9, 0.9, 0.9, 0.1])["ece"] == pytest.approx((3 * 0.1 + 0.9) / 4)
    assert measured([False, True], [1.0, 0.95])["ece"] == pytest.approx(0.475), "0.95 and 1.0 share the last bin"


def test_probabilities_of_long_reports_do_not_vanish():
    texts, _ = calibration.row_of(study(0, {}), SAID, "/")
    # exp(-1000) alone would be zero in float64, too
    assert calibration.p_present(SAID, dict.fromkeys(texts, -1000.0))["Edema"] == pytest.approx(0.8)
