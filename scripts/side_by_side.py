"""A command that asks a student, in several processes, one a GPU: each does every n-th part of the work.

Every process is the command itself with --shard, and its own FILE.part-K.jsonl, which the command makes one FILE of.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from data.errors import UserError
from scripts import machine

PYTHON = (sys.executable, "-P", "-m")
PATIENCE = 30  # seconds for a process that was asked to end, before it is killed


def parse_shard(text: str) -> tuple[int, int]:
    """ "1/4" -> (1, 4); UserError for anything else than i/n with 1 <= i <= n."""
    i, slash, n = text.partition("/")
    if not (slash and i.isdigit() and n.isdigit() and 1 <= int(i) <= int(n)):
        raise UserError(f"--shard {text}: write i/n with 1 <= i <= n, e.g. 1/4")
    return int(i), int(n)


def part_of(out: Path, number: int) -> Path:
    """Where process `number` (from 1) writes."""
    return out.with_name(f"{out.name}.part-{number}.jsonl")


def shard_of(shard: tuple[int, int], number: int, processes: int) -> tuple[int, int]:
    """Every `processes`-th part of a shard (i, n), beginning with its `number`-th (from 1), as a shard of the whole.

    >>> shard_of((2, 3), 2, 2)
    (5, 6)
    """
    i, n = shard
    return i + (number - 1) * n, n * processes


def run(module: str, argv: Sequence[str], out: Path, shard: tuple[int, int], processes: int, device: str | None) -> int:
    """Run `processes` processes of `python -m MODULE ARGV`; 0, or 1 if generations failed in one of them.

    Output lines are marked with the number of their process. When one process fails, the others go on to their end and
    nothing is put together; the same command, with as many processes as then are wanted, goes on.

    Args:
        device: "cuda", "cpu", or None for a GPU where there is one. Each process has one of the GPUs that
            CUDA_VISIBLE_DEVICES leaves.

    Raises:
        UserError: there are fewer GPUs, or a process failed.
    """
    found = len(machine.gpus())
    on_gpus = (device or ("cuda" if found else machine.default_device())) == "cuda"
    if on_gpus and (problem := machine.gpu_problem("--processes", processes, found)):
        raise UserError(problem)
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    running: list[subprocess.Popen] = []
    readers: list[threading.Thread] = []
    try:
        for number in range(1, processes + 1):
            i, n = shard_of(shard, number, processes)
            # Of an option given twice the last one counts.
            own = ["--processes", "1", "--shard", f"{i}/{n}", "--out", str(part_of(out, number))]
            environment = machine.importable(os.environ)
            if on_gpus:
                environment["CUDA_VISIBLE_DEVICES"] = (
                    visible[(number - 1) % len(visible)] if visible else f"{number - 1}"
                )
            process = subprocess.Popen(
                [*PYTHON, module, *argv, *own],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
            )
            running.append(process)
            readers.append(threading.Thread(target=_pass_on, args=(process, f"[{number}/{processes}] "), daemon=True))
            readers[-1].start()
        statuses = [process.wait() for process in running]
    except BaseException:
        _end(running)
        raise
    for reader in readers:
        reader.join()
    bad = {number: status for number, status in enumerate(statuses, 1) if status not in (0, 1)}
    missing = [number for number in range(1, processes + 1) if not part_of(out, number).exists()]
    if bad or missing:
        told = ", ".join(f"{number} with status {statuses[number - 1]}" for number in sorted({*bad, *missing}))
        raise UserError(
            f"{out}: not written, since of {processes} processes these failed: {told} (see above); mend it and give "
            "the same command again, finished studies are not done twice"
        )
    return max(statuses)


def _end(running: Sequence[subprocess.Popen]) -> None:
    """Ask the processes to end and wait until they have: the same command may be given again at once."""
    for process in running:
        process.terminate()
    deadline = time.monotonic() + PATIENCE
    for process in running:
        try:
            process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pass_on(process: subprocess.Popen, mark: str) -> None:
    for line in process.stdout:
        print(mark + line, end="", flush=True)
