"""Compare with several processes, one a GPU: each does every n-th study, and their files become one.

Every process is the command itself with --shard, and its own FILE.part-K.jsonl; the results are those of one process.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from data import manifest
from data.errors import UserError
from data.records import read_studies, write_studies

COMMAND = (sys.executable, "-P", "-m", "apo.compare")
PATIENCE = 30  # seconds for a process that was asked to end, before it is killed


def part_of(out: Path, number: int) -> Path:
    """Where process `number` (from 1) writes."""
    return out.with_name(f"{out.name}.part-{number}.jsonl")


def shard_of(shard: tuple[int, int], number: int, processes: int) -> tuple[int, int]:
    """Every `processes`-th study of a shard (i, n), beginning with its `number`-th (from 1), as a shard of the file.

    >>> shard_of((2, 3), 2, 2)
    (5, 6)
    """
    i, n = shard
    return i + (number - 1) * n, n * processes


def run(argv: Sequence[str], out: Path, shard: tuple[int, int], processes: int, *, on_gpus: bool) -> int:
    """Run `processes` processes of the command `argv`; 0, or 1 if generations failed in one of them.

    Output lines are marked with the number of their process. When one process fails, the others go on to their end and
    nothing is put together; the same command with as many processes then goes on where each stopped.

    Args:
        on_gpus: give each process one of the GPUs that CUDA_VISIBLE_DEVICES leaves, in turn.

    Raises:
        UserError: a process failed.
    """
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    running: list[subprocess.Popen] = []
    readers: list[threading.Thread] = []
    try:
        for number in range(1, processes + 1):
            i, n = shard_of(shard, number, processes)
            # Of an option given twice the last one counts.
            own = ["--processes", "1", "--shard", f"{i}/{n}", "--out", str(part_of(out, number))]
            environment = dict(os.environ)
            if on_gpus:
                environment["CUDA_VISIBLE_DEVICES"] = (
                    visible[(number - 1) % len(visible)] if visible else f"{number - 1}"
                )
            process = subprocess.Popen(
                [*COMMAND, *argv, *own], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
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


def put_together(out: Path, processes: int) -> int:
    """Write the processes' studies to `out` in the order of the file, remove the parts; how many studies."""
    parts = [part_of(out, number) for number in range(1, processes + 1)]

    def studies() -> Iterator[dict]:
        for group in zip_longest(*map(read_studies, parts)):
            yield from (study for study in group if study is not None)

    count = write_studies(out, studies())
    for part in parts:
        part.unlink()
        manifest.sidecar(part).unlink(missing_ok=True)
    return count


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
