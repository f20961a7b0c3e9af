"""Start a command, wait for a moment of it, kill its whole tree."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 300  # seconds; only so that a broken run ends


class Ended(NamedTuple):
    """How a command ended. status: the exit status (negative: killed); said: stdout and stderr together."""

    status: int
    said: str
    seconds: float


class Running:
    """A command under way in a session of its own, its output in the file `log`."""

    def __init__(self, words: Sequence, log: Path, *, environment: Mapping[str, str] | None = None, cwd: Path = ROOT):
        self.log, self.begun = log, time.monotonic()
        ours = {"VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1", "CANARY_KEY": "key"}
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                [str(word) for word in words],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **ours, **(environment or {})},
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def tree(self) -> list[psutil.Process]:
        """The process and all that it has started, parents first."""
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def until(self, reached: Callable[[], bool]) -> bool:
        """Wait until `reached()`; False when the process has ended before."""
        end = time.monotonic() + LIMIT
        while not reached():
            if not self.alive:
                return False
            assert time.monotonic() < end, f"waited in vain, see {self.log}"
            time.sleep(0.005)
        return True

    def sleep(self, seconds: float) -> None:
        """Wait, or return at once when the process has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def kill(self) -> bool:
        """SIGKILL the whole tree, as a power cut does; False when it had ended before."""
        tree = self.tree()
        for one in tree:  # stopped first, so that no parent says or does anything about a child's death
            with contextlib.suppress(psutil.NoSuchProcess):
                one.suspend()
        for one in {*tree, *self.tree()}:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        status = self.process.wait(LIMIT)  # before psutil waits for it, which would take the status away
        psutil.wait_procs(tree, timeout=LIMIT)
        return status == -signal.SIGKILL

    def end(self) -> Ended:
        """Wait for the end of it."""
        try:
            status = self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return Ended(status, self.log.read_text(encoding="utf-8", errors="replace"), time.monotonic() - self.begun)
