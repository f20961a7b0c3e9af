"""data.processes: a pool that signals of a terminal cannot hang."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.processes import held_back, process_pool

ROOT = Path(__file__).parents[2]

# Many large tasks, as studies are: more than the pipe to the workers holds.
WORK = """
import sys, time
from data.errors import run_cli
from data.processes import process_pool

def slow(text):
    time.sleep(0.2)
    return len(text)

def main():
    with process_pool(2) as pool:
        for done in pool.map(slow, ["x" * 200_000] * 2000):
            print(done, flush=True)

if __name__ == "__main__":
    print("begun", flush=True)
    run_cli(main)
"""


@pytest.fixture
def work(tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, tmp_path / "work.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
        # What a shell starts with `&` ignores SIGINT, and so would every child of such a run of the tests.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    yield process
    # Workers that are left behind keep the group alive; multiprocessing's own helper ends a moment later than the rest.
    end = time.monotonic() + 20
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("a process was left behind")


@pytest.mark.parametrize("lines", [1, 3], ids=["workers-start", "workers-work"])
@pytest.mark.parametrize(
    ("signals", "status"), [((signal.SIGINT,), 130), ((signal.SIGINT, signal.SIGTERM), 143)], ids=["ctrl-c", "and-kill"]
)
def test_ctrl_c_ends_the_pool_and_its_workers(work, lines, signals, status):
    """As in a terminal, where the whole group hears Ctrl-C, and under scripts/stages.py, which then sends SIGTERM."""
    for _ in range(lines):
        assert work.stdout.readline()
    time.sleep(0.3 if lines == 1 else 0)  # "begun": the workers are being started
    os.killpg(work.pid, signals[0])
    for number in signals[1:]:
        time.sleep(0.05)
        work.send_signal(number)
    _, said = work.communicate(timeout=60)
    assert work.returncode == status
    assert said == "interrupted\n"


def test_workers_end_with_a_parent_that_is_killed(work):
    for _ in range(3):
        assert work.stdout.readline()
    work.kill()
    assert work.wait(timeout=60) == -signal.SIGKILL  # the fixture looks for what is left


def test_results_and_errors_come_through():
    with process_pool(2) as pool:
        assert list(pool.map(abs, [-1, 2, -3])) == [1, 2, 3]
    with pytest.raises(ValueError, match="could not convert"), process_pool(1) as pool:
        pool.submit(float, "x").result()


def test_a_signal_that_was_held_back_comes_afterwards():
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
    try:
        with held_back(signal.SIGUSR1):
            signal.raise_signal(signal.SIGUSR1)  # to this thread: any other of the process may take what comes to all
            assert not heard
        assert heard == [1]
        assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.signal(signal.SIGUSR1, before)
