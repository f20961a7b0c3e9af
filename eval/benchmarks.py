"""Which benchmarks there are, which module of `eval/` holds each, and how their --set options are read. Needs no torch.

A module's `score` returns rows. A row that does not come from the answers (majority class, constant report) carries
`"baseline": True`; the others are those of the answers, and are repeated as "..., no image" for answers without films.
A metric called "group/column" is printed in the table of its group.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import numpy as np

from data.errors import UserError
from data.records import did_you_mean
from eval import statistics

BENCHMARKS = {
    "ms-cxr-t-progression": "eval.progression",
    "ms-cxr-t-presence": "eval.presence_films",
    "ms-cxr-t-similarity": "eval.similarity",
    "phantom-progression": "eval.progression",
    "phantom-presence": "eval.presence_films",
    "open-i": "eval.zeroshot",
    "chestx-ray14": "eval.zeroshot",
    "chexpert-5": "eval.zeroshot",
    "chexpert-14": "eval.zeroshot",
    "chestx-det10": "eval.zeroshot",
    "padchest": "eval.zeroshot",
    "padchest20": "eval.zeroshot",
    "vindr-cxr": "eval.zeroshot",
    "phantom-zeroshot": "eval.zeroshot",
    "mimic-report-r2gen": "eval.reports",
    "mimic-report-findings": "eval.reports",
    "phantom-reports": "eval.reports",
    "cxr-max-held-out": "eval.held_out",
    "phantom-held-out": "eval.held_out",
}


def module_of(name: str) -> ModuleType:
    """The module that loads and scores benchmark `name`; UserError for a name that is none."""
    if name not in BENCHMARKS:
        raise UserError(f"--benchmark {name}: no such benchmark; {did_you_mean(name, sorted(BENCHMARKS))}")
    return importlib.import_module(BENCHMARKS[name])


def choose(name: str, options: Mapping[str, str], known: Mapping[str, Sequence[str] | str | None]) -> dict:
    """The options of a benchmark with their defaults filled in.

    Args:
        name: the benchmark, for messages.
        options: what --set gave.
        known: option -> its choices, the default first; a string is a free option's default, None one without default.

    Raises UserError for an option that the benchmark does not have, or a value that is none of the choices.
    """
    for key in options:
        if key not in known:
            hint = did_you_mean(key, sorted(known)) if known else "it has none"
            raise UserError(f"--set {key}={options[key]}: {name} has no such option; {hint}")
    chosen = {}
    for key, values in known.items():
        free = values is None or isinstance(values, str)
        chosen[key] = options.get(key, values if free else values[0])
        if not free and chosen[key] not in values:
            raise UserError(f"--set {key}={chosen[key]}: {did_you_mean(chosen[key], values)}")
    return chosen


def measure(
    numbers: Callable[[np.ndarray], Mapping[str, float]],
    patients: Sequence[str],
    sizes: Mapping[str, int] | None = None,
    *,
    seed: int,
    resamples: int,
) -> dict[str, dict]:
    """The metrics of a row with their bootstrap intervals by patient.

    Args:
        numbers: maps counts [n] (how often each item is drawn) to metric -> number, NaN where it is not defined.
        patients: patient of each of the n items.
        sizes: metric -> how many items it is computed from, where that is not n.

    Returns metric -> {"value", "n", "low", "high", "skipped_resamples"}; None for a number that is not defined.
    """
    values = numbers(np.ones(len(patients), int))
    drawn = statistics.bootstrap(
        patients, lambda counts: list(numbers(counts).values()), resamples=resamples, seed=seed
    )
    out = {}
    for (name, value), interval in zip(values.items(), drawn, strict=True):
        n = (sizes or {}).get(name, len(patients))
        if np.isnan(value):
            interval |= {"low": None, "high": None}
        out[name] = {"value": None if np.isnan(value) else float(value), "n": int(n), **interval}
    return out
