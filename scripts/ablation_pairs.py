"""Comparisons of the ablation ledger that its tables of one world hold no column for: across worlds, rows and metrics.

Each is a weighted sum of metrics, taken seed by seed; its mean is tested against zero, with Holm's correction over all
of them. They were chosen after most of their numbers were known: the correction is for their number, not the choice.
"""

from collections.abc import Mapping
from typing import NamedTuple

from eval.statistics import holm
from scripts.ablation_rows import Sizes
from scripts.ablation_tables import Block, BySeed, Comparison, by_seed, paired

ACCURACY = ("mean_accuracy",)
CONSENSUS = ("consensus", "mean_accuracy")


class Term(NamedTuple):
    """`factor` times a metric of a row in a world; `path` as in scripts.ablation_tables.by_seed."""

    factor: float
    world: str
    row: str
    path: tuple[str, ...] = ACCURACY


def looks(part: str, who: str = "student") -> tuple[str, ...]:
    return ("looks", part, "accuracy", who)


def minus(world: str, row: str, other: str, path: tuple[str, ...] = ACCURACY, sign: int = 1) -> tuple[Term, Term]:
    """A row less another of the same world, in one metric."""
    return Term(sign, world, row, path), Term(-sign, world, other, path)


def gain(world: str, path: tuple[str, ...] = ACCURACY, sign: int = 1) -> tuple[Term, Term]:
    """What a second round with one negative adds to the first."""
    return minus(world, "two_rounds_n1", "n1", path, sign)


def beyond(
    world: str, row: str, mine: tuple[str, ...] = ACCURACY, its: tuple[str, ...] = CONSENSUS
) -> tuple[Term, Term]:
    """A student minus the consensus that it was trained on, on the same held-out films."""
    return Term(1, world, row, mine), Term(-1, world, row, its)


# The same settings from two trainings of Learn: the mean of both, seed by seed.
BOTH = (Term(0.5, "published", "pl_nll"), Term(0.5, "published", "pl_nll_again"))
SECOND = "second round minus first"
PAIRS: dict[str, tuple[Term, ...]] = {
    "`pl_nll`, both trainings, minus best teacher": (*BOTH, Term(-1, "published", "pl_nll", ("best_teacher",))),
    "`pl_nll`, both trainings, minus `learn`": (*BOTH, Term(-1, "published", "learn")),
    "`pl_nll`, both trainings, minus `sft_consensus_flops`": (*BOTH, Term(-1, "published", "sft_consensus_flops")),
    "`pl_nll`, both trainings, minus `sft_consensus_flops_best`": (
        *BOTH,
        Term(-1, "published", "sft_consensus_flops_best"),
    ),
    "consensus with the student heard, minus the first": minus("published", "two_rounds", "pl_nll", CONSENSUS),
    "fine-tuning twice minus two rounds with one negative": minus("published", "two_rounds_sft", "two_rounds_n1"),
    "fine-tuning twice minus two rounds with seven": minus("published", "two_rounds_sft", "two_rounds"),
    "`pl_nll` minus its consensus": beyond("published", "pl_nll"),
    "`two_rounds` minus its consensus": beyond("published", "two_rounds"),
    "`two_rounds_n1` minus its consensus, published": beyond("published", "two_rounds_n1"),
    "`two_rounds_n1` minus its consensus, correlated": beyond("correlated", "two_rounds_n1"),
    "`two_rounds_n1` minus its consensus, looks": beyond("looks", "two_rounds_n1"),
    f"{SECOND}, published_even": gain("published_even"),
    f"{SECOND}, correlated": gain("correlated"),
    f"{SECOND}, looks": gain("looks"),
    f"{SECOND}, correlated minus looks": (*gain("correlated"), *gain("looks", sign=-1)),
    f"{SECOND}, misleading pairs, correlated": gain("correlated", looks("misleading")),
    f"{SECOND}, misleading pairs, looks": gain("looks", looks("misleading")),
    f"{SECOND}, misleading pairs, correlated minus looks": (
        *gain("correlated", looks("misleading")),
        *gain("looks", looks("misleading"), -1),
    ),
    f"{SECOND}, plain pairs, looks": gain("looks", looks("plain")),
    "`n1` minus its consensus, misleading pairs, looks": beyond(
        "looks", "n1", looks("misleading"), looks("misleading", "consensus")
    ),
    "`n1` minus its consensus, plain pairs, looks": beyond("looks", "n1", looks("plain"), looks("plain", "consensus")),
    "consensus with 20 labels minus without, published_even": minus(
        "published_even", "compare_labels", "compare_dawid_skene"
    ),
    "consensus with 20 labels minus best teacher, published_even": beyond(
        "published_even", "compare_labels", its=("best_teacher",)
    ),
    "`n1_labels` minus `n1`, published_even": minus("published_even", "n1_labels", "n1"),
    "`two_rounds_n1_labels` minus `two_rounds_n1`, published_even": minus(
        "published_even", "two_rounds_n1_labels", "two_rounds_n1"
    ),
    "consensus of dawid_skene minus vote, correlated": minus("correlated", "compare_dawid_skene", "compare_vote"),
    "consensus of dawid_skene minus vote, looks": minus("looks", "compare_dawid_skene", "compare_vote"),
}


def total(blocks: Mapping[str, Block], terms: tuple[Term, ...]) -> BySeed:
    """The sum over the seeds that all terms have; {} where a world or row is not there. `blocks`: world -> block."""
    found: list[BySeed] = []
    for term in terms:
        block = blocks.get(term.world)
        lines = (block.lines | block.compared).get(term.row, {}) if block else {}
        found.append({seed: term.factor * value for seed, value in by_seed(lines, *term.path).items()})
    seeds = set.intersection(*(set(one) for one in found))
    return {seed: sum(one[seed] for one in found) for seed in sorted(seeds)}


def compared_pairs(found: list[Block]) -> dict[str, Comparison]:
    """What -> its comparison with zero, for those of PAIRS that have a test in cohorts of full size."""
    blocks = {block.world: block for block in found if block.sizes == Sizes()}
    sums = {what: total(blocks, terms) for what, terms in PAIRS.items()}
    tests = {what: paired(values, dict.fromkeys(values, 0.0)) for what, values in sums.items()}
    tests = {what: test for what, test in tests.items() if test[1] is not None}
    adjusted = holm({what: p for what, (_, p) in tests.items()})
    return {what: Comparison(difference, p, adjusted[what]) for what, (difference, p) in tests.items()}
