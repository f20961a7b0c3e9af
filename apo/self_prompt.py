"""The prompt of the `self` strategy: the student reads film, prompt and all trajectories, and settles them."""

import random
import re
from collections.abc import Callable
from typing import NamedTuple

INSTRUCTION = (
    "Below are {n} independent readings of this examination. They may contradict each other, and any of them may be "
    "wrong. Look at the image yourself and write one reading that is consistent in itself: keep what several readings "
    "support and the image shows, drop what has no support, and settle contradictions, sides included. Do not mention "
    "the readings. Write only the final reading."
)


class SelfPrompt(NamedTuple):
    text: str  # the user turn, with the study's own <image> tags and no others
    order: list[str]  # teachers in the order of the readings
    dropped: list[str]  # teachers whose readings were left out for length


def self_prompt(
    study: dict,
    rng: random.Random,
    *,
    length: Callable[[str], int] | None = None,
    limit: int | None = None,
) -> SelfPrompt | None:
    """The prompt of the `self` strategy: the study's prompt, an instruction, and all ok trajectories.

    Teachers are not named (their names are also struck out of the texts) and stand in an order shuffled by `rng`, so
    that no teacher has a place.

    Args:
        length, limit: `length(text)` tokens, image tokens included, must be at most `limit`. A longer prompt loses
            whole readings from the end of the shuffled order until it fits: never a part of one, never film tokens.

    Returns None when there is no ok trajectory, or when not even one reading fits.
    """
    readings = [(t["teacher"], t["text"]) for t in study["trajectories"] if t["status"] == "ok"]
    rng.shuffle(readings)
    names = sorted({t["teacher"] for t in study["trajectories"]}, key=len, reverse=True)
    hide = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names), re.IGNORECASE)
    texts = [hide.sub("the reader", text).replace("<", "‹").replace(">", "›").strip() for _, text in readings]
    for kept in range(len(readings), 0, -1):
        parts = [study["prompt"], INSTRUCTION.format(n=kept)]
        parts += [f"Reading {i}:\n{text}" for i, text in enumerate(texts[:kept], 1)]
        prompt = "\n\n".join([*parts, "Final reading:"])
        if length is None or limit is None or length(prompt) <= limit:
            order = [teacher for teacher, _ in readings]
            return SelfPrompt(prompt, order[:kept], order[kept:])
    return None
