"""What every benchmark is made of: items with their truth, and the benchmark that holds them.

A benchmark module has `load(name, root, *, seed, limit, options) -> Benchmark` and
`score(benchmark, answers, *, seed, resamples) -> {"rows", "per_item", "notes"}`; docs/evaluation.md explains them.
"""

from dataclasses import dataclass

MAJORITY = "majority class"  # the row of always giving the commonest answer
CONSENSUS = "consensus"  # the row of the texts that Compare wrote


@dataclass(frozen=True)
class Item:
    """One question to the student. Whether its films are there is looked up by `eval.run`, and only when it asks."""

    id: str  # unique in the benchmark
    patient: str  # unit of bootstrap and leak checks; never "": a set without patient ids gives the item id and a note
    study: str  # study id, or ""
    images: tuple[str, ...]  # absolute paths, oldest first; () for a row without images
    prompt: str  # with one <image> tag an image where their place matters, or without any: films then come first
    truth: dict  # JSON object, the benchmark's own


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as it was built from its tables."""

    name: str
    kind: str  # "generate": answers are texts; "yesno": answers are {"p_yes": float, "mass": float}
    items: tuple[Item, ...]
    fingerprint: dict  # counts and hashes of the tables it was built from
    protocol: dict  # every choice: labels, views, ground-truth rule, cleaning, seed ...
    notes: tuple[str, ...]  # counted exclusions and caveats, printed at the foot of the tables
    others: tuple[str, ...] = ()  # names that rows not of the answers (may) have; no checkpoint takes one
