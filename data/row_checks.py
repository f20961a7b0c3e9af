"""Checks of the rows that ms-swift trains on, for files that were made elsewhere."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from data.errors import Problems, UserError
from data.files import StrPath, read_jsonl
from data.images import decode_problem, file_problem
from data.records import IMAGE_TAG, PLACEHOLDER, did_you_mean

Kind = Literal["sft", "apo"]
KINDS = ("sft", "apo")

# The columns of ms-swift (RowPreprocessor.standard_keys and its synonyms) that mean something at these two stages.
COLUMNS = (
    "messages",
    "images",
    "positive_messages",
    "negative_messages",
    "negative_weights",
    "rejected_response",
    "rejected_messages",
    "system",
    "tools",
    "objects",
    "channel",
    "chat_template_kwargs",
)
ROLES = ("system", "user", "assistant", "tool", "tool_call", "tool_response")


def check_rows(
    path: StrPath, kind: Kind, *, check_images: bool = False, image_root: StrPath | None = None
) -> dict[str, Any]:
    """Check a rows file that was made elsewhere, before anything is loaded.

    Accepted for "apo": `negative_messages` (a list of negatives, each a list of turns: the assistant turn alone, or a
    whole conversation with the prompt of `messages`), or for a single negative `rejected_response` (a string) or
    `rejected_messages`. Image paths are absolute, or relative to the environment variable ROOT_IMAGE_DIR or else the
    current folder, as ms-swift reads them.

    Args:
        image_root: folder that every image must lie in, links followed; by default they may lie anywhere.

    Returns:
        {"kind", "rows", "images", "unused_columns": {name: rows}} and for "apo" "negatives".

    Raises:
        UserError: lists the first ten problems as "FILE:LINE: what; remedy".
    """
    if kind not in KINDS:
        raise UserError(f"kind of rows {kind!r}: {did_you_mean(kind, KINDS)}")
    problems = Problems(path)
    unused: Counter[str] = Counter()
    rows = images = negatives = 0
    for line, row in read_jsonl(path):
        rows += 1
        try:
            found = check_row(row, kind)
        except UserError as error:
            problems.add(f"{path}:{line}: {error}")
            continue
        unused.update(found["unused"])
        images += len(found["images"])
        negatives += found["negatives"]
        for problem in row_image_problems(found["images"], image_root, decode=check_images):
            problems.add(f"{path}:{line}: {problem}")
    problems.refuse()
    if not rows:
        raise UserError(f"{path}: holds no row; write one JSON object a line")
    counts = {"kind": kind, "rows": rows, "images": images, "unused_columns": dict(unused)}
    return counts | ({"negatives": negatives} if kind == "apo" else {})


def check_row(row: Any, kind: Kind) -> dict[str, Any]:
    """Check one row, the files of its images apart; {"unused": column names, "images": paths, "negatives": n}.

    Raises:
        UserError: "what; remedy" for the first thing that is wrong.
    """
    unused = _check_columns(row)
    _check_conversation(row["messages"], "messages")
    images = _row_images(row)
    _check_tags(row, len(images))
    negatives = _check_negatives(row) if kind == "apo" else 0
    if kind == "sft" and row.get("positive_messages") is not None:
        _check_positives(row)
    return {"unused": unused, "images": images, "negatives": negatives}


def row_image_problems(images: list[str], image_root: StrPath | None = None, *, decode: bool = False) -> Iterator[str]:
    """Yield "image PATH what; remedy" for each image of a row that cannot be used or lies outside `image_root`."""
    root = os.sep if image_root is None else os.path.abspath(image_root)
    for image in images:
        full = os.path.abspath(os.path.join(os.environ.get("ROOT_IMAGE_DIR", ""), image))
        problem = file_problem(full, root) or (decode_problem(full) if decode else None)
        if problem:
            yield f"image {full} {problem}"


def file_kind(path: StrPath) -> Literal["studies", "rows"]:
    """Tell by its first line whether a JSONL file holds study records or ms-swift rows.

    Raises:
        UserError: the file is empty, or its first line is neither.
    """
    for line, first in read_jsonl(path):
        if isinstance(first, dict) and "messages" in first:
            return "rows"
        if isinstance(first, dict) and ("trajectories" in first or {"id", "images"} <= first.keys()):
            return "studies"
        raise UserError(
            f"{path}:{line}: neither a study record (id, images, trajectories) nor an ms-swift row (messages); "
            "data/README.md shows both"
        )
    raise UserError(f"{path}: is empty; write one JSON object a line")


def _check_columns(row: Any) -> list[str]:
    """Check a row's column names; return those that ms-swift would leave unused."""
    if not isinstance(row, dict):
        raise UserError("a row must be a JSON object; write {...} on each line")
    if "messages" not in row:
        hint = "this is a study record: make rows of it with python -m data.rows" if "trajectories" in row else ""
        raise UserError(f"row has no messages; {hint or 'write [{role: user, ...}, {role: assistant, ...}]'}")
    if row.get("negative_images") or row.get("rejected_images"):
        raise UserError("negatives share the images of the prompt; take negative_images and rejected_images out")
    unused = []
    for key in row:
        if key in COLUMNS or key in ("negative_images", "rejected_images"):
            continue
        if _near(key):
            raise UserError(f"unknown column {ascii(key)[:60]}; {_meant(key)}")
        unused.append(key)
    return unused


def _meant(key: str) -> str:
    # "negatives" is as near to both
    return did_you_mean(key, [name for name in COLUMNS if name != "negative_weights" or "weight" in key])


def _near(key: str) -> bool:
    # "image", "negatives", "negative_message": ms-swift would drop these without a word, or read them otherwise.
    names = ("image", "message", "negative", "negative_message", "negative_weight", "rejected", "rejected_message")
    return key.rstrip("s") in names


def _check_conversation(turns: Any, name: str) -> None:
    """Check turns that end in an assistant's answer; `name` is what the message calls them."""
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{name} must be a list of turns that ends with an assistant turn")
    for turn in turns:
        if not isinstance(turn, dict) or "role" not in turn or "content" not in turn:
            raise UserError(f"{name}: every turn must be an object with role and content")
        if turn["role"] not in ROLES:
            raise UserError(f"{name}: unknown role; {did_you_mean(turn['role'], ROLES)}")
        if not isinstance(turn["content"], str):
            raise UserError(
                f"{name}: content must be a string; write {IMAGE_TAG} where an image belongs and its path in images"
            )
        special = PLACEHOLDER.search(
            turn["content"] if turn["role"] == "assistant" else turn["content"].replace(IMAGE_TAG, "")
        )
        if special:
            raise UserError(f"{name}: a turn of {turn['role']} holds the special token {special[0]}; take it out")
        try:
            turn["content"].encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{name}: a text holds half a surrogate pair; write whole characters") from None
        if "\0" in turn["content"]:
            raise UserError(f"{name}: a text holds a NUL character; take it out")
    if turns[-1]["role"] != "assistant":
        raise UserError(f"{name}: the last turn is not the assistant's; end with the answer")
    if not turns[-1]["content"].strip():
        raise UserError(f"{name}: the assistant's answer is empty; write it or take the row out")


def _row_images(row: dict) -> list[str]:
    images = row.get("images")
    images = [] if images is None else [images] if isinstance(images, str) else images
    if not isinstance(images, list):
        raise UserError("images must be a list of paths")
    paths = [image.get("path") if isinstance(image, dict) else image for image in images]
    for path in paths:
        if not isinstance(path, str) or not path or "://" in path or path.startswith("data:") or "\0" in path:
            raise UserError("images must be paths of files; download addresses and save embedded images first")
    return paths


def _check_tags(row: dict, images: int) -> None:
    prompt = [turn["content"] for turn in row["messages"] if turn["role"] != "assistant"]
    if isinstance(row.get("system"), str):
        prompt.append(row["system"])
    tags = sum(text.count(IMAGE_TAG) for text in prompt)
    if tags != images:
        raise UserError(
            f"prompt has {tags} {IMAGE_TAG} tag(s) for {images} image(s); "
            f"put one {IMAGE_TAG} into the prompt for each image, or mend the list of images"
        )


def loss_problem(turn: dict, name: str) -> str | None:
    """What to say of a study's answer that ms-swift would train in part or not at all; None for one that counts whole.

    What is left out of an answer would count as prompt of every response.
    """
    if any(turn.get(key) not in (None, 1) for key in ("loss", "loss_scale")):
        return f"{name}: its answer has a loss or loss_scale of its own, but counts whole here; take it out"
    return None


def _check_whole(turn: dict, name: str) -> None:
    if problem := loss_problem(turn, name):
        raise UserError(problem)


def _check_positives(row: dict) -> None:
    """Check the further trajectories of a study that is learnt behind one prefix: assistant turns alone."""
    positives = row["positive_messages"]
    if not isinstance(positives, list) or not all(isinstance(turns, list) and len(turns) == 1 for turns in positives):
        raise UserError("positive_messages must be a list of lists with one assistant turn each")
    _check_whole(row["messages"][-1], "messages")
    for place, turns in enumerate(positives):
        _check_conversation(turns, f"positive_messages[{place}]")
        _check_whole(turns[-1], f"positive_messages[{place}]")


def _check_negatives(row: dict) -> int:
    """Check the negatives of an APO row; return how many there are."""
    given = [key for key in ("negative_messages", "rejected_response", "rejected_messages") if row.get(key) is not None]
    if not given:
        raise UserError("row has no negative; write negative_messages: [[{role: assistant, content: ...}], ...]")
    if len(given) > 1:
        raise UserError(f"row has {' and '.join(given)}; keep one of them, best negative_messages")
    if given[0] == "rejected_response":
        negatives = [_rejected_response(row["rejected_response"])]
    elif given[0] == "rejected_messages":
        negatives = [row["rejected_messages"]]
    else:
        negatives = row["negative_messages"]
        if not isinstance(negatives, list) or not negatives:
            raise UserError("negative_messages must be a list of at least one negative, each a list of turns")
        if not all(isinstance(turns, list) for turns in negatives):
            raise UserError(
                "negative_messages must be a list of lists: one list of turns for each negative, "
                "[[{role: assistant, content: ...}], [{role: assistant, content: ...}]]"
            )
    _check_weights(row, len(negatives))
    messages = row["messages"]
    if sum(turn["role"] == "assistant" for turn in messages) == len(messages):
        raise UserError("messages has no prompt; put the user's turn before the answer")
    several = given[0] == "negative_messages"
    if several:
        _check_whole(messages[-1], "messages")
    for place, turns in enumerate(negatives, 1):
        name = f"negative {place}" if several else given[0]
        _check_conversation(turns, name)
        if several:
            _check_whole(turns[-1], name)
        if len(turns) > 1 and not _same_turns(turns[:-1], messages[:-1]):
            raise UserError(f"{name}: its prompt is not that of messages; write its assistant turn alone")
        if same_text(turns[-1]["content"], messages[-1]["content"]):
            raise UserError(f"{name}: equals the positive answer; take this negative out")
    return len(negatives)


def is_weight(value: Any) -> bool:
    """Whether a value can be the weight of a negative: a finite number above 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def _check_weights(row: dict, negatives: int) -> None:
    """Check the weights of the negatives in the loss, if there are any: one finite number above 0 for each."""
    weights = row.get("negative_weights")
    if weights is None:
        return
    if not (isinstance(weights, list) and all(map(is_weight, weights))) or len(weights) != negatives:
        raise UserError(
            f"negative_weights must be a list of {negatives} numbers above 0, one for each negative; mend it, or take "
            "it out for weights of 1"
        )


def _rejected_response(response: Any) -> list[dict]:
    if isinstance(response, list):
        raise UserError(
            "rejected_response is a list, which ms-swift reads as ONE answer of several turns, not as many negatives; "
            "write negative_messages: [[{role: assistant, content: ...}], ...], one list for each negative"
        )
    if not isinstance(response, str):
        raise UserError("rejected_response must be a string; for several negatives write negative_messages")
    return [turn("assistant", response)]


def _same_turns(left: list[dict], right: list[dict]) -> bool:
    return [(turn["role"], turn["content"]) for turn in left] == [(turn["role"], turn["content"]) for turn in right]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def same_text(left: str, right: str) -> bool:
    """Whether two texts are equal apart from white space."""
    # Equal texts have heads of which one begins the other: this spares most pairs the work on the whole text.
    head, other = " ".join(left[:60].split()), " ".join(right[:60].split())
    return (head.startswith(other) or other.startswith(head)) and left.split() == right.split()
