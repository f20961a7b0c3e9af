"""The two command lines of this room as a user types them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.presence import FIVE
from tests.eval.cases import ALL_CLEAR, study, trajectory

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["cohort", "student", "learn", "compare", "critique", "evaluate", "report"]


def bash(script, *words, cwd=ROOT, **variables):
    env = os.environ | {"VIRTUAL_ENV": sys.prefix} | variables
    call = ["bash", ROOT / "scripts" / script, *words]
    return subprocess.run(call, capture_output=True, text=True, env=env, cwd=cwd)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sed", "1"], "unknown flag --sed"),
        (["--seed", "one"], "--seed one: must be a whole number"),
        (["--out"], "--out needs a value"),
    ],
)
def test_quickstart_refuses_before_it_does_anything(words, message):
    done = bash("quickstart.sh", *words)
    assert done.returncode == 2 and message in done.stderr and not done.stdout


@pytest.mark.parametrize("script", ["quickstart.sh", "evaluate.sh"])
def test_help_is_the_head_of_the_script(script):
    done = bash(script, "--help")
    assert done.returncode == 0 and f"bash scripts/{script}" in done.stdout and "set -euo" not in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ckpt"], "no STUDIES.jsonl given"),
        (["--studies", "s.jsonl"], "no checkpoint given"),
        (["ckpt", "s.jsonl", "more"], "unexpected: more"),
        (["ckpt", "s.jsonl", "--beta", "1"], "unknown flag --beta"),
        (["ckpt", "s.jsonl", "--out"], "--out needs a value"),
        (["ckpt", "s.jsonl", "--split", "all"], "--split all: scores are of one split"),
        (["ckpt", "s.jsonl"], "ckpt: no such checkpoint"),
        (["ckpt", "s.jsonl", "--out=o", "--split=test", "--limit=1", "--image-root=."], "ckpt: no such checkpoint"),
        (["ckpt", "s.jsonl", "--name=x"], "ckpt: no such checkpoint"),
        (["ckpt", "s.jsonl", "--beta=1"], "unknown flag --beta"),
        (["ckpt", "s.jsonl", "--overwrite=yes"], "--overwrite takes no value"),
        # Before the checkpoint is looked at, let alone asked.
        (["ckpt", "s.jsonl", "--uncertain", "maybe"], "invalid choice: 'maybe'"),
        (["ckpt", "s.jsonl", "--seed", "x"], "invalid int value: 'x'"),
        (["ckpt", "s.jsonl", "--seed", "-3"], "--seed -3: must be at least 0"),
        (["ckpt", "s.jsonl", "--split", "tset"], "invalid choice: 'tset'"),
        (["ckpt", "s.jsonl", "--name", "grok-4"], "the name grok-4 is that of a teacher or another row"),
        (["ckpt", "s.jsonl", "--name", "a=b"], "--name a=b: must not hold ="),
        (["ckpt", "s.jsonl", "--name", "a\nb"], "--name a b: must not hold ="),
        # Flags of the form on benchmarks, and of this one there.
        (["ckpt", "s.jsonl", "--gpus", "2"], "--gpus: only with --benchmark; with STUDIES.jsonl write --processes"),
        (["ckpt", "s.jsonl", "--train=t.jsonl"], "--train: only with --benchmark"),
        (["ckpt", "s.jsonl", "--skip-no-image"], "--skip-no-image: only with --benchmark"),
        (
            ["ckpt", "--benchmark=b", "--image-root", "."],
            "--image-root: only with STUDIES.jsonl; with",
        ),
        (["ckpt", "--benchmark=b", "--split=test"], "--split: only with STUDIES.jsonl"),
        (["ckpt", "s.jsonl", "--split", "train"], 'none of the 1 studies of split "train" has findings'),
    ],
)
def test_evaluate_names_what_is_wrong(words, message, make_file, tmp_path):
    unknown = study(0, {}, split="train")
    del unknown["findings"]
    make_file([study(0, {}, [trajectory("grok-4", ALL_CLEAR)]), unknown], "s.jsonl")
    done = bash("evaluate.sh", *words, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


# In place of Python: says which command began, and ends as told when SIGTERM comes.
STAND_IN = """#!/usr/bin/env bash
[[ $1 != -c && " $* " != *" --check "* ]] || exit 0
trap "exit $STATUS" TERM
[[ $1 == -P ]] && echo "$3" >>"$NOTE" || echo "$1" >>"$NOTE"
for _ in {1..600}; do sleep 0.1; done
"""


@pytest.mark.parametrize("status", [0, 143])
@pytest.mark.parametrize(
    ("script", "words", "began"),
    [
        ("evaluate.sh", ["checkpoint", "s.jsonl"], "eval.predict\n"),
        ("evaluate.sh", ["checkpoint", "s.jsonl", "--overwrite"], "eval.predict\n"),
        ("quickstart.sh", [], "scripts/stages.py\n"),
    ],
)
@pytest.mark.parametrize(("number", "ends_with"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_shell_ends_its_command_and_begins_no_other(
    script, words, began, number, ends_with, status, tmp_path
):
    python, note = tmp_path / "bin/python", tmp_path / "note"
    python.parent.mkdir()
    python.write_text(STAND_IN)
    python.chmod(0o755)
    env = os.environ | {"VIRTUAL_ENV": str(tmp_path), "STATUS": str(status), "NOTE": str(note)}
    process = subprocess.Popen(
        ["bash", ROOT / "scripts" / script, *words, "--out", tmp_path / "out"],
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        # What a shell starts with `&` ignores SIGINT, and so would every child of such a run of the tests.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 60
    while not note.exists() or not note.read_text():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    how = "run the same command without --overwrite: " if "--overwrite" in words else "run the same command: "
    assert process.returncode == ends_with and f"stopped by a signal; to go on, {how}" in said
    assert note.read_text() == began


@pytest.mark.slow
def test_the_whole_story_in_small_and_again(tmp_path):
    out = tmp_path / "run"
    first = bash("quickstart.sh", "--smoke", "--seed", "3", "--out", str(out))
    assert first.returncode == 0, first.stdout + first.stderr
    for number, name in enumerate(STAGES, 1):
        assert f"[{number}/7] {name} ..." in first.stdout
    results = json.loads((out / "results.json").read_text())
    assert results["seed"] == 3 and list(results["seconds"]) == STAGES
    kinds = [row["kind"] for row in results["rows"]]
    assert kinds == ["teacher"] * 7 + ["baseline", "consensus", "student", "student"]
    assert [row["stage"] for row in results["rows"][-2:]] == ["learn", "critique"]
    assert all(row["n"] == 24 and set(row["accuracy"]) == set(FIVE) for row in results["rows"])
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("No curve") == 0 and page.count("data:image/png;base64,") == 6
    before = (out / "results.json").read_bytes()
    again = bash("quickstart.sh", "--smoke", "--seed", "3", "--out", str(out))
    assert again.returncode == 0 and again.stdout.count("not repeated") == 7
    assert (out / "results.json").read_bytes() == before
    # A driver that lists one GPU, for two processes on the CPU.
    driver = tmp_path / "bin/nvidia-smi"
    driver.parent.mkdir()
    driver.write_text("#!/bin/sh\necho 0, GPU-a, NVIDIA H100, 81559, 81000\n")
    driver.chmod(0o755)
    found = {"PATH": f"{driver.parent}:{os.environ['PATH']}"}
    more = bash("quickstart.sh", "--smoke", "--seed", "3", "--out", str(out), "--second-round", **found)
    assert more.returncode == 0, more.stdout + more.stderr
    assert more.stdout.count("not repeated") == 5, "what the first round made"
    results = json.loads((out / "results.json").read_text())
    assert list(results["seconds"]) == [*STAGES[:5], "compare-again", "critique-again", *STAGES[5:]]
    kinds = [row["kind"] for row in results["rows"]]
    assert kinds == ["teacher"] * 7 + ["baseline", *["consensus"] * 2, *["student"] * 3]
    assert results["rows"][-1]["stage"] == "second round"
    log = (out / "logs/critique-again.log").read_text(encoding="utf-8")
    assert f"--model {out}/critique/" in log.split("\n")[0] and f"--dataset {out}/compare-again/" in log.split("\n")[0]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("No curve") == 0 and page.count("(second round)</h3>") == 4
