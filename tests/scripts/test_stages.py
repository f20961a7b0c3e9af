"""Stages of the quickstart and the ablation matrix: once each, and after an interruption on from where they were."""

import hashlib
import json
import signal
import subprocess
import sys
import time

import pytest

from data.errors import UserError
from scripts import stages
from scripts.plan import ROOT

# Writes a line of the log, then one of the result; the first run of those that are to be stopped then waits.
COMMAND = """
import pathlib, time
made = pathlib.Path({made!r})
made.parent.mkdir(exist_ok=True)
first = not made.exists()
print("a line of the log", flush=True)
with open(made, "a") as file:
    file.write("begun\\n")
time.sleep(60 if first and {stop} else 0)
"""


def result(out):
    return out / "step" / "result"


def words(out, *flags, stop=False):
    command = [sys.executable, "-c", COMMAND.format(made=str(result(out)), stop=stop)]
    own = ["--out", out, "--chain", "step", "--stage", "step", *flags, "--", *command]
    return [sys.executable, str(ROOT / "scripts/stages.py"), *map(str, own)]


def run(*args, **kwargs):
    return subprocess.run(words(*args, **kwargs), capture_output=True, text=True)


def interrupt(out, *flags):
    """Start a stage that waits, and end it as `kill` does; returns what it said."""
    process = subprocess.Popen(words(out, *flags, stop=True), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not result(out).exists() or not result(out).read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 143
    return said


@pytest.mark.parametrize(("flags", "begun"), [(["--keep"], 2), ([], 1)])
def test_an_interrupted_stage_goes_on_or_begins_anew(tmp_path, flags, begun):
    said = interrupt(tmp_path, *flags)
    assert "interrupted; to go on, run the same command" in said
    spent = stages.read_marker(tmp_path, "step")["seconds"]
    again = run(tmp_path, *flags, stop=True) if flags else run(tmp_path)
    assert again.returncode == 0, again.stderr
    assert ("was interrupted, goes on" in again.stdout) == bool(flags)
    assert result(tmp_path).read_text() == "begun\n" * begun
    whole = stages.read_marker(tmp_path, "step")
    assert whole["state"] == "done" and spent > 0
    assert (whole["seconds"] >= spent) == bool(flags), "with what was spent before, where its work is kept"
    log = (tmp_path / "logs/step.log").read_text()
    assert log.count("\na line of the log") == begun, "the log of the first part is kept with its work"


def test_a_finished_stage_is_not_repeated_and_a_changed_one_is(tmp_path):
    assert run(tmp_path, "--keep").returncode == 0
    again = run(tmp_path, "--keep")
    assert "finished before" in again.stdout and result(tmp_path).read_text() == "begun\n"
    changed = run(tmp_path, "--keep", stop=0)  # the same, written otherwise
    assert "runs again, its settings, a file that it reads or an earlier stage changed" in changed.stdout
    assert result(tmp_path).read_text() == "begun\n", "what the earlier settings made is gone"


def test_what_commands_judge_themselves_is_left_to_them(tmp_path):
    def stage(text, **options):
        append = f"open({str(tmp_path / 'step')!r}, 'a').write({text!r})"
        return stages.run_stage(tmp_path, ["step"], "step", [[sys.executable, "-c", append]], keep=True, **options)

    (tmp_path / "step").touch()
    with pytest.raises(UserError, match="was not made by stage step"):
        stage("a", careful=True)
    (tmp_path / "step").unlink()
    assert stage("a", careful=True) and stage("b", careful=True)
    assert (tmp_path / "step").read_text() == "ab"
    assert stage("c") and (tmp_path / "step").read_text() == "c"


def test_an_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").touch()
    done = run(tmp_path / "out")
    assert done.returncode == 2 and done.stderr == (
        f"error: --out {tmp_path / 'out'}: {tmp_path / 'out'} is not a folder; choose another\n"
    )


def two_stages(out, text="x", files=()):
    """Which of two stages ran."""
    chain = ["one", "two"]
    script = f'mkdir -p {out}/NAME; echo \'{{"cache": "{out}/cache"}}\' {text} > {out}/NAME/file'
    commands = {name: [["sh", "-c", script.replace("NAME", name), *files]] for name in chain}
    return [name for name in chain if stages.run_stage(out, chain, name, commands[name])]


def test_a_folder_that_was_moved_is_recognised(tmp_path):
    assert two_stages(tmp_path / "before") == ["one", "two"]
    (tmp_path / "before").rename(tmp_path / "after")
    assert two_stages(tmp_path / "after") == []
    assert two_stages(tmp_path / "after", "y") == ["one", "two"]


@pytest.mark.parametrize("moved", [True, False])
def test_older_markers_are_recognised(tmp_path, moved):
    for name in ("config.json", "studies.jsonl"):
        (tmp_path / name).write_text("{}")
    out, upstream, files = tmp_path / "out", None, [str(tmp_path / "config.json"), str(tmp_path / "studies.jsonl")]
    two_stages(out, files=files)
    for name in ("one", "two"):
        path = out / f".stages/{name}.json"
        marker = json.loads(path.read_text())
        commands = json.dumps(marker["commands"])
        text = (commands.replace(str(out), "$OUT") if moved else commands) + "{}" + json.dumps(upstream, sort_keys=True)
        upstream = marker | {"fingerprint": hashlib.sha256(text.encode()).hexdigest()}
        assert upstream["fingerprint"] != marker["fingerprint"]
        path.write_text(json.dumps(upstream))
    assert two_stages(out, files=files) == []


@pytest.mark.parametrize("word", ["{out}-2/studies.jsonl", "{out}.jsonl", "/elsewhere{out}/studies.jsonl"])
def test_other_places_are_not_taken_for_the_folder(tmp_path, word):
    one, two = (
        stages.fingerprints([["cat", word.format(out=out)]], None, out) for out in (tmp_path / "a", tmp_path / "b")
    )
    assert one[0] != two[0]
