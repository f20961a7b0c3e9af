"""APO's own options, through the stock command line.

ms-swift's argument classes are closed to plugins, but `--model_kwargs '{"apo_layout": "rows"}'` (a mapping in YAML)
puts each key, upper-cased, into the environment of every rank. This module reads those variables, refuses what it does
not know and writes the resolved values beside the checkpoints.
"""

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

PREFIX = "APO_"


class Options(NamedTuple):
    """Resolved options of one run.

    `layout`: how one study's N+1 responses reach the decoder. `rows`: N+1 full rows, film and prompt repeated.
        `shared`: one row, film and prompt once. `auto`: shared where it saves enough tokens (`shared_min_ratio`).
    `shared_min_ratio`: under `auto`, rows/shared token ratio of a micro-batch from which sharing pays.
    `chunk_size`: response tokens that go through the language-model head at a time; bounds its peak memory.
    `attention`: how a shared row attends. `mask`: one dense L x L mask. `split`: prefix and responses one by one,
        nothing L x L; off the CPU it compares itself with mask once, and gives way to it (apo/self_check.py). `auto`:
        split, or mask under `--attn_impl eager`.
    `one_look`: run a frozen vision tower once for policy and reference together.
    `cache_dir`: folder of reference log-probs (apo/reference_cache.py); what is in it is read. Empty: no cache.
    `length_normalised`: divide every reward by the tokens of its response (apo/loss.py). Not in the paper.
    `reference_free`: rewards of the policy alone, as if the reference gave every response the same log-probability; it
        is never asked (apo/loss.py). Not in the paper.
    `cache_only`: fill and verify `cache_dir` for all training and validation rows, then stop without training.
    """

    layout: str = "auto"
    shared_min_ratio: float = 1.3
    attention: str = "auto"
    chunk_size: int = 256
    one_look: bool = True
    cache_dir: str = ""
    cache_only: bool = False
    length_normalised: bool = False
    reference_free: bool = False


def _boolean(text: str) -> bool:
    if text.lower() in {"true", "1", "yes"}:
        return True
    if text.lower() in {"false", "0", "no"}:
        return False
    raise ValueError("expected true or false")


def _positive(kind):
    def parse(text: str):
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError("expected a positive number")
        return value

    return parse


def _one_of(*names: str):
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return text

    return parse


PARSERS = {
    "layout": _one_of("auto", "rows", "shared"),
    "shared_min_ratio": _positive(float),
    "attention": _one_of("auto", "mask", "split"),
    "chunk_size": _positive(int),
    "one_look": _boolean,
    "cache_dir": str,
    "cache_only": _boolean,
    "length_normalised": _boolean,
    "reference_free": _boolean,
}


def check_model_kwargs(model_kwargs: Mapping[str, object]) -> Options:
    """Check the `apo_*` keys of a `model_kwargs` mapping before any process starts; what they resolve to.

    Keys without the prefix belong to ms-swift (`max_pixels`, ...) and pass.

    Raises:
        ValueError: an unknown option (with the nearest known name), a value outside its set, or null, which ms-swift
            would pass on as the word "None".
    """
    for key, value in model_kwargs.items():
        if value is None and key.upper().startswith(PREFIX):
            raise ValueError(f"{key} null: leave the option out")
    return resolve({key.upper(): str(value) for key, value in model_kwargs.items() if key.upper().startswith(PREFIX)})


def resolve(environ: Mapping[str, str] | None = None) -> Options:
    """Read the options from `environ` (default: `os.environ`).

    Raises:
        ValueError: an unknown `APO_*` variable (with the nearest known name) or a value outside its set.
    """
    environ = os.environ if environ is None else environ
    values = {}
    for key, text in environ.items():
        if not key.startswith(PREFIX):
            continue
        name = key[len(PREFIX) :].lower()
        if name not in PARSERS:
            near = difflib.get_close_matches(name, PARSERS, n=1)
            hint = (
                f"did you mean apo_{near[0]}?" if near else f"known: {', '.join('apo_' + known for known in PARSERS)}."
            )
            raise ValueError(f"unknown option apo_{name} (model_kwargs or environment {key}); {hint}")
        try:
            values[name] = PARSERS[name](text)
        except ValueError as error:
            raise ValueError(f"apo_{name}={text!r}: {error}") from None
    resolved = Options(**values)
    if resolved.cache_only and not resolved.cache_dir:
        raise ValueError("apo_cache_only=true needs apo_cache_dir, the folder to fill")
    if resolved.reference_free and resolved.cache_dir:
        raise ValueError("apo_reference_free=true asks no reference; leave apo_cache_dir out")
    return resolved


def write_options(options: Options, output_dir: str | os.PathLike, **resolved) -> None:
    """Write the options and the loss settings that were really used to `output_dir`/apo_config.json."""
    path = Path(output_dir) / "apo_config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps({**options._asdict(), **resolved}, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
