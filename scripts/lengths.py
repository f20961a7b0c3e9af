"""Token lengths of ms-swift rows for Qwen2.5-VL, without torch: over-long rows are named before a model is loaded.

ms-swift encodes films and texts while it trains, so a row over `max_length` would stop a run in the middle.
"""

import math
import os
from itertools import islice
from pathlib import Path

from PIL import Image
from tokenizers import Tokenizer

from data.errors import Problems
from data.files import StrPath, read_jsonl
from data.records import IMAGE_TAG

# Pixels of a film that become one token: 14 x 14 patches, merged 2 x 2.
SIDE = 28
FEWEST, MOST = 4, 16384  # tokens of a film in qwen-vl-utils 0.0.14
SYSTEM = "You are a helpful assistant."
# ms-swift trains on the end of the answer and the line break after it.
END = 2
FILM = "<|vision_start|><|image_pad|><|vision_end|>"


def film_tokens(width: int, height: int, max_pixels: int | None = None) -> int:
    """Tokens of a film of this size: ms-swift scales it to `max_pixels`, qwen-vl-utils rounds to multiples of 28."""
    if max_pixels and width * height > max_pixels:
        scaled = math.sqrt(max_pixels / (width / height))
        width, height = int(scaled * (width / height)), int(scaled)
    rows, columns = max(1, round(height / SIDE)), max(1, round(width / SIDE))
    if rows * columns > MOST:
        shrink = math.sqrt(height * width / (MOST * SIDE**2))
        rows, columns = math.floor(height / shrink / SIDE), math.floor(width / shrink / SIDE)
    elif rows * columns < FEWEST:
        grow = math.sqrt(FEWEST * SIDE**2 / (height * width))
        rows, columns = math.ceil(height * grow / SIDE), math.ceil(width * grow / SIDE)
    return rows * columns


def check_lengths(path: StrPath, tokenizer: Path, max_length: int, max_pixels: int | None = None) -> int:
    """The longest row of a checked rows file, in tokens: prompt, films and one answer (each negative counts alone).

    Args:
        tokenizer: the model's tokenizer.json.

    Raises UserError that lists the first ten rows over `max_length` as "FILE:LINE: ...".
    """
    encoder = Tokenizer.from_file(str(tokenizer))
    problems = Problems(path)
    sizes: dict[str, int] = {}
    longest = 0
    rows = read_jsonl(path)
    while chunk := list(islice(rows, 512)):
        prompts = [_prompt(row) for _, row in chunk]
        answers = [_answers(row) for _, row in chunk]
        flat = [text for texts in answers for text in texts]
        encoded = [len(one) for one in encoder.encode_batch_fast([*prompts, *flat], add_special_tokens=False)]
        counts = iter(encoded[len(prompts) :])
        for (line, row), prompt, texts in zip(chunk, encoded, answers, strict=False):
            films = sum(_film(image, max_pixels, sizes) - 1 for image in _images(row))
            answer = max(next(counts) for _ in texts) + END
            total = prompt + films + answer
            longest = max(longest, total)
            if total > max_length:
                problems.add(
                    f"{path}:{line}: {total} tokens (film and prompt {prompt + films}, longest answer {answer}) are "
                    f"over max_length {max_length}; raise --max_length, lower --max_pixels, or take the row out"
                )
    problems.refuse()
    return longest


def _prompt(row: dict) -> str:
    turns = row["messages"][:-1]
    if turns and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": row.get("system") or SYSTEM}, *turns]
    text = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
    return text.replace(IMAGE_TAG, FILM) + "<|im_start|>assistant\n"


def _answers(row: dict) -> list[str]:
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


def _film(image: str, max_pixels: int | None, sizes: dict[str, int]) -> int:
    if image not in sizes:
        with Image.open(os.path.join(os.environ.get("ROOT_IMAGE_DIR", ""), image)) as film:
            sizes[image] = film_tokens(*film.size, max_pixels)
    return sizes[image]
