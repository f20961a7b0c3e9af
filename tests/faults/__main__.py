"""The fault matrix: every stage is killed, interrupted, starved of disk and so on, and must lose nothing.

    python -m tests.faults [--stage NAME ...] [--fault NAME ...]
                           [--kills N] [--seed N] [--jobs N] [--out DIR] [--keep]

A miniature phantom cohort, a student of 1.2 million parameters and teachers behind a server on this machine. After each
fault the same command is given again (in training: the one that the launcher names), and what it makes is compared with
an undisturbed run: data by their bytes, losses and weights as numbers, rows and steps one by one. docs/faults.md has a
measured table. Exit status 1 if anything was lost, doubled or changed.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.faults import matrix
from tests.faults.stages import STAGES, Stage
from tests.faults.world import World, world_in

FAULTS: dict[str, Callable] = {
    "SIGKILL": matrix.killed,
    "SIGINT": matrix.signalled(signal.SIGINT),
    "SIGTERM": matrix.signalled(signal.SIGTERM),
    "disk full": matrix.disk_full,
    "rank killed": matrix.rank_killed,
    "two at once": matrix.two_at_once,
    "clock wrong": matrix.clock_wrong,
    "locale C": matrix.locale_c,
    "read-only checkout": matrix.read_only,
}
KILLS = 20  # a stage; Collect's take two seconds each, the others load a model


class Row(NamedTuple):
    """What came of one fault in one stage: how often it was made, what was wrong, or why it was skipped."""

    stage: str
    fault: str
    times: int
    wrong: list[str]
    skipped: str | None
    seconds: float


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.split("\n\n")[0])
    parser.add_argument("--stage", nargs="+", choices=tuple(STAGES), default=list(STAGES), help="default: all")
    parser.add_argument("--fault", nargs="+", choices=tuple(FAULTS), default=list(FAULTS), help="default: all")
    parser.add_argument("--kills", type=int, default=KILLS, help=f"SIGKILLs a stage (default: {KILLS})")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="stages side by side (default: 1)")
    parser.add_argument("--out", type=Path, help="folder for everything (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="keep that folder; it is kept anyway if anything was wrong")
    return parser.parse_args()


def of_stage(stage: Stage, world: World, args: argparse.Namespace) -> list[Row]:
    """Every fault of one stage."""
    calm = matrix.undisturbed(stage, world)
    rows = []
    for name in args.fault:
        if name == "rank killed" and not stage.trains:
            continue
        times = args.kills if name == "SIGKILL" else 1
        draw = random.Random(f"{args.seed} {stage.name} {name}")
        wrong, skipped, start = [], None, time.monotonic()
        for number in range(1, times + 1):
            try:
                if name == "rank killed":
                    found = matrix.rank_killed(stage, world, draw)
                else:
                    found = FAULTS[name](stage, world, calm, draw)
            except matrix.Skipped as reason:
                skipped = str(reason)
                break
            except Exception as error:  # a defect, of the stage or of the test: the other faults are still made
                found = [f"{type(error).__name__}: {str(error)[-500:]}"]
            wrong += [f"{number}: {one}" for one in found]
        row = Row(stage.name, name, 0 if skipped else times, wrong, skipped, time.monotonic() - start)
        rows.append(row)
        print(show(row), flush=True)
    return rows


def show(row: Row) -> str:
    state = f"SKIPPED: {row.skipped}" if row.skipped else f"{len(row.wrong)} wrong" if row.wrong else "nothing lost"
    line = f"{row.stage:14} {row.fault:19} {row.times:3} x {row.seconds:5.0f} s  {state}"
    return "\n".join([line, *(f"    {one}" for one in row.wrong)])


def table(rows: list[Row]) -> str:
    """The matrix in Markdown: a fault a line, a stage a column."""
    stages = list(dict.fromkeys(row.stage for row in rows))
    lines = [f"| fault | {' | '.join(stages)} |", "|---" * (len(stages) + 1) + "|"]
    for fault in dict.fromkeys(row.fault for row in rows):
        cells = []
        for stage in stages:
            row = next((one for one in rows if (one.stage, one.fault) == (stage, fault)), None)
            if row is None:
                cells.append("does not apply")
            elif row.skipped:
                cells.append("skipped")
            else:
                bad = len({one.split(":")[0] for one in row.wrong})
                cells.append(f"{row.times - bad} of {row.times}")
        lines.append(f"| {fault} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    args = parse_args()
    folder = args.out or Path(tempfile.mkdtemp(prefix="faults-"))
    start, rows = time.monotonic(), []
    with world_in(folder) as world, ThreadPoolExecutor(args.jobs) as pool:
        jobs: list[Future] = [pool.submit(of_stage, STAGES[name], world, args) for name in args.stage]
        for job in jobs:
            rows += job.result()
    wrong = sum(len(row.wrong) for row in rows)
    skipped = sum(row.skipped is not None for row in rows)
    print(f"\n{table(rows)}\n")
    made = sum(row.times for row in rows)
    print(f"{made} faults, seed {args.seed}, {time.monotonic() - start:.0f} s; {wrong} wrong, {skipped} rows SKIPPED")
    if wrong or args.keep or args.out:
        print(f"kept: {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
