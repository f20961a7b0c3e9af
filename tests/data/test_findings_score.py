"""How the reader is measured: counts by hand, both kinds of truth, and that the numbers hold."""

import re

import pytest

from data import findings_score
from data.errors import UserError
from data.findings_lexicon import FIVE, LABELS
from data.findings_score import ARGUED, UNSEEN, Row, markdown, phantom_rows, read_labelled, score


def test_score_counts_wrong_states_as_both_errors():
    rows = [
        Row(1, "No effusion.", {"Pleural Effusion": ("present", None)}),
        Row(2, "Left effusion.", {}),
        Row(3, "Left effusion.", {"Pleural Effusion": ("present", "right")}),
    ]
    one = score(rows)["Pleural Effusion"]
    assert (one["n"], one["precision"], one["recall"], one["side"]) == (2, 1 / 3, 1 / 2, 0.0)
    assert one["f1"] == pytest.approx(0.4)
    assert score(rows, ["Edema"])["all"]["n"] == 0


def test_unseen_sentences_are_enough_and_read_well():
    rows = [row for path in UNSEEN for row in read_labelled(path)]
    assert len(rows) >= 140
    for label in LABELS:
        assert any(label in want for _, _, want in rows), label
    assert score(rows)["all"]["f1"] > 0.94


def test_argued_sentences_hold_what_was_mended():
    rows = [row for path in ARGUED for row in read_labelled(path)]
    assert len(rows) >= 140
    assert score(rows)["all"]["f1"] > 0.9


def test_the_phantom_is_read_as_it_was_made_to_speak():
    told, reports = phantom_rows(60, seed=1)
    assert len(reports) == 60 and len(told) > 6 * 60
    states = {want[label][0] for _, _, want in told for label in FIVE}
    assert states == {"present", "absent"}
    for rows in (told, reports):
        total = score(rows, [*FIVE, "Atelectasis", "Cardiomegaly", "Support Devices"])["all"]
        assert total["f1"] > 0.99 and total["side"] > 0.99


def test_truth_of_the_phantom_is_no_reading(monkeypatch):
    def nothing(text):
        return []

    monkeypatch.setattr(findings_score, "read_findings", nothing)
    told, _ = phantom_rows(3, seed=0)
    total = score(told)["all"]
    assert total["n"] > 3 * 6 * len(FIVE) and total["recall"] == 0


def test_command_prints_all_labels_and_what_is_read_otherwise(tmp_path, capsys):
    path = tmp_path / "rows.tsv"
    path.write_text("No edema.\tEdema=absent\nLeft effusion.\tEdema=present\n")
    findings_score.main([str(path), "--errors"])
    out, err = capsys.readouterr()
    for label in (*LABELS, "all"):
        assert re.search(rf"^{label} +\d+ ", out, re.MULTILINE), label
    assert err.startswith("2: 'Left effusion.'") and "1:" not in err


def test_command_without_a_file_prints_the_table(capsys, monkeypatch):
    monkeypatch.setattr(findings_score, "STUDIES", 4)
    findings_score.main([])
    out = capsys.readouterr().out.splitlines()
    assert out[0].count("P / R / F1") == 4
    assert [line.split(" | ")[0].removeprefix("| ") for line in out[2 : 3 + len(LABELS)]] == [*LABELS, "all"]
    assert all(line.count("|") == out[0].count("|") for line in out[1 : 3 + len(LABELS)])


def test_a_label_without_claims_stays_empty():
    table = markdown({"one": score([Row(1, "No edema.", {"Edema": ("absent", None)})])})

    assert "| Edema | 1 | 1.000 / 1.000 / 1.000 |  |" in table and "| Fracture |  |  |  |" in table


@pytest.mark.parametrize(
    "row, complaint", [("No edema.\tOedema=absent", "14 labels"), ("No edema.", "no tab"), ("x\tEdema=no", "14 labels")]
)
def test_bad_labelled_row_is_named(tmp_path, row, complaint):
    path = tmp_path / "rows.tsv"
    path.write_text(f"# comment\n{row}\n")
    with pytest.raises(UserError, match=rf"rows\.tsv:2: .*{complaint}"):
        read_labelled(path)
    path.write_text("# comment\n\n")
    with pytest.raises(UserError, match="rows.tsv: holds no labelled sentence; write"):
        read_labelled(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_labelled(tmp_path / "none.tsv")


def test_what_windows_and_a_text_itself_bring_along(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_bytes("\ufeff# comment\r\nNo edema.\u2028Clear.\tEdema=absent\r\n".encode())
    (row,) = read_labelled(path)
    assert row == (2, "No edema.\u2028Clear.", {"Edema": ("absent", None)})


def test_truth_of_a_report_holds_what_has_gone_and_no_side_of_what_has_none():
    _, reports = phantom_rows(60, seed=1)
    others = {want[label][0] for _, _, want in reports for label in want if label not in FIVE}
    assert others == {"present", "absent"}, "what a report says has gone"
    assert findings_score._decision("Cardiomegaly", "present", "left") == ("present", None)
    assert findings_score._decision("Pleural Effusion", "absent", "left") == ("absent", None)
