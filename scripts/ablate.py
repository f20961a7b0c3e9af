"""Run the ablation matrix: every row in every world and seed, each once, a row at a time. Help: scripts/ablate.sh.

A row's stages are those of scripts/ablation_plan.py, run by scripts/stages.py, so an interrupted row goes on where it
stopped. What ended well becomes one line of the ledger (scripts/ablation_ledger.py); what is there is not run again.
Program code is not part of a run's key: after a change of code that changes numbers, remove the lines and the folders.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from data import checkpoints, manifest
from data.errors import GOES_ON, UserError, refuse_below_one, run_cli
from data.files import exclusive, sha256_file
from data.phantom.teachers import WORLDS
from data.records import did_you_mean
from scripts import ablation_ledger as ledger
from scripts import stages
from scripts.ablation_plan import SHARED_RANKS, Place, Stage, learn_name, row_stages, start_of
from scripts.ablation_rows import EQUAL_FLOPS, Row, Sizes, before, digest, read_rows, resolved
from scripts.machine import write_problem
from scripts.plan import ROOT

SMOKE = Sizes(48, 8, 24, 4)
SEEDS = (0, 1, 2, 3, 4)
SCHEMA = 1
# Keys of a row's settings that its line holds beside their hash.
NAMED = ("films", "student", "consensus", "labels", "variant", "launcher", "training")


class Failure(NamedTuple):
    """A run that ended badly, with the message of the stage that failed (it names the log)."""

    world: str
    seed: int
    row: str
    message: str


def parse_names(texts: Sequence[str]) -> list[str]:
    """["a,b", "c"] -> ["a", "b", "c"], each once."""
    return list(dict.fromkeys(name for text in texts for name in text.split(",") if name))


def parse_seeds(texts: Sequence[str]) -> list[int]:
    """["0-2", "7"] -> [0, 1, 2, 7]; UserError for anything else."""
    found: list[int] = []
    for name in parse_names(texts):
        one = re.fullmatch(r"(\d+)(?:-(\d+))?", name)
        if not one or (one[2] and int(one[2]) < int(one[1])):
            raise UserError(f"--seed {name}: write whole numbers from 0, as in 0-4 or 0,1,7")
        found += range(int(one[1]), int(one[2] or one[1]) + 1)
    return list(dict.fromkeys(found))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bash scripts/ablate.sh", description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="*", type=Path, metavar="ROW.yaml", help="default: all of configs/ablation/")
    parser.add_argument("--world", action="append", default=[], help=f"of {', '.join(WORLDS)} (default: published)")
    parser.add_argument("--seed", action="append", default=[], help="default: 0-4; with --smoke 0")
    parser.add_argument("--out", type=Path, help="default: runs/ablation; with --smoke runs/ablation-smoke")
    parser.add_argument(
        "--ledger", type=Path, help="default: docs/results/phantom.jsonl; with --smoke OUT/ledger.jsonl"
    )
    for split in ("train", "validate", "test"):
        default = getattr(Sizes(), split)
        parser.add_argument(f"--{split}", type=int, help=f"films of the split (default: {default})")
    parser.add_argument("--processes", type=int, metavar="N", help="of a row's own training (default: 2)")
    parser.add_argument(
        "--shared-processes",
        type=int,
        metavar="N",
        default=SHARED_RANKS,
        help=f"of what rows share, as Learn (default: {SHARED_RANKS}); keep to those that a seed was begun with",
    )
    parser.add_argument("--list", action="store_true", help="what is done and what is left; runs nothing")
    parser.add_argument("--smoke", action="store_true", help="a few films and steps; the numbers mean nothing")
    args = parser.parse_args(argv)
    refuse_below_one(args, "train", "validate", "test", "processes", "shared_processes")
    args.world = parse_names(args.world) or ["published"]
    for world in args.world:
        if world not in WORLDS:
            raise UserError(f"--world {world}: no such world; {did_you_mean(world, WORLDS)}")
    args.seed = parse_seeds(args.seed) or ([0] if args.smoke else list(SEEDS))
    given = {name: getattr(args, name) for name in ("train", "validate", "test") if getattr(args, name)}
    args.sizes = (SMOKE if args.smoke else Sizes())._replace(**given)
    args.out = (args.out or ROOT / "runs" / ("ablation-smoke" if args.smoke else "ablation")).absolute()
    args.ledger = args.ledger or (args.out / "ledger.jsonl" if args.smoke else ledger.LEDGER)
    if args.smoke and args.ledger.absolute() == ledger.LEDGER:
        raise UserError(f"--ledger {args.ledger}: numbers of a smoke run mean nothing and stay out of the real ledger")
    return args


def place_of(args: argparse.Namespace, world: str, seed: int) -> Place:
    """Two training processes, as in scripts/quickstart.sh: on two cores faster than one process with two threads.

    One process a row and two commands side by side, each with its own seeds, finished 1.5 times as many steps an hour.
    """
    processes = args.processes or min(2, os.cpu_count() or 1)
    own = (processes, threads_of(processes))
    return Place(args.out / world / f"seed-{seed}", world, seed, args.sizes, *own, args.shared_processes)


def threads_of(processes: int) -> int:
    """Threads of a process: with one process a row, half of the cores are left to the command beside it."""
    return max(1, (os.cpu_count() or 1) // max(2, processes))


def run_row(
    place: Place, row: Row, rows: dict[str, Row], run: Callable[..., bool] = stages.run_stage
) -> dict[str, Any]:
    """All stages of a row that are not finished; returns its metrics. Raises UserError for the stage that failed."""
    shared, own = row_stages(place, row, rows)
    chain = [stage.name for stage in (*shared, *own)]
    for stage in (*shared, *own):
        finished_or_run(place.out, chain, stage, run)
    return json.loads((place.row(row.name) / "score" / "metrics.json").read_text(encoding="utf-8"))


def finished_or_run(out: Path, chain: list[str], stage: Stage, run: Callable[..., bool]) -> None:
    for output in stage.outputs:
        (out / output).parent.mkdir(parents=True, exist_ok=True)
    run(out, chain, stage.name, stage.commands(), outputs=stage.outputs, keep=stage.keep, made_by=code_here())


def code_here() -> dict[str, Any]:
    """{"commit", "dirty", "code"} of the files on the disk at this moment."""
    return {**ledger.commit(), "code": manifest.code_now()["sha256"][:16]}


def seconds_of(out: Path, names: Sequence[Stage]) -> float:
    markers = [stages.read_marker(out, stage.name) for stage in names]
    return round(sum(marker["seconds"] for marker in markers if marker), 1)


def made_by(out: Path, names: Sequence[Stage]) -> list[dict[str, Any] | None]:
    """The code that the stages were run with, each once; None: made before it was noted by stage."""
    markers = [stages.read_marker(out, stage.name) for stage in names]
    found = [maker for marker in markers if marker for maker in stages.makers(marker)]
    return [maker for i, maker in enumerate(found) if maker not in found[:i]]


def films_digest(cohort: Path) -> str:
    """SHA-256 over the pixels of every film of a cohort, in the order of their names: the same on any machine that drew
    the same films, whatever wrote the files."""
    digest = hashlib.sha256()
    for path in sorted(cohort.rglob("*.png")):
        with Image.open(path) as film:
            digest.update(f"{path.relative_to(cohort).as_posix()}\0{film.mode}{film.size}".encode() + film.tobytes())
    return digest.hexdigest()


def head_of(place: Place, row: Row, rows: dict[str, Row]) -> dict[str, Any]:
    """What a run is, told before it begins: files that are edited while it runs change nothing in its line."""
    config = resolved(row, place.sizes, rows)
    return {
        "schema": SCHEMA,
        "world": place.world,
        "row": row.name,
        "seed": place.seed,
        "config": digest(config),
        **code_here(),
        "resolved": {key: config[key] for key in NAMED if key in config},
    }


def line_of(
    head: dict[str, Any], place: Place, row: Row, rows: dict[str, Row], metrics: dict[str, Any]
) -> dict[str, Any]:
    """The ledger's line of a finished run.

    "start" names the student that its training began from, "learn" the training of Learn behind that.
    """
    shared, own = row_stages(place, row, rows)
    starts: dict[str, str | None] = {"start": None, "learn": None}
    if row.launcher != "compare":
        paths = {"start": start_of(place, row, rows), "learn": checkpoints.latest(place.out / learn_name(row))}
        starts = {name: checkpoints.fingerprint(path)[:16] for name, path in paths.items()}
    line = {
        **head,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "ranks": place.ranks,
        "shared_ranks": place.shared_ranks,
        "made_by": made_by(place.out, [*shared, *own]),
        "cohort_sha256": sha256_file(place.out / "cohort" / "studies.jsonl")[:16],
        "films_sha256": films_digest(place.out / "cohort")[:16],
        **starts,
        "after": [one.name for one in before(row, rows)],
        "metrics": metrics,
        "seconds": seconds_of(place.out, own),
        "shared_seconds": seconds_of(place.out, shared),
    }
    if row.settings.get("num_train_epochs") == EQUAL_FLOPS:
        note = place.row(row.name) / "equal_flops.json"
        line["equal_flops"] = json.loads(note.read_text(encoding="utf-8"))
    return line


def run_matrix(args: argparse.Namespace, rows: dict[str, Row]) -> list[Failure]:
    """Every row in every world and seed; a failed one is reported and the others go on."""
    failures: list[Failure] = []
    there = 0
    todo = [(seed, world, row) for seed in args.seed for world in args.world for row in rows.values()]
    for number, (seed, world, row) in enumerate(todo, 1):
        title = f"=== {number}/{len(todo)} {row.name}, world {world}, seed {seed}"
        place = place_of(args, world, seed)
        head = head_of(place, row, rows)
        if ledger.key_of(head) in ledger.read(args.ledger):
            there += 1
            print(f"{title}: in the ledger already", flush=True)
            continue
        print(title, flush=True)
        try:
            metrics = run_row(place, row, rows)
            line = line_of(head, place, row, rows, metrics)
        except UserError as error:
            failures.append(Failure(world, seed, row.name, str(error)))
            print(f"FAILED: {row.name}, world {world}, seed {seed}: {error}", flush=True)
            continue
        ledger.append(args.ledger, line)
        print(f"{row.name}, world {world}, seed {seed}: accuracy {metrics['mean_accuracy']:.4f}", flush=True)
    if there == len(todo):
        again = ROOT / "runs" / "again"
        print(f"Nothing was run. To make it once more: --out {again} --ledger {again / 'ledger.jsonl'}", flush=True)
    return failures


def show_list(args: argparse.Namespace, rows: dict[str, Row]) -> None:
    """One line a row: what it tests, and for each world the seeds that are done."""
    done = ledger.read(args.ledger)
    for row in rows.values():
        config = digest(resolved(row, args.sizes, rows))
        seeds = {w: [str(s) if (w, row.name, s, config) in done else "-" for s in args.seed] for w in args.world}
        states = "; ".join(f"{world}: {' '.join(marks)}" for world, marks in seeds.items())
        print(f"{row.name:24} {states:32} {row.question}")
    print(f"\nseeds that are done; - is left. Ledger: {args.ledger}")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    rows = read_rows(args.rows)
    for row in rows.values():
        before(row, rows)  # refuses circles before anything is made
    if args.list:
        show_list(args, rows)
        return 0
    if args.processes:
        # Answers and scores, too, keep to their share: threads that wait for each other on busy cores crawl.
        os.environ.setdefault("OMP_NUM_THREADS", str(threads_of(args.processes)))
    with contextlib.ExitStack() as locks:
        for world in args.world:
            for seed in args.seed:
                out = place_of(args, world, seed).out
                if problem := write_problem("--out", out):
                    raise UserError(problem)
                out.mkdir(parents=True, exist_ok=True)
                locks.enter_context(
                    exclusive(out / ".ablate.lock", f"{out}: another run is at work there; wait for it or choose --out")
                )
        failures = run_matrix(args, rows)
    if failures:
        print(f"\n{len(failures)} run(s) failed; mend the cause and type the same command again:", flush=True)
        for failure in failures:
            first = failure.message.splitlines()[0]
            logs = place_of(args, failure.world, failure.seed).out / "logs"
            print(f"  {failure.row}, world {failure.world}, seed {failure.seed}: {first}\n    logs: {logs}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    run_cli(main, GOES_ON)
