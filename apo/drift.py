"""Drift: how far N teachers' texts part, from each other, from the consensus, and along the reasoning.

    bash scripts/drift.sh STUDIES.jsonl [--image-root DIR] [--out DIR] [--sample 40] [--seed 0] [--permutations 1000]

Writes drift.json (every number) and drift.html (one page, no network). Only trajectories with status ok that are no
refusal by their text are compared; the others are counted. docs/drift.md explains each measure; the page prints the
definitions of apo/drift_results.py.
"""

import argparse
import collections
import hashlib
import heapq
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from apo import drift_page
from apo.drift_measures import measure, merge
from apo.drift_results import results
from data.errors import UserError, run_cli
from data.files import sha256_file, write_atomic
from data.processes import process_pool
from data.records import read_studies, root_of
from scripts.machine import write_problem

CHUNK = 64  # studies a task


def parts(studies: Iterable[dict], workers: int) -> Iterator[dict]:
    """`measure` of all studies, a chunk at a time and in order; never more than a few chunks are in memory."""
    studies = iter(studies)
    if workers == 1:
        while chunk := list(islice(studies, CHUNK)):
            yield measure(chunk)
        return
    with process_pool(workers) as pool:
        waiting: collections.deque = collections.deque()
        while True:
            while len(waiting) < 2 * workers and (chunk := list(islice(studies, CHUNK))):
                waiting.append(pool.submit(measure, chunk))
            if not waiting:
                return
            yield waiting.popleft().result()


class Sampler:
    """Keeps the `size` studies with the smallest hash of seed and id: a random choice that no file order changes."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self.heap: list[tuple[int, int, dict]] = []
        self.seen = 0  # studies with an ok trajectory

    def watch(self, studies: Iterable[dict]) -> Iterator[dict]:
        for place, study in enumerate(studies):
            if any(t["status"] == "ok" for t in study["trajectories"]):
                self.seen += 1
                lot = int.from_bytes(hashlib.sha256(f"{self.seed}:{study['id']}".encode()).digest()[:8], "big")
                heapq.heappush(self.heap, (-lot, place, study))
                if len(self.heap) > self.size:
                    heapq.heappop(self.heap)
            yield study

    def chosen(self) -> list[dict]:
        """In file order."""
        return [study for _, _, study in sorted(self.heap, key=lambda row: row[1])]


def count_lines(path: str | os.PathLike[str]) -> int:
    """Lines of a file that are not blank, for the progress line; 0 where it cannot be read (the reader says why)."""
    try:
        with open(path, "rb") as source:
            return sum(not line.isspace() for line in source)
    except (OSError, ValueError):
        return 0


def run(
    path: Path, *, sample: int, seed: int, permutations: int, workers: int, image_root: Path | None = None
) -> tuple[dict, list[dict]]:
    """(content of drift.json, the sampled study records). Progress goes to stderr.

    Raises UserError for a bad record, an empty file, or one in which no trajectory can be compared.
    """
    lines = count_lines(path)
    sampler = Sampler(sample, seed)
    studies = sampler.watch(read_studies(path, image_root=image_root))
    total, start, shown = None, time.monotonic(), 0.0
    for part in parts(studies, workers if lines > 4 * CHUNK else 1):
        total = merge(total, part)
        now = time.monotonic()
        if now - shown >= 5:
            shown, done = now, total["counts"]["studies"]
            rate = done / (now - start)
            left = max(lines - done, 0) / rate
            print(f"drift: {done}/{lines} studies, {rate:.0f} a second, about {left:.0f} s left", file=sys.stderr)
    if total is None:
        raise UserError(f"{path}: holds no study")
    if not total["trajectories"]:
        counts = sum(total["status"].values(), Counter())
        what = ", ".join(f"{n} {status}" for status, n in counts.items()) or "none at all"
        raise UserError(f"{path}: no trajectory can be compared ({what}); collect answers first")
    read_seconds = time.monotonic() - start
    print(f"drift: {total['counts']['studies']} studies read in {read_seconds:.0f} s; permutations", file=sys.stderr)
    found = results(total, permutations=permutations, seed=seed)
    found["file"] = {"name": Path(path).name, "sha256": sha256_file(path)}
    chosen = sampler.chosen()
    found["sample"] = {"shown": len(chosen), "of": sampler.seen, "seed": seed, "ids": [s["id"] for s in chosen]}
    found["seconds"] = {"reading": round(read_seconds, 1), "all": round(time.monotonic() - start, 1)}
    return found, chosen


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/drift.sh", description=__doc__.split("\n\n")[0])
    parser.add_argument("studies", type=Path, metavar="STUDIES.jsonl", help="study records with trajectories")
    parser.add_argument("--image-root", type=Path, help="what image paths are relative to (default: folder of STUDIES)")
    parser.add_argument("--out", type=Path, default=Path("runs/drift"), help="folder (default: runs/drift)")
    parser.add_argument("--sample", type=int, default=40, help="studies shown on the page (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of sample and permutations (default: 0)")
    parser.add_argument("--permutations", type=int, default=1000, help="of each test (default: 1000)")
    parser.add_argument("--workers", type=int, help="processes (default: one a CPU, at most 8)")
    args = parser.parse_args(argv)
    for name, least in (("sample", 0), ("seed", 0), ("permutations", 1), ("workers", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: must be at least {least}")
    if problem := write_problem("--out", args.out):
        raise UserError(problem)
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    root = root_of(args.studies, args.image_root)
    workers = args.workers or min(len(os.sched_getaffinity(0)), 8)
    found, chosen = run(
        args.studies,
        sample=args.sample,
        seed=args.seed,
        permutations=args.permutations,
        workers=workers,
        image_root=args.image_root,
    )
    page, missing = drift_page.render(found, chosen, root)
    found["sample"]["films_missing"] = missing
    write_atomic(args.out / "drift.json", json.dumps(found, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    write_atomic(args.out / "drift.html", page)
    print(summary(found, len(page.encode())))
    print(f"written: {args.out / 'drift.json'} and {args.out / 'drift.html'}")


def summary(found: dict, size: int) -> str:
    """What a run found, in a few lines."""
    studies, status = found["studies"], Counter()
    for counts in found["status"].values():
        status.update(counts)
    voiceless = ", ".join(f"{n} {name}" for name, n in sorted(status.items()) if n and name != "ok")
    lines = [
        f"drift: {studies['n']} studies, {len(found['teachers'])} teachers, {studies['trajectories']} trajectories "
        f"compared, {studies['with_consensus']} with a consensus",
        f"not compared: {voiceless or 'none'}; studies without a voice: {studies['without_a_voice']}, with one only: "
        f"{studies['with_a_single_voice']}",
    ]
    if not studies["with_consensus"]:
        lines.append("note: no consensus in the file; add one with scripts/compare.sh to measure against it")
    shown = f"page: {found['sample']['shown']} of {found['sample']['of']} studies shown, seed {found['sample']['seed']}"
    lines.append(f"{shown}, {size / 1e6:.1f} MB, films missing: {found['sample']['films_missing']}")
    if size > 5_000_000:
        lines.append("note: a page of this size opens slowly; lower --sample")
    return "\n".join(lines)


if __name__ == "__main__":
    run_cli(main)
