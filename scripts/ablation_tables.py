"""The numbers of the ablation ledger by world and row: means over seeds, t intervals, paired tests. Pure functions."""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from apo.consensus import STRATEGIES
from eval.items import CONSENSUS, MAJORITY
from eval.statistics import holm
from scripts.ablation_rows import Row, Sizes, digest, resolved

SEEDS = 5  # what a row is meant to have; one with fewer says its n
LEAST = 3  # below that a t interval is wider than the scale, and a test only makes those of other rows stricter
REFERENCE = "pl_nll"
REFERENCES = (REFERENCE, "pl_nll_again")  # the second: the same settings from another training of Learn
TEACHER = "best teacher"

Line = dict[str, Any]
BySeed = dict[int, float]


class Block(NamedTuple):
    """All current lines of one world and size of cohort: row name -> seed -> line.

    `lines` are of rows with a student, `compared` of those that score a consensus itself.
    """

    world: str
    sizes: Sizes
    lines: dict[str, dict[int, Line]]
    compared: dict[str, dict[int, Line]]


class Mean(NamedTuple):
    """Mean over `n` seeds with its 95 % t interval (None for fewer than LEAST seeds)."""

    n: int
    value: float
    low: float | None
    high: float | None


def blocks(lines: Iterable[Line], rows: Mapping[str, Row]) -> tuple[list[Block], int]:
    """(the blocks, how many lines are left out because configs/ablation/ has no such row or other settings by now)."""
    found: dict[tuple[str, Sizes], Block] = {}
    left = 0
    for line in lines:
        sizes = Sizes(**line["resolved"]["films"])
        row = rows.get(line["row"])
        if row is None or digest(resolved(row, sizes, dict(rows))) != line["config"]:
            left += 1
            continue
        block = found.setdefault((line["world"], sizes), Block(line["world"], sizes, {}, {}))
        of_its_kind = block.compared if row.launcher == "compare" else block.lines
        of_its_kind.setdefault(row.name, {})[line["seed"]] = line
    return sorted(found.values(), key=lambda block: (block.sizes != Sizes(), block.world, block.sizes)), left


def dig(value: Any, *path: str) -> Any:
    """value["a"]["b"] for ("a", "b"); None as soon as something is missing."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def by_seed(lines: Mapping[int, Line], *path: str) -> BySeed:
    """Seed -> a metric, without the seeds in which it is null."""
    found = {seed: dig(line["metrics"], *path) for seed, line in sorted(lines.items())}
    return {seed: float(value) for seed, value in found.items() if value is not None}


def mean_of(values: BySeed) -> Mean | None:
    """Mean and 95 % t interval over seeds; None without any."""
    from scipy.stats import t

    numbers = np.array(list(values.values()))
    n = len(numbers)
    if not n:
        return None
    value = float(numbers.mean())
    if n < LEAST:
        return Mean(n, value, None, None)
    reach = float(t.ppf(0.975, n - 1) * numbers.std(ddof=1) / math.sqrt(n))
    return Mean(n, value, value - reach, value + reach)


def paired(a: BySeed, b: BySeed) -> tuple[Mean | None, float | None]:
    """(a - b over the seeds that both have, p of the paired t test); p None below LEAST seeds or without spread."""
    from scipy.stats import ttest_rel

    seeds = sorted(a.keys() & b.keys())
    difference = mean_of({seed: a[seed] - b[seed] for seed in seeds})
    if len(seeds) < LEAST:
        return difference, None
    first, second = [a[seed] for seed in seeds], [b[seed] for seed in seeds]
    if np.ptp(np.subtract(first, second)) < 1e-12:
        return difference, None
    return difference, float(ttest_rel(first, second).pvalue)


def baselines(block: Block) -> dict[str, BySeed]:
    """What no row trains, by seed: best teacher, each teacher, majority class, each consensus, on the same films."""
    found: dict[str, BySeed] = {TEACHER: {}, MAJORITY: {}}
    for by_row in (*block.lines.values(), *block.compared.values()):
        for seed, line in by_row.items():
            metrics = line["metrics"]
            if metrics.get("best_teacher") is not None:
                found[TEACHER][seed] = metrics["best_teacher"]
            if metrics.get("majority_class") is not None:
                found[MAJORITY][seed] = metrics["majority_class"]
            if line["after"]:
                continue  # its teachers and consensus have another voice among them
            for name, value in (metrics.get("teachers") or {}).items():
                found.setdefault(f"teacher {name}", {})[seed] = value
            consensus = dig(metrics, "consensus", "mean_accuracy")
            if consensus is not None and line["resolved"]["student"] is None:
                found.setdefault(consensus_name(line), {})[seed] = consensus
    return {name: values for name, values in found.items() if values}


def compared_alone(found: Iterable[Block]) -> list[str]:
    """The names in `baselines` of each consensus that was scored by itself, in the order of STRATEGIES, and one that
    was told labels after the one that was not."""
    runs = [line for block in found for by_row in block.compared.values() for line in by_row.values()]
    order = list(STRATEGIES)
    keys = {(order.index(line["resolved"]["consensus"]), labels_of(line), consensus_name(line)) for line in runs}
    return [name for _, _, name in sorted(keys)]


def labels_of(line: Line) -> int:
    """How many films' true findings the consensus of a line was told."""
    return line["resolved"].get("labels", 0)


def consensus_name(line: Line) -> str:
    """ "consensus dawid_skene", "consensus dawid_skene, 20 labelled"."""
    told = f", {labels_of(line)} labelled" if labels_of(line) else ""
    return f"{CONSENSUS} {line['resolved']['consensus']}{told}"


def learn_of(line: Line) -> str | None:
    """Fingerprint of the training of Learn behind a line; None where it was not noted.

    Lines of before "learn" stood in them name it in "start", unless that is the student of a round before.
    """
    return line.get("learn") or (None if line["after"] else line.get("start"))


def same_start(line: Line, other: Line) -> int:
    """Did two lines begin from the same training of Learn? 2 yes, 0 no, 1 perhaps.

    Where one of them does not know, the number of training processes alone tells them apart.
    """
    mine, its = learn_of(line), learn_of(other)
    return 2 * (mine == its) if mine and its else int(line.get("ranks") == other.get("ranks"))


def apart(block: Block, name: str, base: str) -> bool:
    """Whether two rows began from different trainings of Learn in some seed that both have."""
    mine, its = block.lines[name], block.lines[base]
    taught = any(line["resolved"]["student"] for line in mine.values())  # another Learn by design
    return not taught and any(not same_start(mine[seed], its[seed]) for seed in mine.keys() & its.keys())


def own_reference(block: Block, name: str) -> tuple[BySeed, bool]:
    """(accuracy by seed of what row `name` is held against, whether in some seed that began from another Learn).

    It is the one of REFERENCES that started from the same training of Learn. Without one it is REFERENCE, and the
    difference contains both trainings.
    """
    found, elsewhere = {}, False
    for seed, line in block.lines[name].items():
        others = [block.lines[one][seed] for one in REFERENCES if one != name and seed in block.lines.get(one, {})]
        if not others:
            continue
        taught = line["resolved"]["student"]  # it has another Learn by design
        closest = others[0] if taught else max(others, key=partial(same_start, line))  # the first of equals
        elsewhere = elsewhere or not (taught or same_start(line, closest))
        found |= by_seed({seed: closest}, "mean_accuracy")
    return found, elsewhere


class Comparison(NamedTuple):
    """A row against another: difference, p, and p adjusted by Holm for all rows of the block in the same column."""

    difference: Mean | None
    p: float | None
    adjusted: float | None


def compare(block: Block, others: Mapping[str, BySeed]) -> dict[str, Comparison]:
    """The accuracy of every row of `others` against what it has there; Holm over the rows that have a p."""
    results = {name: paired(by_seed(block.lines[name], "mean_accuracy"), other) for name, other in others.items()}
    adjusted = holm({name: p for name, (_, p) in results.items()})
    return {name: Comparison(difference, p, adjusted[name]) for name, (difference, p) in results.items()}
