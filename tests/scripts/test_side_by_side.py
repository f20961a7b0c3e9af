"""Several processes: what each is told, and how those of Compare become one file. The processes are stand-ins."""

import json
import os
import signal
import sys

import pytest

from apo.compare_files import put_together
from data.errors import UserError
from data.records import read_studies
from scripts import side_by_side

# Takes its shard of the studies as apo.compare does; says what it was told.
WORKER = """
import json, os, sys
words = sys.argv[2:]
def last(name):
    return words[len(words) - 1 - words[::-1].index(name) + 1]
i, n = map(int, last("--shard").split("/"))
print("gpu", os.environ.get("CUDA_VISIBLE_DEVICES"), "processes", last("--processes"))
status = int(os.environ.get("STATUS_OF_%d" % i, 0))
if status < 2:
    rows = [json.loads(line) for line in open(words[0])][i - 1 :: n]
    for row in rows:
        row["consensus"] = {"text": "No edema.", "strategy": f"self {i}"}
    open(last("--out"), "w").writelines(json.dumps(row) + "\\n" for row in rows)
sys.exit(status)
"""


@pytest.fixture
def studies(tmp_path, monkeypatch):
    monkeypatch.setattr(side_by_side, "PYTHON", (sys.executable, "-c", WORKER))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    path = tmp_path / "studies.jsonl"
    rows = [
        {"id": f"s{i}", "patient": "p", "source": "test", "split": "train", "images": ["f.png"], "prompt": "<image>",
         "trajectories": []}
        for i in range(7)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(studies, processes, *, shard=(1, 1), device="cpu"):
    out = studies.parent / "out.jsonl"
    argv = [str(studies), "--processes", str(processes), "--shard", "1/1", "--out", str(out)]
    return side_by_side.run("apo.compare", argv, out, shard, processes, device), out


def test_every_study_is_done_once_and_in_order(studies, capsys):
    status, out = run(studies, 3)
    assert status == 0 and not out.exists()
    parts = [side_by_side.part_of(out, number) for number in (1, 2, 3)]
    assert put_together(out, parts) == 7
    made = list(read_studies(out))
    assert [study["id"] for study in made] == [f"s{i}" for i in range(7)]
    assert [study["consensus"]["strategy"] for study in made] == [f"self {i % 3 + 1}" for i in range(7)]
    assert sorted(os.listdir(out.parent)) == ["out.jsonl", "studies.jsonl"]
    printed = capsys.readouterr().out.splitlines()
    assert sorted(printed) == [f"[{k}/3] gpu None processes 1" for k in (1, 2, 3)]


def test_a_shard_is_divided_further(studies):
    run(studies, 2, shard=(2, 3))
    out = studies.parent / "out.jsonl"
    put_together(out, [side_by_side.part_of(out, number) for number in (1, 2)])
    assert [study["id"] for study in read_studies(out)] == ["s1", "s4"]
    parts = [side_by_side.shard_of((2, 3), number, 2) for number in (1, 2)]
    covered = sorted(place for i, n in parts for place in range(i - 1, 60, n))
    assert covered == list(range(1, 60, 3))


@pytest.mark.parametrize("visible, given", [(None, ["0", "1"]), ("4,6", ["4", "6"])])
def test_each_process_has_a_gpu_of_its_own(studies, monkeypatch, capsys, visible, given):
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    run(studies, 2, device="cuda")
    printed = sorted(capsys.readouterr().out.splitlines())
    assert [line.split()[2] for line in printed] == given


def test_a_process_finds_this_repository_from_anywhere(studies, monkeypatch):
    monkeypatch.setattr(side_by_side, "PYTHON", (sys.executable, "-P", "-m"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(studies.parent)
    out = studies.parent / "out.jsonl"
    with pytest.raises(UserError, match="1 with status 0, 2 with status 0"):  # imported, and no part was written
        side_by_side.run("data.errors", [], out, (1, 1), 2, "cpu")


def test_failed_generations_are_told_by_the_status(studies, monkeypatch):
    monkeypatch.setenv("STATUS_OF_2", "1")
    assert run(studies, 2)[0] == 1


def test_a_process_that_ends_badly_is_named_and_nothing_is_put_together(studies, monkeypatch):
    monkeypatch.setenv("STATUS_OF_2", "2")
    with pytest.raises(UserError, match=r"of 2 processes these failed: 2 with status 2"):
        run(studies, 2)
    assert side_by_side.part_of(studies.parent / "out.jsonl", 1).exists()
    assert not (studies.parent / "out.jsonl").exists()


# The second process shuts its ears and says that it is ready; the first then interrupts whoever started both, and ends
# a moment later.
SLOW = """
import os, pathlib, signal, sys, time
shard = sys.argv[len(sys.argv) - 1 - sys.argv[::-1].index("--shard") + 1]
here = pathlib.Path(sys.argv[2])
(here / f"pid-{shard[0]}").write_text(str(os.getpid()))
if shard == "2/2":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (here / "ready").touch()
else:
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), sys.exit(143)))
    while not (here / "ready").exists():
        time.sleep(0.01)
    os.kill(os.getppid(), signal.SIGUSR1)
time.sleep(60)
"""


def test_no_process_is_left_after_an_interruption(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(side_by_side, "PYTHON", (sys.executable, "-c", SLOW))
    monkeypatch.setattr(side_by_side, "PATIENCE", 1)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            side_by_side.run("apo.compare", [str(tmp_path)], tmp_path / "out.jsonl", (1, 1), 2, "cpu")
    finally:
        signal.signal(signal.SIGUSR1, before)
    for number in (1, 2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / f"pid-{number}").read_text()), 0)
