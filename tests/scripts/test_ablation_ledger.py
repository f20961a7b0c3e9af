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


def test_processes_that_append_at_the_same_moment_append_each_line_once(tmp_path):
    path, go = tmp_path / "l.jsonl", tmp_path / "go"
    code = (
        "import sys, time; from pathlib import Path; from scripts import ablation_ledger as l\n"
        "print('ready', flush=True)\n"
        "while not Path(sys.argv[2]).exists(): pass\n"
        "for seed in range(60):\n"
        "    l.append(Path(sys.argv[1]), {'world': 'w', 'row': 'r', 'seed': seed, 'config': 'c', 'x': 'y' * 5000})"
    )
    words = [sys.executable, "-c", code, str(path), str(go)]
    running = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(4)]
    assert all(process.stdout.readline() for process in running)
    go.touch()
    assert [process.wait() for process in running] == [0] * 4
    assert sorted(key[2] for key in ledger.read(path)) == list(range(60))


def test_a_commit_is_dirty_by_any_file_but_the_matrixs_own(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    (tmp_path / "docs/results").mkdir(parents=True)
    for name in ("docs/results/phantom.jsonl", "docs/evidence.md", "scripts.py"):
        (tmp_path / name).write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    monkeypatch.setattr(ledger, "ROOT", tmp_path)
    assert ledger.commit()["dirty"] is False and len(ledger.commit()["commit"]) == 40
    (tmp_path / "docs/results/phantom.jsonl").write_text("2")
    (tmp_path / "docs/evidence.md").write_text("2")
    assert ledger.commit()["dirty"] is False
    (tmp_path / "scripts.py").write_text("2")
    assert ledger.commit()["dirty"] is True
