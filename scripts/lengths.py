"""Token lengths of ms-swift rows for Qwen2.5-VL, without torch: over-long rows are named before a model is loaded.

ms-swift encodes films and texts while it trains, so a row over `max_length` would stop a run in the middle.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tokenizers import Tokenizer

from data.errors import Problems, UserError
from data.files import StrPath, atomic_open, dump_line, read_jsonl
from data.images import decode_problem, film_settings
from data.records import IMAGE_TAG

# Pixels of a film that become one token: 14 x 14 patches, merged 2 x 2.
SIDE = 28
FEWEST, MOST = 4, 16384  # tokens of a film in qwen-vl-utils 0.0.14, where nothing else is set
SYSTEM = "You are a helpful assistant."
# ms-swift trains on the end of the answer and the line break after it.
END = 2
FILM = "<|vision_start|><|image_pad|><|vision_end|>"


class FilmLimits(NamedTuple):
    """What a film is scaled to: at most `max_pixels` by ms-swift, from `fewest` to `most` tokens by qwen-vl-utils."""

    max_pixels: int | None = None
    fewest: int = FEWEST
    most: int = MOST


ANY = FilmLimits()


def film_limits(max_pixels: int | None, model_kwargs: Mapping[str, object]) -> FilmLimits:
    """The limits by the flag `--max_pixels` and by the film sizes in `model_kwargs` (`data.images.FILM_KEYS`).

    Raises UserError where no film could be of such a size.
    """
    try:
        given = film_settings(model_kwargs)
    except ValueError as error:
        raise UserError(f"model_kwargs: {error}") from None
    fewest, most = (
        given.get(f"image_{end}_token_num", given[f"{end}_pixels"] // SIDE**2 if f"{end}_pixels" in given else default)
        for end, default in (("min", FEWEST), ("max", MOST))
    )
    if fewest > most:
        raise UserError(f"model_kwargs: a film of at least {fewest} and at most {most} tokens; mend {given}")
    return FilmLimits(max_pixels, fewest, most)


def film_tokens(width: int, height: int, limits: FilmLimits = ANY) -> int:
    """Tokens of a film of this size: ms-swift scales it to max_pixels, qwen-vl-utils rounds to multiples of 28, which
    may come out above max_pixels."""
    max_pixels, fewest, most = limits
    if max_pixels and width * height > max_pixels:
        scaled = math.sqrt(max_pixels / (width / height))
        width, height = int(scaled * (width / height)), int(scaled)
    rows, columns = max(1, round(height / SIDE)), max(1, round(width / SIDE))
    if rows * columns > most:
        shrink = math.sqrt(height * width / (most * SIDE**2))
        rows, columns = math.floor(height / shrink / SIDE), math.floor(width / shrink / SIDE)
    elif rows * columns < fewest:
        grow = math.sqrt(fewest * SIDE**2 / (height * width))
        rows, columns = math.ceil(height * grow / SIDE), math.ceil(width * grow / SIDE)
    return rows * columns


def check_lengths(path: StrPath, tokenizer: Path, max_length: int, limits: FilmLimits = ANY) -> int:
    """The longest row of a checked rows file, in tokens: prompt, films and one answer (each negative counts alone).

    Args:
        tokenizer: the model's tokenizer.json.

    Raises UserError that lists the first ten rows over `max_length` as "FILE:LINE: ...".
    """
    problems = Problems(path)
    longest, over = _measure(path, tokenizer, max_length, limits)
    for line, length in over.items():
        problems.add(f"{path}:{line}: {too_long(length, max_length)}")
    problems.refuse()
    return longest


class Kept(NamedTuple):
    """How many `rows` fit, tokens of the `longest` of them, and what was `dropped`: counted, the first ten by line."""

    rows: int
    longest: int
    dropped: Problems


def keep_fitting(path: StrPath, target: StrPath, tokenizer: Path, max_length: int, limits: FilmLimits = ANY) -> Kept:
    """Write the rows of `path` that are not over `max_length` to `target`, if there are any others; else write nothing.

    Raises UserError when no row fits.
    """
    dropped = Problems(path)
    longest, over = _measure(path, tokenizer, max_length, limits)
    for line, length in over.items():
        dropped.add(f"line {line}: {length.longest} tokens")
    rows = sum(1 for _ in read_jsonl(path)) - len(over)
    if over and not rows:
        raise UserError(
            f"{path}: every one of its {len(over)} rows is over max_length {max_length}; raise --max_length or lower "
            "--max_pixels"
        )
    if over:
        with atomic_open(target) as file:
            file.writelines(dump_line(row) for line, row in read_jsonl(path) if line not in over)
    return Kept(rows, longest, dropped)


def _measure(path, tokenizer, max_length, limits) -> tuple[int, dict[int, "Length"]]:
    """Tokens of the longest row that fits, and the lengths of those that do not by line."""
    longest, over = 0, {}
    for line, length in row_lengths(read_jsonl(path), tokenizer, limits):
        if length.longest > max_length:
            over[line] = length
        else:
            longest = max(longest, length.longest)
    return longest, over


class Length(NamedTuple):
    """Tokens of a row: prompt with its films, each answer (positive first, then the negatives)."""

    prompt: int
    answers: list[int]

    @property
    def longest(self) -> int:
        return self.prompt + max(self.answers)


def too_long(length: Length, max_length: int) -> str:
    return (
        f"{length.longest} tokens (film and prompt {length.prompt}, longest answer {max(length.answers)}) are "
        f"over max_length {max_length}; raise --max_length, lower --max_pixels, or leave such rows out: --overlong drop"
    )


def row_lengths(
    rows: Iterable[tuple[int, dict]], tokenizer: Path, limits: FilmLimits = ANY
) -> Iterator[tuple[int, Length]]:
    """Yield (line, Length) of checked rows given as (line, row); for the arguments see `check_lengths`."""
    try:
        encoder = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # tokenizers raises a bare Exception
        raise UserError(f"{tokenizer}: no tokenizer that can be read ({type(error).__name__}); copy it again") from None
    sizes: dict[str, int] = {}
    rows = iter(rows)
    while chunk := list(islice(rows, 512)):
        prompts = [_prompt(row) for _, row in chunk]
        answers = [answers_of(row) for _, row in chunk]
        flat = [text for texts in answers for text in texts]
        encoded = [len(one) for one in encoder.encode_batch_fast([*prompts, *flat], add_special_tokens=False)]
        counts = iter(encoded[len(prompts) :])
        for (line, row), prompt, texts in zip(chunk, encoded, answers, strict=False):
            try:
                films = sum(_film(image, limits, sizes) - 1 for image in _images(row))
            except UserError as error:
                raise UserError(f"row {line}: {error}") from None
            yield line, Length(prompt + films, [next(counts) + END for _ in texts])


def _prompt(row: dict) -> str:
    turns = row["messages"][:-1]
    if turns and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": row.get("system") or SYSTEM}, *turns]
    text = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
    return text.replace(IMAGE_TAG, FILM) + "<|im_start|>assistant\n"


def answers_of(row: dict) -> list[str]:
    """Every answer of a checked row: the positive or first one, then all others."""
    answers = [row["messages"][-1]["content"]]
    for name in ("positive_messages", "negative_messages"):
        answers += [turns[-1]["content"] for turns in row.get(name) or []]
    if row.get("rejected_response"):
        answers.append(row["rejected_response"])
    if row.get("rejected_messages"):
        answers.append(row["rejected_messages"][-1]["content"])
    return answers


def _images(row: dict) -> list[str]:
    images = row.get("images") or []
    images = [images] if isinstance(images, str) else images
    return [image["path"] if isinstance(image, dict) else image for image in images]


def _film(image: str, limits: FilmLimits, sizes: dict[str, int]) -> int:
    if image not in sizes:
        path = os.path.join(os.environ.get("ROOT_IMAGE_DIR", ""), image)
        try:
            with Image.open(path) as film:
                sizes[image] = film_tokens(*film.size, limits)
        except Exception:  # Pillow raises OSError, DecompressionBombError, SyntaxError and more
            problem = decode_problem(path) or "cannot be opened; check it"
            raise UserError(f"image {path} {problem}") from None
    return sizes[image]
