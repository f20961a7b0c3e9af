"""What an interrupted or killed run leaves behind, and how the next one puts it right."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from data import checkpoints, errors
from data.errors import UserError
from data.files import claimed, read_jsonl
from scripts import launch, run_log


def save(folder, step, ranks=1):
    """A checkpoint as transformers leaves it, as far as it is looked at."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"w": torch.zeros(4)}, path / "model.safetensors")
    torch.save({"lr": 1.0}, path / "optimizer.pt")
    (path / "args.json").write_text(json.dumps({"local_world_size": ranks}))
    for rank in range(ranks):
        name = f"rng_state_{rank}.pth" if ranks > 1 else "rng_state.pth"
        torch.save({"cpu": torch.get_rng_state()}, path / name)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


DAMAGE = {
    "no trainer_state.json in it": lambda path: (path / "trainer_state.json").unlink(),
    "trainer_state.json": lambda path: cut(path / "trainer_state.json"),
    "model.safetensors: damaged or cut off": lambda path: cut(path / "model.safetensors"),
    "optimizer.pt: damaged or cut off": lambda path: (path / "optimizer.pt").write_bytes(b"PK\x03\x04"),
    "the random state of rank 1 is missing": lambda path: (path / "rng_state_1.pth").unlink(),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_checkpoint_whose_saving_was_cut_off_is_seen_and_set_aside(tmp_path, message):
    older, newer = save(tmp_path, 2, ranks=2), save(tmp_path, 4, ranks=2)
    assert checkpoints.cut_off(newer) is None and checkpoints.latest_whole(tmp_path) == newer
    DAMAGE[message](newer)
    assert message in checkpoints.cut_off(newer)
    assert checkpoints.latest_whole(tmp_path) == older and checkpoints.latest(tmp_path) == newer
    assert checkpoints.set_aside_incomplete(tmp_path) == [tmp_path / "incomplete-checkpoint-4"]
    assert checkpoints.latest(tmp_path) == older and not newer.exists()
    assert checkpoints.set_aside_incomplete(tmp_path) == []


def test_what_is_later_than_the_checkpoint_that_a_run_goes_on_from_is_set_aside(tmp_path):
    kept = [save(tmp_path, step) for step in (2, 4)]
    for names in (["abandoned-checkpoint-6", "abandoned-checkpoint-10"], ["abandoned-checkpoint-6.2"]):
        for name in names:
            save(tmp_path, int(name.split(".")[0].rpartition("-")[2]))
        assert checkpoints.set_aside_later(kept[1]) == [tmp_path / name for name in names]
        assert checkpoints.latest(tmp_path) == kept[1] and all(path.exists() for path in kept)
    assert checkpoints.set_aside_later(kept[1]) == []
    copy = kept[0].rename(tmp_path / "best")
    assert checkpoints.set_aside_later(copy) == [], "of a folder of another name it is not known what is later"


def test_nothing_is_whole_where_nothing_was_saved(tmp_path):
    assert checkpoints.latest_whole(tmp_path) is None and checkpoints.latest_whole(tmp_path / "none") is None


def rows(*steps):
    return [{"loss": 1.0, run_log.STEP: f"{step}/8"} for step in steps]


def test_a_log_goes_on_without_a_step_twice(tmp_path):
    log = tmp_path / run_log.NAME
    assert run_log.keep_until(log, 4) == 0
    lines = [*rows(1, 2, 3, 4, 5), {"train_runtime": 3.0, run_log.STEP: "4/8"}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"loss": 0.1, "global_s')
    assert run_log.keep_until(log, 4) == 3  # step 5, the summary and the torn line
    assert [row for _, row in read_jsonl(log)] == rows(1, 2, 3, 4)
    before = log.stat().st_mtime_ns
    assert run_log.keep_until(log, 4) == 0 and log.stat().st_mtime_ns == before
    assert run_log.keep_until(log, 0) == 4 and log.read_bytes() == b""


def test_the_launcher_tidies_before_it_trains(tmp_path, capsys):
    resumed = save(tmp_path, 2)
    (save(tmp_path, 4) / "trainer_state.json").unlink()
    (tmp_path / run_log.NAME).write_text("".join(json.dumps(row) + "\n" for row in rows(1, 2, 3)))
    launch.tidy(SimpleNamespace(output_dir=tmp_path, settings={"resume_from_checkpoint": str(resumed)}))
    said = capsys.readouterr().out
    assert "incomplete-checkpoint-4: the saving of this checkpoint was cut off; renamed" in said
    assert "logging.jsonl: 1 rows after step 2 taken out" in said
    launch.tidy(SimpleNamespace(output_dir=tmp_path, settings={"resume_from_checkpoint": str(resumed)}))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("back", [True, False])
def test_a_clock_that_was_set_back_deletes_no_new_checkpoint(tmp_path, back):
    from transformers import trainer_utils

    from apo.rotation import rotate_checkpoints

    now = time.time()
    for step, at in ((2, now + 9000), (4, now + 9900), (6, now - 5)):
        path = save(tmp_path, step)
        os.utime(path, (at, at))
    (rotate_checkpoints if back else trainer_utils.rotate_checkpoints)(tmp_path, save_total_limit=2, use_mtime=True)
    kept = sorted(path.name for path in tmp_path.iterdir())
    # The second case is transformers' own, and why the first is needed.
    assert kept == (["checkpoint-4", "checkpoint-6"] if back else ["checkpoint-2", "checkpoint-4"])


def test_an_output_has_one_writer(tmp_path):
    out = tmp_path / "new" / "out.jsonl"
    with claimed(out):
        script = "import sys; from data.files import claimed\nwith claimed(sys.argv[1]): pass"
        done = subprocess.run([sys.executable, "-c", script, str(out)], capture_output=True, text=True)
        assert done.returncode and "another run is writing it; wait for it" in done.stderr
    with claimed(out):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="out: cannot be written"), claimed(tmp_path / "file" / "out"):
        pass


SLEEPER = """
import time
from data.errors import run_cli
def main():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("tidied", flush=True)
run_cli(main, "to go on, do this")
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_cleanly_and_says_how_to_go_on(number, status):
    def heed():
        # What a shell starts with `&` ignores SIGINT, and so would every child of such a run of the tests.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", SLEEPER], preexec_fn=heed, **streams)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, said = process.communicate(timeout=30)
    assert process.returncode == status and out == "tidied\n"
    assert said == "interrupted; to go on, do this\n"


def test_a_handler_that_is_set_stays():
    def mine(*_):
        pass

    before = signal.signal(signal.SIGTERM, mine)
    try:
        errors.catch_sigterm()
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
