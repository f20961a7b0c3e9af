"""A row of the ablation matrix: one YAML of configs/ablation/ that says what differs from the phantom configs.

question:  what the row tests, one line for the table
group:     the block of the table it stands in (GROUPS)
launcher:  apo, sft, none (the learnt student as it is, or another row's as in best_of), or compare (no student: the
           consensus itself is scored)
consensus: strategy of scripts/compare.sh
variant:   options of data.variants, {negatives: first-3, weights: error, learn_consensus: true, films: 300}
settings:  over the keys of configs/apo_phantom.yaml or configs/sft_phantom.yaml; `as_critique`: the former's value,
           `num_train_epochs: equal_flops` as many as cost what the critique with all trajectories costs
           (scripts/ablation_flops.py)
after:     another row: this one starts from its trained student, which also speaks in the new consensus
best_of:   another row, whose checkpoint of the lowest loss on the validation films answers instead of its last one
student:   taught: Learn starts from a student that was first taught to aggregate (scripts/aggregation.py);
           plain: Learn reads the trajectories rewritten to the form of the consensus;
           seeing: Learn starts from a student that was first taught to see (scripts/sight.py)
labels:    how many training films' true findings the consensus is told, to turn findings round; without it none
value:     number on the axis of the group's figure
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from apo.consensus import NEEDS_MODEL, STRATEGIES, TAKES_LABELS
from data.errors import UserError
from data.records import did_you_mean
from data.variants import MODES
from scripts.plan import PHANTOM_CONFIGS, ROOT, STAGES
from scripts.settings import as_words, name_problem, read_config

FOLDER = ROOT / "configs" / "ablation"
LAUNCHERS = ("apo", "sft", "none", "compare")
GROUPS = ("main", "objective", "negatives", "consensus", "beta", "learning rate", "N", "rounds", "sight")
KEYS = ("question", "group", "launcher", "consensus", "labels", "variant", "settings", "after", "best_of", "student")
KEYS += ("value",)
VARIANT = ("negatives", "weights", "learn_consensus", "films")
STUDENTS = ("taught", "plain", "seeing")
# Over configs/sft_phantom.yaml, for what a student is taught first; those of `taught` are also those of its Learn.
LESSONS = {
    "taught": {"max_length": "2048"},  # a prompt with seven readings in it
    # Plain rows. In these 1,880 steps the loss of unseen films fell from 1.12 nats a token (one epoch) to 0.37.
    "seeing": {
        "share_prefix": "false",
        "per_device_train_batch_size": "4",
        "effective_batch_size": "8",
        "num_train_epochs": "10",
    },
}
EQUAL_FLOPS = "equal_flops"
COSTS = ("num_train_epochs", "max_pixels")  # of the critique's config: what EQUAL_FLOPS is computed from
AS_CRITIQUE = "as_critique"  # in settings: the value that configs/apo_phantom.yaml has
# Greedy answers of at most so many tokens, as in scripts/quickstart.sh.
ANSWER = ("--max-new-tokens", "160", "--batch-size", "50")
# What scripts/ablate.py sets itself: paths, seeds, and the cache that all rows of a world and seed share.
OURS = ("model", "dataset", "val_dataset", "image_root", "output_dir", "seed", "data_seed", "resume_from_checkpoint")


class Row(NamedTuple):
    """One row; `settings` and `variant` are what its YAML says over the defaults."""

    name: str
    question: str
    group: str
    launcher: str
    consensus: str
    variant: dict[str, Any]
    settings: dict[str, Any]
    after: str | None
    best_of: str | None
    student: str | None
    value: float | None
    labels: int | None = None


class Sizes(NamedTuple):
    """Films a split, and the smoke run's limit of optimiser steps (None: as many as the configs say)."""

    train: int = 1500
    validate: int = 60
    test: int = 400
    steps: int | None = None


def _no_such_row(path: Path, others: Iterable[str] = ()) -> UserError:
    """What to raise for a row that is not there: says which of configs/ablation/ or of `others` may be meant."""
    shipped = {one.stem: one for one in FOLDER.glob("*.yaml")}
    if path.stem in shipped:
        meant = f"did you mean {shipped[path.stem].relative_to(ROOT)}"
    else:
        meant = did_you_mean(path.stem, sorted({*others, *shipped}))
    return UserError(f"{path}: no such row; {meant}")


def read_row(path: Path) -> Row:
    """Read and check one row. Raises UserError that names the file, the key and the remedy."""
    if not path.exists():
        raise _no_such_row(path)
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"{path}: not readable as YAML ({type(error).__name__}); see configs/ablation/pl_nll.yaml"
        ) from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: must hold `key: value` lines; see configs/ablation/pl_nll.yaml")
    for key in loaded:
        if key not in KEYS:
            raise UserError(f"{path}: unknown key {key}; {did_you_mean(key, KEYS)}")
    if not re.fullmatch(r"[a-z0-9_.]+", path.stem):
        raise UserError(f"{path}: a row's name is its file's: small letters, digits, dots and _")
    row = Row(
        path.stem,
        str(loaded.get("question") or ""),
        _choice(path, loaded, "group", GROUPS),
        _choice(path, loaded, "launcher", LAUNCHERS),
        _choice(path, loaded, "consensus", tuple(STRATEGIES)),
        _mapping(path, loaded, "variant"),
        _mapping(path, loaded, "settings"),
        loaded.get("after"),
        loaded.get("best_of"),
        loaded.get("student"),
        loaded.get("value"),
        loaded.get("labels"),
    )
    if not row.question:
        raise UserError(f"{path}: no question; say in one line what the row tests")
    _check(path, row)
    return row._replace(settings=_as_critique(path, row.settings))


def _as_critique(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    if AS_CRITIQUE not in settings.values():
        return settings
    critique = read_config("critique", ROOT / PHANTOM_CONFIGS["critique"])
    missing = [key for key, value in settings.items() if value == AS_CRITIQUE and key not in critique]
    if missing:
        raise UserError(f"{path}: settings: {missing[0]} as_critique; {PHANTOM_CONFIGS['critique']} has no such key")
    return {key: critique[key] if value == AS_CRITIQUE else value for key, value in settings.items()}


def _choice(path: Path, loaded: dict, key: str, options: Sequence[str]) -> str:
    if loaded.get(key) not in options:
        raise UserError(f"{path}: {key} is {loaded.get(key)!r}; {did_you_mean(loaded.get(key), options)}")
    return loaded[key]


def _mapping(path: Path, loaded: dict, key: str) -> dict[str, Any]:
    value = loaded.get(key) or {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: {key} must hold `key: value` lines")
    return value


def _check(path: Path, row: Row) -> None:
    for key in row.variant:
        if key not in VARIANT:
            raise UserError(f"{path}: variant: unknown key {key}; {did_you_mean(key, VARIANT)}")
    mode = str(row.variant.get("negatives", "all"))
    if mode not in MODES and not re.fullmatch(r"first-[1-9][0-9]*", mode):
        raise UserError(f"{path}: variant: negatives {mode}; {did_you_mean(mode, MODES)}")
    films = row.variant.get("films", 1)
    if type(films) is not int or films < 1:
        raise UserError(f"{path}: variant: films {films!r}; write a number from 1")
    if row.labels is not None:
        if type(row.labels) is not int or row.labels < 1:
            raise UserError(f"{path}: labels {row.labels!r}; write a number from 1, or leave it out")
        if row.consensus not in TAKES_LABELS:
            raise UserError(f"{path}: labels: a consensus of {row.consensus} takes none; leave it out")
    if row.launcher not in STAGES:
        if row.settings or row.variant or row.after:
            raise UserError(f"{path}: launcher {row.launcher} trains nothing; take settings, variant and after out")
        if row.launcher == "compare" and (row.student or row.best_of or row.consensus in NEEDS_MODEL):
            raise UserError(
                f"{path}: launcher compare has no student; take student and best_of out, and no consensus of "
                + ", ".join(NEEDS_MODEL)
            )
        return
    if row.best_of:
        raise UserError(f"{path}: best_of takes another row's student; write launcher none, or take it out")
    stage = STAGES[row.launcher]
    for name in row.settings:
        problem = "it is set by scripts/ablate.py" if name in OURS else name_problem(stage, str(name))
        if problem:
            raise UserError(f"{path}: settings: {name}; {problem}")
    if row.student not in (None, *STUDENTS):
        raise UserError(f"{path}: student is {row.student!r}; write {', '.join(STUDENTS)}, or leave it out")
    if not isinstance(row.value, (int, float, type(None))):
        raise UserError(f"{path}: value {row.value!r}: must be a number")


def read_rows(paths: Sequence[Path] = ()) -> dict[str, Row]:
    """Rows by name, of the given files or of all in configs/ablation/.

    Raises UserError for a row that cannot be read, or two of one name.
    """
    rows: dict[str, Row] = {}
    for path in paths or sorted(FOLDER.glob("*.yaml")):
        row = read_row(Path(path))
        if row.name in rows:
            raise UserError(f"{path}: a row {row.name} is given already; rename one")
        rows[row.name] = row
    if not rows:
        raise UserError(f"{FOLDER}: holds no row")
    return rows


def find_row(name: str, rows: dict[str, Row]) -> Row:
    """The row of an `after` or `best_of`: among the given ones, or in configs/ablation/. UserError without one."""
    path = FOLDER / f"{name}.yaml"
    if name not in rows and not path.is_file():
        raise _no_such_row(path, rows)
    return rows.get(name) or read_row(path)


def before(row: Row, rows: dict[str, Row]) -> list[Row]:
    """The rows that `row` starts from, first to last."""
    found: list[Row] = []
    while name := row.after or row.best_of:
        key, its = "after" if row.after else "best_of", row
        try:
            row = find_row(name, rows)
        except UserError as error:
            raise UserError(f"configs/ablation/{row.name}.yaml: {key} {name}: {error}") from None
        if row in found:
            raise UserError(f"configs/ablation/{row.name}.yaml: {key} comes back to itself")
        if row.launcher not in STAGES:
            raise UserError(f"configs/ablation/{row.name}.yaml: trains nothing; name a row that does in {key}")
        # What the two share would come in another order, and all that was trained would be trained anew.
        for what in ("student", "consensus", "labels") if key == "best_of" else ("student",):
            if getattr(its, what) != getattr(row, what):
                raise UserError(
                    f"configs/ablation/{its.name}.yaml: {what} is {getattr(its, what)}, that of {key} {name} is "
                    f"{getattr(row, what)}; write the same"
                )
        found.insert(0, row)
    return found


def base_config(row: Row) -> Path:
    """The phantom config that a row's settings lie over, relative to the root."""
    return Path(PHANTOM_CONFIGS[STAGES[row.launcher]])


def merged(row: Row) -> dict[str, Any]:
    """Settings of a row's training over those of its phantom config, as words, without paths and seeds."""
    if row.launcher not in STAGES:
        return {}
    base = read_config(STAGES[row.launcher], ROOT / base_config(row))
    return {k: v for k, v in (base | words(row.settings)).items() if k not in OURS}


def words(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: as_words(value) for key, value in settings.items()}


def told(row: Row) -> dict[str, int]:
    """What a row's consensus knows of the truth; a key of its own, so that other rows keep their hash."""
    return {"labels": row.labels} if row.labels else {}


def resolved(row: Row, sizes: Sizes, rows: dict[str, Row]) -> dict[str, Any]:
    """All that decides a row's numbers besides world, seed and code, as JSON."""
    if row.launcher == "compare":
        films = {"films": sizes._asdict(), "student": None, "consensus": row.consensus}
        return films | told(row) | {"variant": {}, "launcher": row.launcher, "training": {}}
    learn = read_config("learn", ROOT / PHANTOM_CONFIGS["learn"])
    # Keys of their own, so that other rows keep their hash.
    own: dict[str, Any] = told(row) | ({"best_of": row.best_of} if row.best_of else {})
    if row.student in LESSONS:
        own["lessons"] = LESSONS[row.student]
    if row.settings.get("num_train_epochs") == EQUAL_FLOPS:
        critique = read_config("critique", ROOT / PHANTOM_CONFIGS["critique"])
        own["equal_to"] = {key: critique[key] for key in COSTS}
    return {
        **own,
        "films": sizes._asdict(),
        "learn": {k: v for k, v in learn.items() if k not in OURS},
        "student": row.student,
        "consensus": row.consensus,
        "answer": list(ANSWER),
        "variant": row.variant,
        "launcher": row.launcher,
        "training": merged(row),
        "after": [resolved(one._replace(after=None, best_of=None), sizes, rows) for one in before(row, rows)],
    }


def digest(config: dict[str, Any]) -> str:
    """Hash of a resolved config: two rows of one hash, world and seed are the same run."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
