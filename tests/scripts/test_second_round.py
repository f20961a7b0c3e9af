import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import UserError
from data.phantom.student import Shape, build_student
from data.records import read_studies
from scripts import second_round, stages
from scripts.plan import ROOT


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(student that never trained, study file of twelve films with seven teachers and a consensus)."""
    folder = tmp_path_factory.mktemp("world")
    cohort = folder / "cohort"

    def run(*words):
        subprocess.run([sys.executable, "-P", "-m", *words], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})

    run("data.phantom", "--out", str(cohort), "--train", "8", "--validate", "2", "--test", "2", "--seed", "0")
    first = cohort / "first.jsonl"
    run("apo.compare", "-", str(cohort / "studies.jsonl"), "--strategy", "vote", "--out", str(first))
    texts = [one["text"] for study in read_studies(first) for one in study["trajectories"]]
    shape = Shape(hidden=64, layers=2, vision_hidden=32, vision_depth=2, vocab=600)
    build_student(folder / "student", seed=0, texts=texts, shape=shape)
    return folder / "student", first


def bash(*words):
    command = ["bash", str(ROOT / "scripts/second_round.sh"), *map(str, words)]
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_student_is_heard_and_is_no_negative(world, tmp_path):
    student, first = world
    words = (student, first, "--out", tmp_path, "--max-new-tokens", 8, "--batch-size", 6, "--processes", 2)
    done = bash(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    made = tmp_path / "compare/studies.jsonl"
    assert f"next: bash APO-Qwen2.5.sh --model {student} --dataset {made} --image_root {first.parent}" in done.stdout
    heard = {study["id"]: study for study in read_studies(tmp_path / "compare/with-voice.jsonl")}
    before = {study["id"]: study for study in read_studies(first)}
    for study in read_studies(made):
        voices = [one["teacher"] for one in heard[study["id"]]["trajectories"]]
        assert voices[-1] == "student" and len(voices) == 8
        assert study["trajectories"] == before[study["id"]]["trajectories"], "the teachers' alone"
        assert study["consensus"]["strategy"] == "dawid_skene" != before[study["id"]]["consensus"]["strategy"]
    assert len(heard) == 12
    log = (tmp_path / "logs/voice.log").read_text()
    assert "[1/2] 6/6 answers" in log and "[2/2] 6/6 answers" in log
    assert "answers of student: 0 heard, " in done.stdout and "studies without a consensus: 0\n" in done.stdout
    again = bash(*words)
    assert again.returncode == 0 and again.stdout.count("finished before") == 2


def test_an_interrupted_round_goes_on(world, tmp_path, monkeypatch, capsys):
    student, first = world
    ran = []

    def stop(command, log, *_, **__):
        ran.append(command)
        log.touch()
        return 130

    monkeypatch.setattr(stages, "execute", stop)
    with pytest.raises(UserError, match="stage voice failed with status 130"):
        second_round.main([str(student), str(first), "--out", str(tmp_path)])
    assert ran[0][ran[0].index("--split") + 1] == "all"
    marker = stages.read_marker(tmp_path, "voice")
    assert marker["state"] == "running" and not stages.read_marker(tmp_path, "compare")
    kept = tmp_path / "voice/answers.jsonl"
    kept.parent.mkdir()
    kept.touch()
    with pytest.raises(UserError, match="stage voice failed"):
        second_round.main([str(student), str(first), "--out", str(tmp_path)])
    assert "voice: was interrupted, goes on" in capsys.readouterr().out and kept.exists()
    # Other settings: eval.predict itself knows whether these answers can be gone on with.
    with pytest.raises(UserError, match="stage voice failed"):
        second_round.main([str(student), str(first), "--out", str(tmp_path), "--processes", "2"])
    assert "voice: runs again, its settings or an earlier stage changed" in capsys.readouterr().out and kept.exists()


def test_options_reach_answers_and_consensus(world, tmp_path, monkeypatch):
    student, first = world
    ran = {}
    monkeypatch.setattr(stages, "run_stage", lambda out, chain, name, commands, **_: ran.update({name: commands}))
    monkeypatch.setattr(second_round, "summary", lambda *_: "")
    words = ["--strategy", "self", "--allow-outside", "--device", "cpu", "--image-root", "films", "--processes", "2"]
    second_round.main([str(student), str(first), "--out", str(tmp_path), *words])
    for command in (ran["voice"][0], ran["compare"][0]):
        assert "--allow-outside" in command and command[command.index("--device") + 1] == "cpu"
        assert command[command.index("--processes") + 1] == "2"
        assert command[command.index("--image-root") + 1] == str(Path("films").absolute())
    assert "--allow-failures" in ran["compare"][0], "one text that fails does not hold up the others"
    assert ran["compare"][0][4:6] == [str(student), str(tmp_path / "voice/studies.jsonl")]
    second_round.main([str(student), str(first), "--out", str(tmp_path), "--processes", "2"])
    assert "--processes" in ran["voice"][0] and "--processes" not in ran["compare"][0], "fitted on all studies together"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strategy", "votes"], "--strategy votes: did you mean 'vote'"),
        (["--name", "gpt-5-nano"], "trajectory of 'gpt-5-nano'; choose another --name"),
        (["--name", "a=b"], "--name a=b: must not hold ="),
    ],
)
def test_bad_words_are_refused_before_a_film_is_read(world, tmp_path, monkeypatch, words, message):
    student, first = world
    monkeypatch.setattr(stages, "run_stage", lambda *_, **__: pytest.fail("a stage was begun"))
    with pytest.raises(UserError, match=message):
        second_round.main([str(student), str(first), "--out", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_there_and_an_empty_study_file_are_refused(world, tmp_path):
    with pytest.raises(UserError, match="none: no such checkpoint"):
        second_round.main([str(tmp_path / "none"), str(world[1]), "--out", str(tmp_path / "out")])
    (tmp_path / "s.jsonl").touch()
    with pytest.raises(UserError, match="s.jsonl: holds no study"):
        second_round.main([str(world[0]), str(tmp_path / "s.jsonl"), "--out", str(tmp_path / "out")])
