"""The benchmark of rows: what it feeds the stages, and what it tells. No time is asserted."""

import json
import os

import pytest

from data import bench
from data.errors import UserError
from data.records import check_studies
from data.row_checks import check_rows
from data.rows import write_rows


@pytest.fixture
def made(tmp_path):
    bench.make_films(tmp_path, 4)
    path = tmp_path / "studies.jsonl"
    path.write_bytes(b"".join(bench.lines(6, 4, 100, seed=0)))
    return path


def test_its_records_pass_every_check_and_give_rows_of_both_stages(made):
    counts = check_studies(made)
    assert counts["studies"] == 6 and counts["trajectories"] == {"ok": 42} and counts["consensus"] == 6
    for kind, rows in (("sft", 42), ("apo", 6)):
        out = made.parent / f"{kind}.jsonl"
        told = write_rows(kind, made, out, split="train")
        assert told["rows"] == rows and not told["set_aside"]
        check_rows(out, kind)
    assert told["negatives"] == 42 and told["duplicate_negatives"] == told["identical_negatives"] == 0


def test_texts_are_as_long_as_asked_and_differ():
    texts = bench.texts(830, seed=0)
    assert len({*texts}) == bench.TEXTS and all(800 <= len(text) <= 890 for text in texts)


def test_both_stages_are_measured_and_nothing_is_left(tmp_path, capsys):
    target = tmp_path / "numbers.json"
    ballast = b"x" * 300_000_000  # of this process: what is measured is the command's own
    words = ["--studies", "5", "--times", "1,3", "--characters", "60", "--folder", str(tmp_path), "--json", str(target)]
    bench.main(words)
    whole = json.loads(target.read_text())
    assert [one["trajectories"] for one in whole["results"]] == [35, 105]
    for one in whole["results"]:
        for stage in bench.STAGES:
            assert one[stage]["seconds"] > 0 and 5 < one[stage]["peak_mb"] < 100 < len(ballast) / 1e6
    assert os.listdir(tmp_path) == ["numbers.json"]
    printed = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in printed[2:]}) == 1 and printed[-1].startswith("| 3 | 105 |")


def test_a_stage_that_fails_is_told(tmp_path, capfd):
    (tmp_path / "studies.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="data.rows sft: ended with status 2"):
        bench.measure("sft", tmp_path / "studies.jsonl", tmp_path / "rows.jsonl")
    assert "field(s) missing" in capfd.readouterr().err


@pytest.mark.parametrize("words", [["--times", "0"], ["--times", "1;2"], ["--studies", "0"], ["--folder", "/no/such"]])
def test_bad_options(words):
    with pytest.raises(UserError, match=words[0]):
        bench.parse_args(words)
