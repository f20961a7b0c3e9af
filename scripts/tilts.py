"""How often a label-free consensus finds the truth at the published accuracies, over ways to split them.

    python -m scripts.tilts [--splits 100] [--labels 3 5 10 20 50] [--seed 0] [--out docs/results/tilts.json]

The paper prints one accuracy a teacher and finding; sensitivity and specificity, on which every consensus depends, are
not known. A split is one tilt a teacher, uniform from -1 (says no too often) to 1 (says yes too often), as in
data/phantom/teachers.py; the world "published" is one split, chosen so that the consensus works. Here teachers of
random splits vote on the truth of drawn films, and Dawid and Skene's consensus (apo/error_rates.py, fitted on all
films), the same with the labels of the first few films, and the unweighted vote are scored on the last ones, beside the
best teacher there.

Votes are drawn and not read from texts, and every teacher speaks on every finding, unless it refuses.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from apo.error_rates import fit_dawid_skene, orient, orient_by_labels
from data.errors import UserError, refuse_below_one, run_cli
from data.files import claimed, write_atomic
from data.phantom import cohort
from data.phantom.teachers import FIVE, MANNERS, OTHER_RATES, OTHERS, TEACHERS, TILT, published_rates

WRONG = 0.2  # share of labels that are wrong, as those that are read out of reports may be
SHIPPED = {"published": TILT, "published_even": dict.fromkeys(TEACHERS, 0.0)}


def truths(films: int, test: int, seed: int) -> np.ndarray:
    """[films + test, findings] of bool, the five first: the truth of a cohort's films, which are not drawn."""
    studies = [
        study
        for split, n in (("train", films), ("test", test))
        for study in cohort.plan(split, n, seed=seed, world="published")
    ]
    states = [[one["findings"][label]["state"] == "present" for label in (*FIVE, *OTHERS)] for one in studies]
    return np.array(states)


def vote(truth: np.ndarray, tilt: dict[str, float], rng: np.random.Generator) -> np.ndarray:
    """[films, teachers, findings]: 1 present, 0 absent, -1 refused."""
    pairs = published_rates(tilt)
    rates = np.array([[*pairs[name], *[OTHER_RATES] * len(OTHERS)] for name in TEACHERS])  # [teachers, findings, 2]
    wrong = 1.0 - np.where(truth[:, None, :], rates[None, :, :, 0], rates[None, :, :, 1])
    says = truth[:, None, :] ^ (rng.random(wrong.shape) < wrong)
    refuses = rng.random((len(truth), len(TEACHERS))) < [MANNERS[name][1] for name in TEACHERS]
    return np.where(refuses[:, :, None], -1, says)


def score(
    truth: np.ndarray, votes: np.ndarray, test: int, labels: Sequence[int], rng: np.random.Generator
) -> dict[str, float]:
    """Mean accuracies over the five findings of the last `test` films, and the lowest of a consensus by finding;
    "N labels": of the consensus that is told the truth of the first N films, for each of `labels`; "N labels, some
    wrong": of the one whose labels are wrong with a chance of WRONG."""
    by_label = {label: votes[:, :, i] for i, label in enumerate((*FIVE, *OTHERS))}
    fits, _ = orient({label: fit_dawid_skene(found) for label, found in by_label.items()}, by_label)
    found = {"dawid_skene": fits}
    misread = truth ^ (rng.random(truth.shape) < WRONG)
    for n in labels:
        for name, read in ((f"{n} labels", truth), (f"{n} labels, some wrong", misread)):
            told = np.where(np.arange(len(truth))[:, None] < n, read, -1)
            known = {label: told[:, i] for i, label in enumerate((*FIVE, *OTHERS))}
            found[name], _ = orient_by_labels(fits, by_label, known)
    truth, last = truth[-test:, : len(FIVE)], votes[-test:, :, : len(FIVE)]
    majority = (last == 1).sum(1) > (last == 0).sum(1)
    scores = {}
    for name, each in found.items():
        right = (np.stack([each[label].posterior[-test:, 1] > 0.5 for label in FIVE], 1) == truth).mean(0)
        scores |= {name: float(right.mean()), f"{name}, worst finding": float(right.min())}
    teachers = (last == truth[:, None]).mean((0, 2))
    return {
        **scores,
        "vote": float((majority == truth).mean()),
        "best teacher": float(teachers.max()),
    }


def summary(found: list[dict[str, float]]) -> dict[str, float]:
    """Shares and quartiles over splits."""
    table = {name: np.array([one[name] for one in found]) for name in found[0]}
    best = table["best teacher"]
    shares = {"splits": len(found), "vote above the best teacher": float((table["vote"] > best).mean())}
    for name in (name for name in table if f"{name}, worst finding" in table):
        low, middle, high = np.quantile(table[name], [0.25, 0.5, 0.75])
        shares |= {
            f"{name} above the best teacher": float((table[name] > best).mean()),
            f"{name} above it by 5 points": float((table[name] > best + 0.05).mean()),
            f"{name} at .90 or more": float((table[name] >= 0.9).mean()),
            f"{name}, a finding turned round": float((table[f"{name}, worst finding"] < 0.5).mean()),
            f"{name}, quartile 1": float(low),
            f"{name}, median": float(middle),
            f"{name}, quartile 3": float(high),
        }
    return shares


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.tilts", description=__doc__.split("\n")[0])
    parser.add_argument("--splits", type=int, default=100, help="random splits (default: 100)")
    parser.add_argument("--films", type=int, default=1560, help="beside the scored ones (default: 1560)")
    parser.add_argument("--test", type=int, default=400, help="scored films (default: 400)")
    parser.add_argument(
        "--labels",
        type=int,
        nargs="+",
        default=[3, 5, 10, 20, 50],
        help="films whose truth is told (default: 3 5 10 20 50)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write as well")
    args = parser.parse_args(argv)
    refuse_below_one(args, "splits", "films", "test")
    for n in args.labels:
        if not 1 <= n <= args.films:
            raise UserError(f"--labels {n}: must be from 1 to the {args.films} --films beside the scored ones")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must be a whole number from 0")
    # Claimed before minutes are spent on what could not be written.
    with claimed(args.out) if args.out else nullcontext():
        run(args)


def run(args: argparse.Namespace) -> None:
    truth = truths(args.films, args.test, args.seed)
    rng = np.random.default_rng([args.seed, 71])
    errors = np.random.default_rng([args.seed, 72])
    rest = (args.test, args.labels, errors)
    shipped = {name: score(truth, vote(truth, tilt, rng), *rest) for name, tilt in SHIPPED.items()}
    found = []
    for number in range(args.splits):
        tilt = dict(zip(TEACHERS, rng.uniform(-1, 1, len(TEACHERS)).tolist(), strict=True))
        found.append(score(truth, vote(truth, tilt, rng), *rest))
        print(f"\rsplit {number + 1} of {args.splits}", end="", flush=True)
    print()
    sizes = {"films": args.films, "test": args.test, "labels": args.labels, "wrong": WRONG, "seed": args.seed}
    result = {**sizes, "random": summary(found), **shipped}
    for name in ("random", *shipped):
        for what, value in result[name].items():
            print(f"{name:15} {what:44} {value:.3g}")
    if args.out:
        write_atomic(args.out, json.dumps(result, indent=2) + "\n")
        print(f"written: {args.out}")


if __name__ == "__main__":
    run_cli(main)
