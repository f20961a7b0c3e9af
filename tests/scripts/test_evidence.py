"""What README.md and docs/evidence.md say in words is what the ledger says in numbers.

Each claim is a template; its numbers are computed and the page must hold the sentence. Where the ledger has grown, the
words have to follow, here or there.
"""

import functools
import json
import re

import pytest

from scripts import ablation_ledger as ledger
from scripts.ablate_report import fixed
from scripts.ablation_pairs import Term, looks, total
from scripts.ablation_rows import Sizes, read_rows
from scripts.ablation_tables import blocks, compare, mean_of, own_reference, paired
from scripts.plan import ROOT

CONSENSUS = ("consensus", "mean_accuracy")
BEST, MAJORITY = ("best_teacher",), ("majority_class",)


@functools.cache
def page(name):
    return re.sub(r"\s+", " ", (ROOT / name).read_text(encoding="utf-8"))


@functools.cache
def worlds():
    found, left = blocks(ledger.read(ledger.LEDGER).values(), read_rows())
    assert not left
    return {block.world: block for block in found if block.sizes == Sizes()}


def numbers(*terms, below=False):
    """[mean, low, high] in points of a sum of terms over the seeds that all have; of its negative with `below`."""
    sign = -1 if below else 1
    values = total(worlds(), tuple(Term(factor * sign, *rest) for factor, *rest in terms))
    mean = mean_of(values)
    assert mean and mean.low is not None, "an interval needs three seeds"
    return [fixed(100 * value, 1) for value in mean[1:]]


def one(row, *path, world="published"):
    return numbers((1, world, row, *path))


def minus(row, other, *, world="published", path=("mean_accuracy",), below=False):
    return numbers((1, world, row, path), (-1, world, other, path), below=below)


def above(row, path, *, world="published", below=False):
    return numbers((1, world, row), (-1, world, row, path), below=below)


def both(*rest, below=False):
    """Of `pl_nll` over both trainings."""
    return numbers((0.5, "published", "pl_nll"), (0.5, "published", "pl_nll_again"), *rest, below=below)


def to_reference(row):
    reference, _ = own_reference(worlds()["published"], row)
    difference, _ = paired(total(worlds(), (Term(1, "published", row),)), reference)
    return [fixed(100 * value, 1, "+" if i == 0 else "") for i, value in enumerate(difference[1:])]


def mild(*paths, below=False):
    """Of `pl_nll` in "balanced" and in "drift", for each of `paths`: less that of itself or less another row's; None:
    nothing."""
    found = []
    for path in paths:
        for world in ("balanced", "drift"):
            if isinstance(path, str):
                found += minus("pl_nll", path, world=world)
            else:
                found += above("pl_nll", path, world=world, below=below) if path else one("pl_nll", world=world)
    return found


README, EVIDENCE = "README.md", "docs/evidence.md"
SECOND = ("two_rounds_n1", "n1")
CLAIMS = [
    (README, "{0} % ({1} to {2}) | {3} % ({4} to {5}) | {6} % ({7} to {8}) | **{9} %** ({10} to {11})",
     lambda: one("learn", BEST) + one("learn") + both() + one("two_rounds")),
    (README, "{0} points ({1} to {2}) over two trainings", lambda: both((-1, "published", "pl_nll", BEST))),
    (README, "critiqued again, stands {0} ({1} to {2}) above", lambda: minus("two_rounds", "sft_consensus_flops")),
    (README, "those FLOPs, {0} ({1} to {2})", lambda: minus("two_rounds_n1", "sft_consensus_flops")),
    (README, "{0} % ({1} to {2}) | {3} % ({4} to {5}) | {6} % ({7} to {8}) | {9} % ({10} to {11})",
     lambda: [n for row, *path in (("learn", BEST), ("learn",), ("n1",), ("two_rounds_n1",))
              for n in one(row, *path, world="published_even")]),
    (README, "of the films, and {0} below the best teacher ({1} to {2})",
     lambda: above("n1", BEST, world="published_even", below=True)),
    (EVIDENCE, "ends {0} below the best teacher ({1} to {2})",
     lambda: above("n1", BEST, world="published_even", below=True)),
    (EVIDENCE, "and {0} above Learn ({1} to {2}): edema", lambda: minus("n1", "learn", world="published_even")),
    (EVIDENCE, "A second round adds {0} ({1} to {2}) on the other", lambda: minus(*SECOND, world="published_even")),
    (EVIDENCE, "stays {0} below the best teacher ({1} to {2})",
     lambda: above("two_rounds_n1", BEST, world="published_even", below=True)),
    (EVIDENCE, "five seeds: {0}, {1} to {2}; edema", lambda: one("n1", world="published_even")),
    (EVIDENCE, "`two_rounds_n1`, five seeds: {0}, {1} to {2};", lambda: one("two_rounds_n1", world="published_even")),
    (README, "is told to Compare | {0} % ({1} to {2}) | {3} % ({4} to {5}) | {6} % ({7} to {8}) |",
     lambda: one("learn", BEST, world="published_even") + one("learn", world="published_even")
     + one("n1_labels", world="published_even")),
    (README, "then stands {0} points ({1} to {2}) above the best teacher",
     lambda: above("n1_labels", BEST, world="published_even")),
    (EVIDENCE, "the consensus is then {0} above the best teacher ({1} to {2})",
     lambda: above("compare_labels", BEST, world="published_even")),
    (EVIDENCE, "one negative {0} above it ({1} to {2})", lambda: above("n1_labels", BEST, world="published_even")),
    (EVIDENCE, "{0} above `n1` ({1} to {2})", lambda: minus("n1_labels", "n1", world="published_even")),
    (EVIDENCE, "from the Learn of `n1`) is at {0} ({1} to {2})", lambda: one("n1_labels", world="published_even")),
    (EVIDENCE, "and {0} below its consensus ({1} to {2})",
     lambda: above("n1_labels", CONSENSUS, world="published_even", below=True)),
    (README, "in \"published\" {0}, and {3} at the checkpoint",
     lambda: one("sft_consensus_flops") + one("sft_consensus_flops_best")),
    (README, "the published loss without it gave {0} ({1} to {2}), chance", lambda: one("pl")),
    (README, "raises the consensus from {0} to {3}", lambda: one("pl_nll", CONSENSUS) + one("two_rounds", CONSENSUS)),
    (EVIDENCE, "{0} points ({1} to {2}) above the best teacher and", lambda: both((-1, "published", "pl_nll", BEST))),
    (EVIDENCE, "and {0} ({1} to {2}) above Learn", lambda: both((-1, "published", "learn"))),
    (EVIDENCE, "the first training alone {0} ({1} to {2})", lambda: above("pl_nll", BEST)),
    (EVIDENCE, "the second {0} ({1} to {2})", lambda: above("pl_nll_again", BEST)),
    (EVIDENCE, "it is {0} below its last checkpoint ({1} to {2})",
     lambda: minus("pl_nll", "sft_consensus_flops", below=True)),
    (EVIDENCE, "{0} below its best one ({1} to {2})",
     lambda: minus("pl_nll", "sft_consensus_flops_best", below=True)),
    (EVIDENCE, "are {0} above the last one ({1} to {2};", lambda: minus("two_rounds_n1", "sft_consensus_flops")),
    (EVIDENCE, "two with seven {0} ({1} to {2};", lambda: minus("two_rounds", "sft_consensus_flops")),
    (EVIDENCE, "({0} below, {1} to {2}); one negative", lambda: minus("two_rounds_sft", "two_rounds_n1", below=True)),
    (EVIDENCE, "level with seven ({0}, {1} to {2})", lambda: to_reference("n1")),
    (EVIDENCE, "with the film's own ({0}, {1} to {2};", lambda: to_reference("pl_random_film")),
    (EVIDENCE, "Not with this student: {0} ({1} to {2})", lambda: one("pl")),
    (EVIDENCE, "it is {0} above a vote ({1} to {2})",
     lambda: minus("compare_dawid_skene", "compare_vote", world="correlated")),
    (EVIDENCE, "it is right in {0} % after one round and in {3} after two",
     lambda: one("n1", looks("misleading"), world="looks") + one("two_rounds_n1", looks("misleading"), world="looks")),
    (EVIDENCE, "after two ({0}, {1} to {2});", lambda: minus(*SECOND, world="looks", path=looks("misleading"))),
    (EVIDENCE, "in 67.9 and 75.4 (+{0}, {1} to {2})",
     lambda: minus(*SECOND, world="correlated", path=looks("misleading"))),
    (EVIDENCE, "A second adds {0} in \"correlated\" ({1} to {2};", lambda: minus(*SECOND, world="correlated")),
    (EVIDENCE, "and {0} in \"looks\" ({1} to {2};", lambda: minus(*SECOND, world="looks")),
    (EVIDENCE, "not: {0} below it after one round ({1} to {2})", lambda: above("pl_nll", CONSENSUS, below=True)),
    (EVIDENCE, "{0} below the second one after two ({1} to {2})", lambda: above("two_rounds", CONSENSUS, below=True)),
    (EVIDENCE, "of an unweighted vote gave {0} ({1} to {2};", lambda: one("consensus_vote")),
    (EVIDENCE, "five seeds) gives {0} ({1} to {2}), {3} above the first ({4} to {5}).",
     lambda: one("two_rounds_n1_labels", world="published_even")
     + minus("two_rounds_n1_labels", "n1_labels", world="published_even")),
    (README, "| {0} % ({1} to {2}) | - **Where teachers let",
     lambda: one("two_rounds_n1_labels", world="published_even")),
    (EVIDENCE, "its student stood at chance ({0}, {1} to {2};", lambda: one("consensus_medoid")),
    (EVIDENCE, "is right in {0} % ({1} to {2}), {3} below the unweighted vote ({4} to {5}) and {6} below always giving "
     "the commonest answer ({7} to {8})",
     lambda: one("consensus_self", CONSENSUS)
     + numbers((1, "published", "compare_vote"), (-1, "published", "consensus_self", CONSENSUS))
     + numbers((1, "published", "consensus_self", MAJORITY), (-1, "published", "consensus_self", CONSENSUS))),
    (EVIDENCE, "critiqued on it stands at {0} ({1} to {2}; balanced", lambda: one("consensus_self")),
    (EVIDENCE, "by seed), {0} below the commonest answer ({1} to {2}), which",
     lambda: above("consensus_self", MAJORITY, below=True)),
    (EVIDENCE, "negatives stand level with unweighted ones ({0}, {1} to {2};", lambda: to_reference("pl_weighted")),
    (EVIDENCE, "the truth {0} ({1} to {2})", lambda: one("consensus_oracle")),
    (EVIDENCE, "Dawid and Skene's is {0} points above the best teacher ({1} to {2})",
     lambda: above("compare_dawid_skene", BEST)),
    (EVIDENCE, "four of its seeds, at {0} ({1} to {2})", lambda: one("beta_1.0")),
    (EVIDENCE, "`beta_1.0`, five seeds: {0}", lambda: one("beta_1.0")[:1]),
    (EVIDENCE, "one pair, a random trajectory, {0} again ({1} to {2})", lambda: one("dpo_one_pair")),
    (EVIDENCE, "gave {0} ({1} to {2}), {3} ({4} to {5}), {6} ({7} to {8}), {9} ({10} to {11}) and {12} ({13} to {14}): "
     "between one ({15}) and seven ({16} from",
     lambda: [n for row in ("n2", "n3", "n4", "n5", "n6") for n in one(row)] + one("n1")[:1]
     + one("pl_nll_again")[:1]),
    (EVIDENCE, "the highest number of one round: {0} ({1} to {2}). It is {3} above `pl_nll` from the first Learn ({4} "
     "to {5}), and {6} above `beta_1.0` ({7} to {8}) and {9} above `n4` ({10} to {11})",
     lambda: one("pl_length") + minus("pl_length", "pl_nll") + minus("pl_length", "beta_1.0")
     + minus("pl_length", "n4")),
    (EVIDENCE, "three times as much gave {0} ({1} to {2}), a third {3} ({4} to {5}), a tenth {6} ({7} to {8}),",
     lambda: one("lr_0.003") + one("lr_0.0003") + one("lr_0.0001")),
    (EVIDENCE, "it is {0} above the best teacher ({1} to {2}) and {3} above Learn ({4} to {5}, four seeds), in",
     lambda: above("pl_nll", BEST, world="refusing") + minus("pl_nll", "learn", world="refusing")),
    (EVIDENCE, "five seeds) gave {0} ({1} to {2}), a difference to `pl_nll` of {3} ({4} to {5};",
     lambda: one("pl_refusals", world="refusing") + minus("pl_refusals", "pl_nll", world="refusing")),
    (EVIDENCE, "to undo that. Over five seeds {0} ({1} to {2});", lambda: one("pl_consensus_style")),
    (EVIDENCE, "no better than the best teacher's (+{0}, {1} to {2})",
     lambda: above("compare_dawid_skene", BEST, world="published_even")),
    (README, "one round is {0} ({1} to {2}) and {3} ({4} to {5}) above the best teacher", lambda: mild(BEST)),
    (EVIDENCE, "each: {0} ({1} to {2}) and {3} ({4} to {5}) above the best teacher, {6} ({7} to {8}) and {9} ({10} to "
     "{11}) above Learn.", lambda: mild(BEST, "learn")),
    (EVIDENCE, "as well: {0} ({1} to {2}) and {3} ({4} to {5}) are {6} ({7} to {8}) and {9} ({10} to {11}) above the "
     "best teacher and {12} ({13} to {14}) and {15} ({16} to {17}) above Learn.", lambda: mild(None, BEST, "learn")),
    (EVIDENCE, "below its consensus, by {0} ({1} to {2}) and {3} ({4} to {5}).", lambda: mild(CONSENSUS, below=True)),
    (EVIDENCE, "four seeds: {0}, {1} to {2}, {3} below the best teacher, {4} to {5};",
     lambda: one("pl_nll", world="published_even") + above("pl_nll", BEST, world="published_even", below=True)),
    (EVIDENCE, "one negative is {0} above them, {1} to {2})", lambda: minus("n1", "pl_nll", world="published_even")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "template", "found"), CLAIMS, ids=[template for _, template, _ in CLAIMS])
def test_words_follow_the_numbers(name, template, found):
    sentence = template.format(*found())
    assert sentence in page(name), f"{name} has no longer: {sentence}"


FLOPS, LOWEST = "sft_consensus_flops", "sft_consensus_flops_best"


@pytest.mark.parametrize(
    ("row", "other", "words"),
    [
        ("two_rounds_n1", FLOPS, "p {} after correction) at three quarters"),
        ("two_rounds_n1", FLOPS, "1.5 to 5.2; p .007, {} after correction"),
        ("two_rounds", FLOPS, "; {}) at twice"),
        ("two_rounds", FLOPS, "p .003, {} after correction"),
        ("two_rounds", LOWEST, "0.3 to 4.2; {} after correction"),
        ("pl_nll", LOWEST, "p .032, {} after correction"),
        ("sft_consensus_samples", "pl_nll", "p .044, {} after correction"),
    ],
)
def test_corrected_p_in_words(row, other, words):
    block = worlds()["published"]
    if other == "pl_nll":
        references = {name: own_reference(block, name)[0] for name in block.lines if name != other}
    else:
        base = {seed: line["metrics"]["mean_accuracy"] for seed, line in block.lines[other].items()}
        references = {name: base for name in block.lines if name != other}
    p = compare(block, references)[row].adjusted
    assert words.format(f"{p:.2f}" if p > 0.1 else f"{p:.3f}").replace(" 0.", " .") in page(EVIDENCE)


def test_words_on_random_splits():
    found = json.loads((ROOT / "docs/results/tilts.json").read_text(encoding="utf-8"))
    assert found["wrong"] == 0.2 and found["labels"] == [3, 5, 10, 20, 50] and found["random"]["splits"] == 100

    def of(name):
        return round(100 * found["random"][name])

    def turned(more=""):
        *first, last = (of(f"{n} labels{more}, a finding turned round") for n in found["labels"])
        return f"{', '.join(map(str, first))} and {last}"

    sentence = "above the best teacher in {}, by five points in {}, and right in 90 % or more in {}, as"
    names = ("dawid_skene above the best teacher", "dawid_skene above it by 5 points", "dawid_skene at .90 or more")
    assert sentence.format(*map(of, names)) in page(EVIDENCE)
    assert f"in {of('dawid_skene, a finding turned round')} it takes the opposite" in page(EVIDENCE)
    sentence = "round in {} of these splits, and with labels of which a fifth is wrong in {}; with twenty it is five"
    assert sentence.format(turned(), turned(", some wrong")) in page(EVIDENCE)
    twenty = [of(f"20 labels{more} above it by 5 points") for more in ("", ", some wrong")]
    assert "five points above the best teacher in {}, or {}.".format(*twenty) in page(EVIDENCE)
    assert of("50 labels, some wrong above it by 5 points") == 100, "README says all, also with a fifth of fifty wrong"


def test_a_claim_that_does_not_hold_is_seen():
    assert "are 3.4 above the last one" not in page(EVIDENCE)
    assert minus("two_rounds_n1", "sft_consensus_flops") != ["3.4", "1.5", "5.2"]
