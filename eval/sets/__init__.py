"""Labelled sets of films for zero-shot classification: one module a set, read from its published tables.

Each has LABELS (label -> the words that a question uses for it, except where the table decides), OPTIONS (what --set
takes, see `eval.benchmarks.choose`) and read(root, chosen) -> FilmSet. docs/evaluation.md says what each expects where.
"""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from data.errors import Problems, UserError
from data.files import sha256_file
from data.mimic_tables import check_count

PARTIAL = "--set partial=yes"
TABLES = "--set tables=DIR"


class Film(NamedTuple):
    """One film. `patient` is the report, study or film where a set has no patient ids; `labels` are those present."""

    id: str
    patient: str
    study: str
    image: str  # absolute path
    labels: frozenset[str]


class FilmSet(NamedTuple):
    """What a table holds. `phrases`: label -> words; every film has a truth for every label."""

    phrases: dict[str, str]
    films: list[Film]
    fingerprint: dict
    protocol: dict
    notes: list[str]


def find_file(root: Path, names: Iterable[str], told: str | None, remedy: str) -> Path:
    """The table told by --set, or the first of `names` (each may have .gz behind it) that lies in `root`.

    Raises UserError: no such file; `remedy` says where to get it.
    """
    if told:
        path = Path(told)
        if not path.exists():
            raise UserError(f"{path}: no such file; check --set")
        return path
    if not root.is_dir():
        raise UserError(f"{root}: is not a folder; name the folder of the set with --data-root")
    names = list(names)
    for name in names:
        for path in (root / name, root / f"{name}.gz"):
            if path.exists():
                return path
    raise UserError(f"{root}: no {' or '.join(names)}; {remedy}")


def check_table(problems: Problems, what: str, got: int, published: int, partial: bool, empty: str) -> bool:
    """The end of reading a table: refuses what was noted, then an empty table, then a wrong number (`check_count`).

    Args:
        what: the things that are counted, in the plural; empty: what to say of none, with the remedy.
    """
    problems.refuse()
    if not got:
        raise UserError(f"{problems.path}: {empty}")
    return check_count(problems.path, what, got, published, partial, told=PARTIAL)


def first_file(places: list[Path]) -> str:
    """The first place where a file lies; the first of all where there is none, so that a message names it."""
    return str(next((path for path in places if path.is_file()), places[0]))


def film_index(folders: Iterable[Path]) -> dict[str, str]:
    """File name -> absolute path of everything in the folders that exist; the first folder wins."""
    found: dict[str, str] = {}
    for folder in folders:
        if folder.is_dir():
            base = os.path.abspath(folder)
            for entry in os.scandir(base):
                found.setdefault(entry.name, os.path.join(base, entry.name))
    return found


def describe(path: Path, films: list[Film], labels: Iterable[str], **counts: object) -> dict:
    """The fingerprint that all sets share: table, its hash, films, patients, and the positives by label."""
    positives = Counter(label for film in films for label in film.labels)
    return {
        "table": path.name,
        "sha256": sha256_file(path),
        **counts,
        "films": len(films),
        "patients": len({film.patient for film in films}),
        "positives": {label: positives[label] for label in labels},
    }
