import json
import subprocess
import sys

import pytest

from data.errors import UserError
from scripts import ablation_ledger as ledger
from scripts.plan import ROOT


def line(seed=0, **more):
    return {"world": "w", "row": "r", "seed": seed, "config": "c", "metrics": {}} | more


def test_a_run_is_never_there_twice(tmp_path):
    path = tmp_path / "results" / "l.jsonl"
    assert ledger.append(path, line(commit="a"))
    assert not ledger.append(path, line(commit="b")), "another commit is the same run"
    for other in ({"seed": 1}, {"world": "v"}, {"row": "q"}, {"config": "d"}):
        assert ledger.append(path, line() | other)
    assert len(ledger.read(path)) == len(path.read_text().splitlines()) == 5


def test_a_torn_last_line_is_mended_by_the_next(tmp_path):
    path = tmp_path / "l.jsonl"
    ledger.append(path, line())
    with open(path, "a") as file:
        file.write('{"world": "w", "ro')
    assert ledger.append(path, line(1))
    assert [json.loads(text)["seed"] for text in path.read_text().splitlines()] == [0, 1]


def test_what_is_no_ledger_is_refused(tmp_path):
    path = tmp_path / "l.jsonl"
    path.write_text('{"world": "w"}\n')
    with pytest.raises(UserError, match="l.jsonl:1: no line of a ledger"):
        ledger.read(path)
    path.write_text(2 * (json.dumps(line()) + "\n"))
    with pytest.raises(UserError, match="l.jsonl:2: r of w, seed 0, is there twice"):
        ledger.read(path)
    assert ledger.read(tmp_path / "none.jsonl") == {}


def test_several_processes_append_whole_lines_once(tmp_path):
    path = tmp_path / "l.jsonl"
    code = (
        "import sys; from pathlib import Path; from scripts import ablation_ledger as l\n"
        "for seed in range(20):\n"
        "    l.append(Path(sys.argv[1]), {'world': 'w', 'row': 'r', 'seed': seed, 'config': 'c', 'x': 'y' * 5000})"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert sorted(key[2] for key in ledger.read(path)) == list(range(20))


def test_commit_says_hash_and_dirty():
    found = ledger.commit()
    assert set(found) == {"commit", "dirty"}
    assert found["commit"] is None or len(found["commit"]) == 40
