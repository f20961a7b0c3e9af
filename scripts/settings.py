"""Command line and YAML of the two training launchers: read, check every name, let flags win over the file.

Values stay strings (or lists of strings), as ms-swift's own command line takes them.
"""

import difflib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from data.errors import Problems, UserError
from data.records import did_you_mean
from scripts.arguments import SEVERAL, Kind, known_arguments

SCRIPTS = {"learn": "SFT-Qwen2.5.sh", "critique": "APO-Qwen2.5.sh"}

# Keys of ours beside ms-swift's, and what they take. The `on_*` keys are the options of data/rows.py for studies that
# give no row.
BOTH: dict[str, Kind] = {
    "image_root": "word",
    "effective_batch_size": "int",
    "check_images": "bool",
    "allow_outside": "bool",
    "overlong": ["error", "drop"],
}
PROJECT_KEYS: dict[str, dict[str, Kind]] = {
    "learn": BOTH | {"share_prefix": "bool"},
    "critique": BOTH
    | {
        "on_missing_consensus": ["error", "drop"],
        "on_missing_negative": ["error", "drop"],
        "on_identical": ["error", "drop-negative"],
    },
}
# By a key that no training has: what a file is that trains nothing by itself, and who reads it.
OTHER_FILES = {
    "teachers": "asks teachers and trains nothing; bash scripts/collect.sh reads it",
    "launcher": "is a row of the ablation matrix; bash scripts/ablate.sh reads it",
}
# What ms-swift's parser takes for true and for false.
TRUE = ("true", "yes", "t", "y", "1")
TRUTH = (*TRUE, "false", "no", "f", "n", "0")
NOUNS = {"bool": "true or false", "int": "a whole number", "float": "a number"}

Value = str | list[str]


@dataclass
class Command:
    """What was typed: the config file, the flags in order, and whether to print only."""

    config: Path | None = None
    flags: dict[str, Value] = field(default_factory=dict)
    dry_run: bool = False


def parse_command(stage: str, argv: list[str]) -> Command:
    """Read `[CONFIG.yaml] [--flag value ...] [--dry-run]`; `--flag=value` and lists (`--flag a b`) too.

    A flag that is true or false may stand alone and means true, as for ms-swift. Of a flag given twice the last one
    counts. Raises UserError for an unknown flag ("did you mean"), for any other without a value, and for a word that
    belongs to no flag.
    """
    command = Command()
    usage = f"write: bash {SCRIPTS[stage]} [CONFIG.yaml] [--flag value ...] [--dry-run]"
    words = list(argv)
    if words and not words[0].startswith("--"):
        command.config = Path(words.pop(0))
        if command.config.suffix not in (".yaml", ".yml"):
            raise UserError(f"{command.config}: is no .yaml file; {usage}")
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            raise UserError(f"{word!r} belongs to no flag; {usage}")
        name, equals, joined = word[2:].partition("=")
        values = [joined] if equals else []
        while words and not words[0].startswith("--"):
            values.append(words.pop(0))
        if name in ("dry-run", "dry_run"):
            if values:
                raise UserError(f"--dry-run takes no value, got {values[0]!r}")
            command.dry_run = True
            continue
        name = name.replace("-", "_")
        kinds = _kinds(stage)
        if name.startswith("no_") and kinds.get(name[3:]) == "bool" and not values:
            name, values = name[3:], ["false"]
        problem = name_problem(stage, name)
        if problem:
            raise UserError(f"unknown flag --{name}; {problem}")
        if not values and kinds[name] != "bool":
            raise UserError(f"--{name} needs a value")
        late = [value for value in values if Path(value).suffix in (".yaml", ".yml")]
        if late and (len(values) > 1 or kinds[name] not in ("word", "word+")):
            raise UserError(f"--{name} {' '.join(values)}: a configuration stands before all flags; {usage}")
        command.flags[name] = "true" if not values else values[0] if len(values) == 1 else values
    return command


def read_config(stage: str, path: Path) -> dict[str, Value]:
    """The settings of a YAML file, without the keys whose value is null.

    Raises UserError "FILE:LINE: ..." for a file that cannot be read or holds no setting (the defaults would be
    ms-swift's, not ours), for one of Collect or of the ablation, and for every key that is unknown or stands twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(f"{path}: cannot be read ({why}); the shipped configurations are in configs/") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        loaded = yaml.safe_load(text)
    except (RecursionError, ValueError) as error:  # ValueError: 2024-13-45 is a date to YAML
        raise UserError(
            f"{path}: not YAML that can be read ({type(error).__name__}); write `key: value` lines"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not YAML ({getattr(error, 'problem', error)})") from None
    if loaded is not None and not isinstance(loaded, dict):
        raise UserError(f"{path}: must hold `key: value` lines")
    for key, what in OTHER_FILES.items():
        if key in (loaded or {}):
            raise UserError(f"{path}: {what}")
    seen: dict[str, int] = {}
    problems = Problems(path)
    for key, _ in root.value if loaded else ():
        line = key.start_mark.line + 1
        name = str(key.value)
        if name in seen:
            problems.add(f"{path}:{line}: key {name} stands twice (line {seen[name]} too); keep one")
            continue
        seen[name] = line
        problem = name_problem(stage, name)
        if problem:
            problems.add(f"{path}:{line}: unknown key {name}; {problem}")
    problems.refuse()
    # A strategy may be the word no, which is false to YAML.
    found = {
        key: "no" if value is False and key.endswith("_strategy") else as_words(value)
        for key, value in (loaded or {}).items()
        if value is not None
    }
    if not found:
        raise UserError(f"{path}: holds no setting; copy one of configs/, or leave the file out for the default one")
    return found


def stage_of(path: Path) -> str:
    """What a configuration is of, by its keys: "collect", "critique", or "learn" where none belongs to the others.

    A file that cannot be read counts as "learn": `read_config` then says what is wrong with it.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        keys = {str(key.value) for key, _ in root.value}
    except (OSError, ValueError, RecursionError, yaml.YAMLError, AttributeError, TypeError):
        return "learn"
    if "teachers" in keys:
        return "collect"
    return "critique" if keys & (_names("critique") - _names("learn")) else "learn"


def merge(config: dict[str, Value], flags: dict[str, Value], source: str) -> dict[str, Value]:
    """Config and flags in one; flags win.

    The effective batch size fixes the accumulation, so the two exclude each other: a flag for one replaces the other
    in the file. Raises UserError when both stand in the same place.
    """
    pair = ("effective_batch_size", "gradient_accumulation_steps")
    for place, settings in ((source, config), ("flags", flags)):
        if all(key in settings for key in pair):
            raise UserError(f"{place}: {pair[0]} and {pair[1]} exclude each other; keep one")
    merged = {**config, **flags}
    if all(key in merged for key in pair):
        del merged[next(key for key in pair if key not in flags)]
    return merged


def name_problem(stage: str, name: str) -> str | None:
    """Why `name` is no setting of this stage, with a remedy; None when it is one."""
    names = _names(stage)
    if name in names:
        return None
    other = "critique" if stage == "learn" else "learn"
    if name in _names(other):
        return f"it belongs to the other stage, bash {SCRIPTS[other]}"
    # ms-swift 3's name, still in many recipes.
    near = ["tuner_type"] if name == "train_type" else difflib.get_close_matches(name, names, n=1)
    if near:
        return f"did you mean {near[0]}?"
    method = "sft" if stage == "learn" else "rlhf"
    return f"known are the arguments of `swift {method} --help` and {', '.join(PROJECT_KEYS[stage])}"


def value_problem(stage: str, name: str, value: Value) -> str | None:
    """Why ms-swift would not take `value` for a known setting, with a remedy; None when it would."""
    kind, values = _kinds(stage)[name], as_list(value)
    if not values:
        return "needs a value; leave it out otherwise"
    if isinstance(kind, list):
        wrong = [word for word in values if word not in kind]
        remedy = f"must be {' or '.join(kind)}" if len(kind) < 3 else wrong and did_you_mean(wrong[0], kind)
    else:
        wrong = [word for word in values if not _is(kind.removesuffix("+"), word)]
        remedy = f"must be {NOUNS.get(kind.removesuffix('+'))}"
    if wrong:
        return remedy
    return None if len(values) == 1 or name in SEVERAL or str(kind).endswith("+") else "takes one value"


def _is(kind: str, word: str) -> bool:
    if kind == "bool":
        return word.lower() in TRUTH
    try:
        {"int": int, "float": float}.get(kind, str)(word)
    except ValueError:
        return False
    return True


def as_words(value: object) -> Value:
    """A YAML value as the words of a command line: true/false, JSON for a mapping, a list for a list."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, list):
        return [str(as_words(item)) for item in value]
    return str(value)


def as_list(value: Value | None) -> list[str]:
    """[] for None, a list of one for a single value."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def as_bool(settings: dict[str, Value], name: str, default: bool = False) -> bool:
    """A setting as a bool; UserError when it is neither true nor false."""
    value = settings.get(name)
    if value is None:
        return default
    if str(value).lower() not in TRUTH:
        raise UserError(f"{name} {value}: must be true or false")
    return str(value).lower() in TRUE


def as_count(settings: dict[str, Value], name: str, default: int) -> int:
    """A setting as a whole number of at least 1; UserError otherwise."""
    value = settings.get(name, str(default))
    if isinstance(value, list) or not re.fullmatch(r"0*[1-9][0-9]*", value):
        raise UserError(f"{name} {value}: must be a whole number of at least 1")
    return int(value)


def _kinds(stage: str) -> dict[str, Kind]:
    return {**known_arguments(stage), **PROJECT_KEYS[stage]}


def _names(stage: str) -> frozenset[str]:
    return frozenset(_kinds(stage))


def model_kwargs(settings: dict[str, Value]) -> dict:
    """ms-swift's `model_kwargs`, which it puts into the environment; UserError unless they are a JSON object."""
    try:
        given = json.loads(str(settings.get("model_kwargs", "{}")))
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise UserError("""model_kwargs: must be a JSON object, such as '{"max_pixels": 401408}'""")
    return given
