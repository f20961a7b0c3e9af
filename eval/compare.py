"""Paired tests between two results files: who is better where, and is it more than chance.

    python -m eval.compare A/results.json B/results.json [--out compare.html]

For every benchmark that both files hold, on the items that both answered (from per_item.jsonl beside results.json):
accuracy by finding with exact McNemar, AUC by label with DeLong, text metrics with approximate randomisation by
patient. Means over findings and macro accuracy have a paired bootstrap by patient only. Every difference is A minus B
with its 95 % bootstrap interval by patient; p values are adjusted by Holm within a table.
"""

import argparse
import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data.errors import UserError, refuse_below_one, refuse_negative, run_cli
from data.files import read_jsonl, refuse_input, write_atomic
from data.findings_lexicon import FIVE
from data.pages import environment
from data.records import PROGRESSIONS
from eval import charts, statistics
from eval.table import RESEARCH, line, number
from eval.text_metrics import CIDER, coco_bleu

# What of a protocol adds rows and metrics to one run and changes none that two share.
ADDS = ("clinical", "meteor", "teachers")
TESTS = {
    "accuracy": "exact McNemar",
    "macro accuracy": "paired bootstrap only",
    "AUC": "DeLong",
    "text": "approximate randomisation by patient",
}


@dataclasses.dataclass
class Pairs:
    """Items of one column (a finding, label or text metric) that both runs scored: arrays are [items]."""

    patients: list[str] = dataclasses.field(default_factory=list)
    # A number an item; for BLEU the counts that a corpus sums.
    a: list[float | list[int]] = dataclasses.field(default_factory=list)
    b: list[float | list[int]] = dataclasses.field(default_factory=list)
    truth: list[object] = dataclasses.field(default_factory=list)  # class of the item, None where it is not known


def read_results(path: Path) -> dict:
    """A results.json of `eval.run`; UserError for anything else."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(results, dict) and "benchmarks" not in results and "rows" in results:
            raise UserError(
                f"{path}: scores study records (evaluate.sh CHECKPOINT STUDIES) and holds nothing by item; compare "
                "runs with --benchmark (of study records: cxr-max-held-out)"
            )
        if not isinstance(results["benchmarks"], dict) or not isinstance(results["name"], str):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a results file of eval.run ({type(error).__name__}); name its results.json"
        ) from None
    return results


def read_items(path: Path, result: Mapping) -> dict[str, dict]:
    """The per-item rows of one benchmark by id; `path` is that of results.json."""
    file = path.parent / result["per_item_file"]
    rows: dict[str, dict] = {}
    for number_, row in read_jsonl(file):
        if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not isinstance(row.get("patient"), str):
            raise UserError(f"{file}:{number_}: an item needs an id and a patient; score the run again")
        rows[row["id"]] = row
    if not rows:
        raise UserError(f"{file}: holds no item; score the run again")
    return rows


def columns(a: Mapping[str, dict], b: Mapping[str, dict]) -> dict[str, dict[str, Pairs]]:
    """group ("accuracy", "AUC", "text") -> column -> Pairs of the items that both hold, in the order of `a`.

    Raises UserError where the two disagree about an item's truth or patient.
    """
    found: dict[str, dict[str, Pairs]] = defaultdict(lambda: defaultdict(Pairs))
    for id_, one in a.items():
        other = b.get(id_)
        if other is None:
            continue
        if one["patient"] != other["patient"] or not _same_truth(one, other):
            raise UserError(
                f"item {id_}: the two runs give it another truth or patient; score both with the same tables"
            )
        truth = one.get("truth")
        for key, group in (("correct", "accuracy"), ("score", "AUC"), ("text_metric", "text")):
            ours, theirs = one.get(key) or {}, other.get(key) or {}
            for column in ours:
                if ours[column] is None or theirs.get(column) is None:
                    continue
                pairs = found[group][column]
                pairs.patients.append(one["patient"])
                pairs.a.append(ours[column])
                pairs.b.append(theirs[column])
                pairs.truth.append(truth.get(column) if isinstance(truth, dict) else truth)
    return found


def _same_truth(one: Mapping, other: Mapping) -> bool:
    """Whether the truths of an item agree, as far as both runs name it."""
    ours, theirs = one.get("truth"), other.get("truth")
    if isinstance(ours, dict) and isinstance(theirs, dict):
        # A run names the labels that one of its studies has: a part of the studies has fewer.
        return all(ours[label] == theirs[label] for label in _findings(ours, theirs))
    if _of_unknown_reference(one, other):
        return True
    return ours == theirs


def _of_unknown_reference(one: Mapping, other: Mapping) -> bool:
    """Whether a text was scored before runs told which reference it was held against."""
    return "text_metric" in one and not (one.get("truth") and other.get("truth"))


def _labels(rows: Mapping[str, dict], ids: Sequence[str]) -> dict[str, None]:
    return dict.fromkeys(label for id_ in ids for key in ("correct", "score") for label in rows[id_].get(key) or ())


def compare_benchmark(a: Mapping[str, dict], b: Mapping[str, dict], *, seed: int, resamples: int, rounds: int) -> dict:
    """Tables of differences of one benchmark.

    Returns {"n", "patients", "tables": [{"group", "test", "rows"}], "notes"}; a row is {"name", "n", "a", "b",
    "difference", "low", "high", "skipped_resamples", "p", "p_holm"}, None for what is not defined.
    """
    common = [id_ for id_ in a if id_ in b]
    if not common:
        raise UserError("the two runs have no item in common; compare runs of the same benchmark and options")
    notes = []
    alone = len(a) - len(common), len(b) - len(common)
    if any(alone):
        notes.append(f"{alone[0]} items are in A only and {alone[1]} in B only; they are not compared")
    patients = {a[id_]["patient"] for id_ in common}
    by_group = columns(a, b)
    ours, theirs = _labels(a, common), _labels(b, common)
    if one_only := [label for label in (ours | theirs) if label not in ours or label not in theirs]:
        notes.append(f"scored in one run only, not compared: {', '.join(one_only)}")
    if unknown := sum(_of_unknown_reference(a[id_], b[id_]) for id_ in common):
        notes.append(
            f"{unknown} texts were scored before a run told which reference it held them against: that both had the "
            "same is not known; score the answers again to know"
        )
    if any(alone) and by_group.get("text", {}).pop(CIDER, None):
        notes.append("CIDEr is not compared: it weighs words by all items of a run, and the two scored other items")
    tables = []
    draw = {"seed": seed, "resamples": resamples}
    for group, found in by_group.items():
        tables.append(_table(group, found, TESTS[group], _test_of(group, rounds, seed), **draw))
        if group == "accuracy" and all(t is not None for pairs in found.values() for t in pairs.truth):
            findings = dict.fromkeys(label for id_ in common for label in _findings(a[id_]["truth"], b[id_]["truth"]))
            undefined = [label for label in findings if label not in found or not _has_every_class(found[label].truth)]
            tables.append(_table("macro accuracy", found, TESTS["macro accuracy"], None, mean=not undefined, **draw))
            if undefined:
                notes.append(
                    f"not every class is among the compared items of {', '.join(undefined)}: their macro accuracy, and "
                    "the mean, are not defined"
                )
    by_item = any(one["group"] in ("accuracy", "AUC") for one in tables)  # texts are exchanged by patient
    if by_item and len(patients) < len(common):
        notes.append(
            f"{len(common)} items come from {len(patients)} patients: McNemar and DeLong take items as independent, so "
            "where they disagree with the interval trust the interval"
        )
    if any(row["low"] is None for one in tables for row in one["rows"]):
        notes.append("no interval where a number is not defined in more than half of the resamples")
    return {"n": len(common), "patients": len(patients), "tables": tables, "notes": notes}


def _test_of(group: str, rounds: int, seed: int) -> Callable[[Pairs], float | None]:
    def delong(pairs: Pairs) -> float | None:
        return statistics.delong(pairs.truth, pairs.a, pairs.b)["p"] if len(set(pairs.truth)) == 2 else None

    def randomised(pairs: Pairs) -> float:
        draw = {"rounds": rounds, "seed": seed, "patients": pairs.patients}
        return statistics.approximate_randomisation(pairs.a, pairs.b, _of_texts, **draw)

    return {
        "accuracy": lambda pairs: statistics.mcnemar(pairs.a, pairs.b),
        "AUC": delong,
        "text": randomised,
    }[group]


def _classes(truth: object) -> Sequence[object]:
    """The classes that the truth of an item is one of: a progression, or absent and present."""
    return PROGRESSIONS if isinstance(truth, str) else (0, 1)


def _has_every_class(truth: Sequence[object]) -> bool:
    return set(truth) == set(_classes(truth[0]))


def _findings(ours: object, theirs: object) -> Sequence[str]:
    """The findings that an item counts towards by both runs' truth: a progression is of one of the five."""
    return [label for label in ours if label in theirs] if isinstance(ours, dict) else FIVE


def _table(
    group: str, found: Mapping[str, Pairs], test: str, p_of, *, mean: bool = True, seed: int, resamples: int
) -> dict:
    """One row a column, and the mean of those that are defined (not for text metrics, which have unlike scales).

    Args:
        mean: False where the mean is not defined, as its row then says.
    """
    names = list(found)
    patients = sorted({patient for pairs in found.values() for patient in pairs.patients})
    place = {patient: i for i, patient in enumerate(patients)}
    parts = []
    for pairs in found.values():
        where = np.array([place[patient] for patient in pairs.patients])
        parts.append((where, _statistic(group, pairs.truth, pairs.a), _statistic(group, pairs.truth, pairs.b)))
    everyone = np.ones(len(patients), int)
    defined = [not np.isnan(one(everyone[where])) for where, one, _ in parts]  # an AUC needs both classes
    averaged = (sum(defined) > 1 or not mean) and group != "text"

    def numbers(counts: np.ndarray) -> np.ndarray:
        """[2, columns (+ 1)]: A and B with each patient counted `counts` [patients] times."""
        both = np.array([[one(counts[where]), other(counts[where])] for where, one, other in parts]).T
        if not averaged:
            return both
        last = both[:, defined].mean(1, keepdims=True) if mean else np.full((2, 1), np.nan)
        return np.concatenate([both, last], axis=1)

    def differences(counts: np.ndarray) -> np.ndarray:
        one, other = numbers(counts)
        return one - other

    ours, theirs = numbers(everyone)
    intervals = statistics.bootstrap(patients, differences, seed=seed, resamples=resamples)
    p_values = {name: p_of(found[name]) if p_of else None for name in names}
    adjusted = statistics.holm(p_values)
    rows = []
    for i, name in enumerate([*names, *([f"mean of {sum(defined)}" if mean else "mean"] if averaged else [])]):
        rows.append(
            {
                "name": name,
                "n": len(found[name].a) if name in found else sum(len(pairs.a) for pairs in found.values()),
                "a": _or_none(ours[i]),
                "b": _or_none(theirs[i]),
                "difference": _or_none(ours[i] - theirs[i]),
                **intervals[i],
                "p": p_values.get(name),
                "p_holm": adjusted.get(name),
            }
        )
    return {"group": group, "test": test, "rows": rows}


def _of_texts(values: np.ndarray) -> float:
    """The mean of numbers [texts], or BLEU of counts [texts, k]."""
    return coco_bleu(values.sum(0))[-1] if values.ndim == 2 else float(values.mean())


def _statistic(group: str, truth: Sequence, values: Sequence) -> Callable[[np.ndarray], float]:
    """Maps counts [items] to the number of that group, NaN where it is not defined."""
    if group == "AUC":
        return statistics.Auc(truth, values)
    numbers = np.asarray(values, float)
    if group == "macro accuracy":
        known = _classes(truth[0])
        classes = np.array([known.index(one) for one in truth])

        def recall(counts: np.ndarray) -> float:
            totals = np.bincount(classes, counts, len(known))
            hits = np.bincount(classes, counts * numbers, len(known))
            return float((hits / totals).mean()) if totals.all() else float("nan")

        return recall
    if numbers.ndim == 2:
        return lambda counts: coco_bleu(counts @ numbers)[-1] if counts.sum() else float("nan")
    return lambda counts: float(counts @ numbers / counts.sum()) if counts.sum() else float("nan")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def compare(paths: tuple[Path, Path], *, seed: int = 0, resamples: int = 1000, rounds: int = 10_000) -> dict:
    """Everything that two results files say about each other; UserError when they share no benchmark."""
    both = [read_results(path) for path in paths]
    a, b = both
    shared = [name for name in a["benchmarks"] if name in b["benchmarks"]]
    if not shared:
        raise UserError(f"{paths[0]} and {paths[1]} share no benchmark; compare runs of the same one")
    found = {}
    for name in shared:
        one, other = (results["benchmarks"][name] for results in both)
        changed = sorted(
            key
            for key in {*one["protocol"], *other["protocol"]}.difference(ADDS)
            if one["protocol"].get(key) != other["protocol"].get(key)
        )
        if changed:
            raise UserError(
                f"{name}: the two runs differ in their protocol ({', '.join(changed)}); they are never compared; "
                "score the answers of one again with the --set of the other"
            )
        items = [read_items(path, results["benchmarks"][name]) for path, results in zip(paths, both, strict=True)]
        try:
            found[name] = compare_benchmark(*items, seed=seed, resamples=resamples, rounds=rounds)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        if "predictions" in one["decoding"] or "predictions" in other["decoding"]:
            found[name]["notes"].append("how answers of --predictions were decoded is not known")
        elif one["decoding"] != other["decoding"]:
            found[name]["notes"].append("the two runs were decoded differently (see `decoding` in their results.json)")
    alone = [name for results in both for name in results["benchmarks"] if name not in shared]
    names = [a["name"], b["name"]] if a["name"] != b["name"] else [f"A: {a['name']}", f"B: {b['name']}"]
    return {
        "a": names[0],
        "b": names[1],
        "bootstrap": {"unit": "patient", "resamples": resamples, "seed": seed, "level": statistics.LEVEL},
        "rounds": rounds,
        "benchmarks": found,
        "notes": [f"in one of the files only, not compared: {', '.join(alone)}"] if alone else [],
    }


def cells(row: Mapping) -> list[str]:
    """A row of a table as text: name, n, A, B, difference, interval, p, p after Holm."""
    interval = "n/a" if row["low"] is None else f"{row['low']:+.3f} to {row['high']:+.3f}"
    difference = "n/a" if row["difference"] is None else f"{row['difference']:+.3f}"
    scores = ["n/a" if row[key] is None else number(row[key]) for key in ("a", "b")]
    return [row["name"], str(row["n"]), *scores, difference, interval, p_text(row["p"]), p_text(row["p_holm"])]


def p_text(p: float | None) -> str:
    return "" if p is None else "<.0001" if p < 1e-4 else f"{p:.4f}"


def heads(found: Mapping, group: str) -> list[str]:
    return [group, "n", found["a"], found["b"], "difference", "95 % interval", "p", "p (Holm)"]


def markdown(found: Mapping) -> str:
    """The comparison as Markdown tables, which also read well in a terminal."""
    out = [f"{found['a']} (A) against {found['b']} (B): differences are A minus B. {RESEARCH}", ""]
    for name, one in found["benchmarks"].items():
        out += [f"## {name}: {one['n']} items of {one['patients']} patients", ""]
        for table in one["tables"]:
            out += [line(heads(found, table["group"])), line(["---", *["---:"] * 7])]
            out += [line(cells(row)) for row in table["rows"]]
            out += ["", f"test: {table['test']}", ""]
        out += [f"- {note}" for note in one["notes"]] + ([""] if one["notes"] else [])
    draws = found["bootstrap"]
    out.append(f"Intervals: bootstrap by patient, {draws['resamples']} resamples, seed {draws['seed']}.")
    return "\n".join([*out, *found["notes"]])


def page(found: Mapping) -> str:
    """The comparison as one HTML file that loads nothing from elsewhere."""
    env = environment(Path(__file__).parent)
    env.globals |= {"cells": cells, "heads": heads, "chart_of": chart_of, "research": RESEARCH}
    return env.get_template("compare_page.html").render(found=found)


def chart_of(table: Mapping, name: str):
    """The differences of a table with their intervals; None where there is none."""
    points = [
        (row["name"], row["difference"], row["low"], row["high"]) for row in table["rows"] if row["low"] is not None
    ]
    return charts.interval_chart([("A minus B", points)], title=f"{table['group']}, {name}: A minus B")


def numbers_of(page: Path, inputs: Sequence[Path]) -> Path:
    """The JSON file beside the page; UserError where one of the two would replace the other or an input."""
    if page.is_dir() or page.suffix.lower() == ".json":
        raise UserError(
            f"--out {page}: must be the page, with its numbers in a .json file beside it; name it PAGE.html"
        )
    numbers = page.with_suffix(".json")
    for path in inputs:
        refuse_input(page, path)
        if os.path.realpath(numbers) == os.path.realpath(path):
            raise UserError(f"--out {page}: its numbers go to {numbers}, which is an input file; choose another")
    if numbers.exists() and not _is_comparison(numbers):
        raise UserError(f"--out {page}: its numbers go to {numbers}, which is no comparison; choose another")
    return numbers


def _is_comparison(path: Path) -> bool:
    """Whether a file is what this command writes: scores of a run have other keys."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"a", "b", "benchmarks", "rounds"} <= found.keys()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.compare", description=__doc__.split("\n")[0])
    parser.add_argument("a", type=Path, help="results.json of the first run")
    parser.add_argument("b", type=Path, help="results.json of the second run")
    parser.add_argument("--out", type=Path, default=Path("compare.html"), help="page to write (default: compare.html)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap and of the randomisation (default: 0)")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples by patient (default: 1000)")
    parser.add_argument("--rounds", type=int, default=10_000, help="rounds of the randomisation test (default: 10000)")
    args = parser.parse_args(argv)
    refuse_below_one(args, "resamples", "rounds")
    refuse_negative(args, "seed")
    numbers = numbers_of(args.out, (args.a, args.b))
    found = compare((args.a, args.b), seed=args.seed, resamples=args.resamples, rounds=args.rounds)
    write_atomic(args.out, page(found))
    write_atomic(numbers, json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    print(markdown(found))
    print(f"written: {args.out}, {numbers}")


if __name__ == "__main__":
    run_cli(main)
