import json

import pytest

from data.errors import UserError
from data.findings import read_findings, summarise
from data.phantom.cohort import plan
from data.records import write_studies
from data.row_checks import check_row
from scripts.aggregation import lesson, main


def test_a_lesson_answers_with_the_majority_of_its_readings():
    study = plan("train", 1, seed=0, world="balanced")[0]
    lessons = [lesson(study, number, 5, "/films") for number in range(30)]
    for row in lessons:
        check_row(row, "sft")
        prompt, answer = (turn["content"] for turn in row["messages"])
        assert prompt.count("<image>") == 1 and "independent readings" in prompt
        assert summarise(read_findings(answer))
    assert len({row["messages"][1]["content"] for row in lessons}) > 20
    assert lessons == [lesson(study, number, 5, "/films") for number in range(30)], "seeded"


def test_no_truth_of_the_cohort_and_no_word_of_its_teachers_is_in_a_lesson():
    study = plan("train", 1, seed=0, world="balanced")[0]
    other = {**study, "findings": {}, "trajectories": [], "report": "x"}
    assert lesson(study, 3, 5, "/films") == lesson(other, 3, 5, "/films")


def test_command_line(tmp_path, capsys):
    path = tmp_path / "studies.jsonl"
    write_studies(path, plan("train", 4, seed=0, world="balanced") + plan("test", 2, seed=0, world="balanced"))
    main([str(path), "--out", str(tmp_path / "rows.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and len({row["images"][0] for row in rows}) == 4
    write_studies(path, plan("test", 2, seed=0, world="balanced"))
    with pytest.raises(UserError, match="no study of split train"):
        main([str(path), "--out", str(tmp_path / "rows.jsonl")])
