"""Which values the settings of a training run may take, checked before anything is loaded.

ms-swift's parser refuses a value of another kind, but only minutes later, after the data was read and torch loaded. It
and torch take most impossible numbers without a word (a learning rate of NaN trains into nothing) or fail on them when
the model is loaded.
"""

import math
import re
from pathlib import Path
from typing import NamedTuple

from data.errors import Problems
from scripts.arguments import PLUGGABLE
from scripts.settings import Value, as_list, value_problem


class Range(NamedTuple):
    """Numbers from `low` (or, if `above`, from just above it) to `high` (or, if `below`, to just below it)."""

    low: float
    high: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False

    def __str__(self) -> str:
        start = f"{'above' if self.above else 'of at least'} {self.low:g}"
        end = "" if self.high == math.inf else f" and {'below' if self.below else 'at most'} {self.high:.10g}"
        return f"a {'whole ' if self.whole else ''}number {start}{end}"


COUNT, FROM_ZERO, SEED = Range(1, whole=True), Range(0, whole=True), Range(0, 2**32 - 1, whole=True)  # numpy's seeds
POSITIVE, NOT_NEGATIVE, PART = Range(0, above=True), Range(0), Range(0, 1)

RANGES = {
    "learning_rate": POSITIVE,
    "vit_lr": POSITIVE,
    "aligner_lr": POSITIVE,
    "beta": POSITIVE,
    "rpo_alpha": NOT_NEGATIVE,
    "label_smoothing": Range(0, 0.5, below=True),
    "num_train_epochs": POSITIVE,
    "max_length": COUNT,
    "max_pixels": Range(4 * 28 * 28, whole=True),  # the image processor never makes fewer than 4 tokens of a film
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "effective_batch_size": COUNT,
    "lora_rank": COUNT,
    "lora_alpha": POSITIVE,
    "lora_dropout": PART,
    "warmup_ratio": PART,
    "warmup_steps": FROM_ZERO,
    "weight_decay": NOT_NEGATIVE,
    "max_grad_norm": NOT_NEGATIVE,
    "adam_beta1": PART,
    "adam_beta2": PART,
    "adam_epsilon": POSITIVE,
    "save_steps": POSITIVE,
    "eval_steps": POSITIVE,
    "logging_steps": POSITIVE,
    "save_total_limit": COUNT,
    "dataset_num_proc": COUNT,
    "dataloader_num_workers": FROM_ZERO,
    "seed": SEED,
    "data_seed": SEED,
}


def check_values(stage: str, settings: dict[str, Value], flags: dict[str, Value], config: Path) -> None:
    """Raise UserError that lists every number outside its range and every value of another kind than its setting's.

    Args:
        flags, config: where settings come from.
    """
    problems = Problems(config)
    open_ended = PLUGGABLE if settings.get("external_plugins") or settings.get("custom_register_path") else ()
    for name, value in settings.items():
        where = f"--{name}" if name in flags else f"{config}: {name}"
        where = " ".join([where, *as_list(value)])
        if name in RANGES and not _fits(value, RANGES[name]):
            problems.add(f"{where}: must be {RANGES[name]}")
        elif name == "max_steps" and value != "-1" and not _fits(value, COUNT):
            problems.add(f"{where}: must be {COUNT}, or -1 for as many as num_train_epochs says")
        elif name not in open_ended and (problem := value_problem(stage, name, value)):
            problems.add(f"{where}: {problem}")
    problems.refuse()


def _fits(value: Value, allowed: Range) -> bool:
    if allowed.whole and not (isinstance(value, str) and re.fullmatch(r"\+?[0-9]+", value)):
        return False
    try:
        number = float(value)
    except (TypeError, ValueError):  # a list, or no number
        return False
    if not math.isfinite(number) or number < allowed.low or number > allowed.high:
        return False
    return not (allowed.above and number == allowed.low) and not (allowed.below and number == allowed.high)
