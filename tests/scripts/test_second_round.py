import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from data import checkpoints
from data.errors import UserError
from data.phantom.student import Shape, build_student
from data.records import read_studies, write_studies
from scripts import launch, second_round, stages
from scripts.plan import ROOT
from scripts.settings import parse_command
from tests.apo import voices


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


@pytest.fixture
def speaking(monkeypatch):
    """The student, which never trained, is given words that end; the commands run as they are."""
    execute = stages.execute

    def heard(command, log, *rest, **options):
        status = execute(command, log, *rest, **options)
        if "eval.predict" in command:
            answers = Path(command[command.index("--out") + 1])
            rows = [json.loads(line) for line in answers.read_text().splitlines()]
            spoken = [row | {"text": "No pneumothorax.", "finish_reason": "stop"} for row in rows[1:]]
            answers.write_text("".join(json.dumps(row) + "\n" for row in [rows[0], *spoken]))
        return status

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(stages, "execute", heard)


def test_a_student_that_is_not_heard_is_refused_before_the_consensus(world, tmp_path):
    student, first = world
    done = bash(student, first, "--out", tmp_path, "--max-new-tokens", 8, "--batch-size", 6, "--processes", 2)
    assert done.returncode == 2 and "next: " not in done.stdout, done.stdout + done.stderr
    told = re.search(r"error: (\S+): no answer of student is heard \((.*)\); ", done.stderr)
    assert told[1] == str(tmp_path / "voice/answers.jsonl")
    assert sum(map(int, re.findall(r"\d+", told[2]))) == 12 and "truncated" in told[2]
    assert "--max-new-tokens" in done.stderr and not (tmp_path / "compare").exists()
    more = bash(student, first, "--out", tmp_path, "--max-new-tokens", 8, "--batch-size", 6, "--processes", 2)
    assert more.returncode == 2 and "not repeated" in more.stdout, "asked once"
    words = (student, first, "--out", tmp_path, "--max-new-tokens", 8, "--batch-size", 6, "--processes", 2)
    done = bash(*words, "--allow-unheard")
    assert done.returncode == 0 and "answers of student: 0 heard" in done.stdout, done.stdout + done.stderr
    log = (tmp_path / "logs/voice.log").read_text()
    assert "[1/2] 6/6 answers" in log and "[2/2] 6/6 answers" in log


def test_the_student_is_heard_and_is_no_negative(world, tmp_path, speaking, monkeypatch, capsys):
    student, first = world
    labels, tmp_path = tmp_path / "labels", tmp_path / "out"
    words = [str(student), str(first), "--out", str(tmp_path), "--max-new-tokens", "8", "--batch-size", "6"]
    second_round.main(words)
    told = capsys.readouterr().out
    made = tmp_path / "compare/studies.jsonl"
    heard = {study["id"]: study for study in read_studies(tmp_path / "compare/with-voice.jsonl")}
    before = {study["id"]: study for study in read_studies(first)}
    for study in read_studies(made):
        voices = [one["teacher"] for one in heard[study["id"]]["trajectories"]]
        assert voices[-1] == "student" and len(voices) == 8
        assert study["trajectories"] == before[study["id"]]["trajectories"], "the teachers' alone"
        assert study["consensus"]["strategy"] == "dawid_skene" != before[study["id"]]["consensus"]["strategy"]
    assert len(heard) == 12
    assert "answers of student: 11 heard, 1 truncated and not heard; studies without a consensus: 0\n" in told
    second_round.main(words)
    assert capsys.readouterr().out.count("finished before") == 2
    words += ["--labels", str(labels)]
    for text in (first.read_text(), first.read_text() + "\n"):
        labels.write_text(text)
        second_round.main(words)
        assert "compare: runs again, its settings, a file that it reads or" in capsys.readouterr().out
    second_round.main(words)
    assert capsys.readouterr().out.count("finished before") == 2

    # What it says is next is what the launcher takes, on a CPU with the small student's configuration.
    (told,) = [line.removeprefix("next: ") for line in told.splitlines() if line.startswith("next: ")]
    shell, script, *given = shlex.split(told)
    assert (shell, script) == ("bash", "APO-Qwen2.5.sh")
    flags = parse_command("critique", given).flags
    assert flags["output_dir"] == str(tmp_path / "critique") and flags["model"] == str(student)
    assert flags["on_identical"] == "drop-negative"
    assert flags["on_missing_consensus"] == flags["on_missing_negative"] == "drop"
    monkeypatch.setattr(launch, "execute", lambda plan, lock: 0)
    assert launch.main(["apo", str(ROOT / "configs/apo_phantom.yaml"), *given]) == 0
    assert (tmp_path / "critique/rows/train.jsonl").exists()


def test_who_declines_or_says_nothing_is_not_heard(tmp_path, capsys):
    texts = ["No edema.", "I am sorry, but I cannot interpret medical images.", "The film is rotated.", "", None]
    studies = [voices.study([], name=f"s{n}") for n in range(5)]
    for one, text in zip(studies, texts, strict=True):
        if text is not None:
            one["trajectories"] = [{"teacher": "student", "text": text, "status": "ok" if text else "empty"}]
    path = tmp_path / "studies.jsonl"
    write_studies(path, studies)
    told = (
        "1 heard, 1 empty and not heard, 1 not answered and not heard, 1 refused and not heard, 1 says nothing and not"
    )
    assert told in second_round.summary(path, "student")
    write_studies(path, studies[1:3])
    with pytest.raises(UserError, match=r"no answer of student is heard \(1 refused, 1 says nothing\); "):
        second_round.refuse_unheard(path, tmp_path / "answers.jsonl", "student")


def test_a_student_that_was_trained_again_is_asked_again(world, tmp_path, monkeypatch, capsys):
    student, first = world

    def ran(command, log, *_, **__):
        folder = tmp_path / ("compare" if "apo.compare" in command else "voice")
        folder.mkdir(exist_ok=True)
        return 0

    monkeypatch.setattr(stages, "execute", ran)
    monkeypatch.setattr(second_round, "summary", lambda *_: "")
    monkeypatch.setattr(second_round, "refuse_unheard", lambda *_: None)
    words = [str(student), str(first), "--out", str(tmp_path)]

    def again(*more):
        capsys.readouterr()
        second_round.main([*words, *more])
        return re.findall(r"\] (voice|compare): (runs again|finished before)", capsys.readouterr().out)

    assert again() == []
    assert again() == [("voice", "finished before"), ("compare", "finished before")]
    monkeypatch.setattr(checkpoints, "fingerprint", lambda *_: "other weights")
    anew = [("voice", "runs again"), ("compare", "runs again")]
    assert again() == again("--overwrite") == again("--overwrite") == anew


def test_an_adapter_is_merged_first():
    told = second_round.next_commands("adapter", Path("/a b/c"), Path("/o"), Path("/o/s"), Path("/f"), True, "/base")
    export, critique = map(shlex.split, told.replace("next: ", "").replace("then: ", "").splitlines())
    merged = ["--merge_lora", "true", "--output_dir", "/o/merged", "--model", "/base"]
    assert export[3:] == ["export", "--adapters", "/a b/c", *merged]
    assert critique[critique.index("--model") + 1] == "/o/merged"
    assert critique[-2:] == ["--allow_outside", "true"], "what the films needed before"


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
    assert "voice: runs again, its settings, a file that it reads or" in capsys.readouterr().out and kept.exists()


def test_options_reach_answers_and_consensus(world, tmp_path, monkeypatch):
    student, first = world
    ran = {}
    monkeypatch.setattr(stages, "run_stage", lambda out, chain, name, commands, **_: ran.update({name: commands}))
    monkeypatch.setattr(second_round, "summary", lambda *_: "")
    monkeypatch.setattr(second_round, "refuse_unheard", lambda *_: None)
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
    second_round.main([str(student), str(first), "--out", str(tmp_path), "--labels", str(first), "--label-limit", "5"])
    words = ran["compare"][0]
    assert words[words.index("--labels") + 1 :][:3] == [str(first), "--label-limit", "5"]
    assert "--labels" not in ran["voice"][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strategy", "votes"], "--strategy votes: did you mean 'vote'"),
        (["--name", "gpt-5-nano"], "trajectory of 'gpt-5-nano'; choose another --name"),
        (["--name", "a=b"], "--name a=b: must not hold =, nor be empty"),
        (["--name", ""], "--name : must not hold =, nor be empty"),
        (["--labels", "none.jsonl"], "none.jsonl: cannot be read"),
        (["--labels", "x.jsonl", "--strategy", "self"], "--labels: self takes none"),
        (["--label-limit", "3"], "no --labels to limit"),
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
