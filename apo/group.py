"""One study as tokens: film and prompt once, N+1 responses behind it, and the two ways to lay them out for the decoder.

A study is encoded as its *prefix* (everything ms-swift encodes up to the first trained token, film included) and its
*responses* (token ids of the consensus, then of each negative). The layout decides how they become rows; log-probs,
loss and trainer do not see the difference.
"""

from copy import deepcopy
from typing import Any, NamedTuple

import torch
from swift.template.base import MaxLengthError, Template
from swift.template.template_inputs import StdTemplateInputs

from apo import options
from apo.refusals import refuse_settings
from data.row_checks import loss_problem

MEDIA_TAGS = ("<image>", "<video>", "<audio>")
# Whatever has one entry a token; all other keys of an encoded row belong to the film.
GROUP_KEYS = ("responses", "response_keys", "negative_weights", "length", "lengths")
SEQUENCE_KEYS = ("input_ids", "labels", "loss_scale", "mm_token_type_ids", "token_type_ids")


def first_trained(labels: list[int]) -> int:
    """Index of the first token that is trained on (label != -100)."""
    return next(i for i, label in enumerate(labels) if label != -100)


def encode_response(template: Template, prompt: StdTemplateInputs, message: dict[str, Any]) -> list[int]:
    """Token ids of one assistant turn behind `prompt`, end-of-turn tokens included.

    ms-swift tokenises the prompt and the response as separate contexts, so these ids are exactly the tail of the full
    conversation; the film is left out because it cannot change them.
    """
    inputs = deepcopy(prompt)
    inputs.messages = [*inputs.messages, dict(message)]
    encoded = Template._encode(template, inputs)
    return encoded["input_ids"][first_trained(encoded["labels"]) :]


def text_only(inputs: StdTemplateInputs) -> StdTemplateInputs:
    """A copy of the prompt turns of `inputs` without film and without the tags that stand for it."""
    prompt = StdTemplateInputs.from_dict({"messages": deepcopy(inputs.messages[:-1]), "system": inputs.system})
    prompt.tools = deepcopy(inputs.tools)
    prompt.chat_template_kwargs = deepcopy(inputs.chat_template_kwargs)
    for message in prompt.messages:
        for tag in MEDIA_TAGS:
            message["content"] = message["content"].replace(tag, "")
    return prompt


def response_message(chosen: StdTemplateInputs, other: StdTemplateInputs, name: str) -> dict[str, Any]:
    """The assistant turn of a further response: given alone, or as a full conversation over the same prompt.

    Raises:
        ValueError: it does not end in an assistant turn, or its prompt is not that of the first response.
    """
    if not other.messages or other.messages[-1]["role"] != "assistant":
        raise ValueError(f"{name} must end with an assistant turn")
    prompt = [(m["role"], m["content"]) for m in other.messages[:-1]]
    if prompt and prompt != [(m["role"], m["content"]) for m in chosen.messages[:-1]]:
        raise ValueError(
            f"{name} has another prompt than the consensus; give the assistant turn alone, so that all responses share "
            "the study's film and prompt"
        )
    return other.messages[-1]


def encode_group(
    template: Template, chosen: StdTemplateInputs, others: list[StdTemplateInputs], column: str
) -> dict[str, Any]:
    """Encode a study: the stock encoding of its prefix, plus `responses`, lists of token ids, `chosen` first.

    Args:
        column: the rows' name for `others`, for messages.

    Raises:
        ValueError: another prompt in a response, a weighted loss_scale, an answer or a turn that is trained in part,
            more than one trained turn.
        MaxLengthError: prefix and longest response exceed max_length; a film's tokens are never cut.
    """
    refuse_settings({"loss_scale": template._loss_scale})
    names = [f"{column}[{i}]" for i in range(len(others))]
    messages = [response_message(chosen, other, name) for other, name in zip(others, names, strict=True)]
    for name, message in zip(("messages", *names), (chosen.messages[-1], *messages), strict=True):
        if problem := loss_problem(message, name):
            raise ValueError(problem)
    prompt = text_only(chosen)
    max_length, template.max_length = template.max_length, None
    try:
        encoded = template._encode_truncated(chosen)
    finally:
        template.max_length = max_length
    if encoded.get("loss_scale") is not None:
        raise ValueError("a weighted loss_scale has no meaning for log-probs of whole responses; use last_round")
    start = first_trained(encoded["labels"])
    if -100 in encoded["labels"][start:]:
        raise ValueError("several turns of the conversation are trained on; use --loss_scale last_round")
    responses = [encoded["input_ids"][start:], *(encode_response(template, prompt, message) for message in messages)]
    longest = start + max(map(len, responses))
    if max_length is not None and longest > max_length:
        raise MaxLengthError(
            f"film and prompt take {start} tokens and the longest response {longest - start}; together they exceed "
            f"max_length {max_length}. Raise --max_length, lower --max_pixels, or drop the study"
        )
    group = {key: value for key, value in encoded.items() if key not in SEQUENCE_KEYS}
    for key in SEQUENCE_KEYS:
        if encoded.get(key) is not None and key not in ("labels", "loss_scale"):
            group[key] = encoded[key][..., :start] if isinstance(encoded[key], torch.Tensor) else encoded[key][:start]
    group["responses"] = responses
    group["length"] = longest
    return group


def batch_keys(groups: list[dict[str, Any]]) -> tuple[str, ...] | None:
    """Names of all responses in the reference cache, study by study; None without a cache."""
    if not all("response_keys" in group for group in groups):
        return None
    return tuple(key for group in groups for key in group["response_keys"])


def batch_weights(groups: list[dict[str, Any]]) -> list[float] | None:
    """[S] weights of all responses, 1 for each consensus and where a study gives none; None when no study gives any.

    Raises:
        ValueError: a study has another number of weights than of negatives.
    """
    given = [group.get("negative_weights") for group in groups]
    if all(weights is None for weights in given):
        return None
    found: list[float] = []
    for group, weights in zip(groups, given, strict=True):
        negatives = len(group["responses"]) - 1
        if weights is not None and len(weights) != negatives:
            raise ValueError(f"negative_weights has {len(weights)} entries for {negatives} negatives")
        found += [1.0, *(weights or [1.0] * negatives)]
    return found


class Batch(NamedTuple):
    """A micro-batch of G studies with S responses and K response tokens, apart from what the model itself takes.

    `index`: [K] positions in the flattened [B * L] of the states that predict the response tokens; a response's first
    token is predicted by the last prefix token. `targets`: [K] token ids. `response`: [K] number of the response,
    0..S-1, study by study, consensus first. `group_sizes`: responses a study. `shapes`: for the shared layout, by row
    (prefix length, length of response 0, of response 1, ...); None for plain rows. `keys`: [S] names of the responses
    in the reference cache; None without one. `weights`: [S] weights of the responses in the loss (1 for the consensus);
    None where no study gives any.
    """

    index: torch.Tensor
    targets: torch.Tensor
    response: torch.Tensor
    group_sizes: list[int]
    shapes: tuple[tuple[int, ...], ...] | None = None
    keys: tuple[str, ...] | None = None
    weights: list[float] | None = None


# Where a Batch travels inside ms-swift's batch dictionaries, which move plain tensors between devices.
BATCH_KEY = "apo_batch"


def pack_batch(batch: Batch) -> dict[str, Any]:
    fields = batch._asdict()
    return {key: value for key, value in fields.items() if value is not None}


def unpack_batch(inputs: dict[str, Any]) -> Batch:
    """Take the Batch out of a collated dictionary; what remains are the model's own arguments."""
    return Batch(**inputs.pop(BATCH_KEY))


def token_ratio(groups: list[dict[str, Any]]) -> float:
    """Decoder tokens of plain rows divided by those of shared rows, padding included, for one micro-batch."""
    prefixes = [len(group["input_ids"]) for group in groups]
    lengths = [[len(response) for response in group["responses"]] for group in groups]
    rows = sum(map(len, lengths)) * max(p + max(r) for p, r in zip(prefixes, lengths, strict=True))
    shared = len(groups) * max(p + sum(r) for p, r in zip(prefixes, lengths, strict=True))
    return rows / shared


def _indices(starts: list[tuple[int, int]], groups: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Gather indices for responses whose (position predicting the first token, position of the first token) are given.

    Only the first token of a response may be predicted from elsewhere; the others follow each other.
    """
    index, targets, response = [], [], []
    flat = [ids for group in groups for ids in group["responses"]]
    for number, ((before, first), ids) in enumerate(zip(starts, flat, strict=True)):
        index += [before, *range(first, first + len(ids) - 1)]
        targets += ids
        response += [number] * len(ids)
    return {"index": torch.tensor(index), "targets": torch.tensor(targets), "response": torch.tensor(response)}


def _prefix_row(group: dict[str, Any], suffix: list[int] = ()) -> dict[str, Any]:
    """A stock encoded row: the prefix, continued by `suffix`."""
    row = {key: value for key, value in group.items() if key not in GROUP_KEYS}
    row["input_ids"] = [*group["input_ids"], *suffix]
    types = row.get("mm_token_type_ids")
    if types is not None and suffix:
        row["mm_token_type_ids"] = torch.cat([types, types.new_zeros((*types.shape[:-1], len(suffix)))], dim=-1)
    return row


def _drop_packing_keys(batch: dict[str, Any]) -> dict[str, Any]:
    # Given for padding-free flash attention; with one row in the batch they would switch it on.
    for key in ("text_position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "labels"):
        batch.pop(key, None)
    return batch


def collate(template: Template, groups: list[dict[str, Any]], chosen: options.Options) -> dict[str, Any]:
    """Collate studies in the layout that the options ask for; the Batch is under BATCH_KEY."""
    shared = chosen.layout == "shared" or (chosen.layout == "auto" and token_ratio(groups) >= chosen.shared_min_ratio)
    inputs, batch = (collate_shared if shared else collate_rows)(template, groups)
    inputs[BATCH_KEY] = pack_batch(batch._replace(keys=batch_keys(groups), weights=batch_weights(groups)))
    return inputs


def collate_rows(template: Template, groups: list[dict[str, Any]]) -> tuple[dict[str, Any], Batch]:
    """Plain rows: each response in a row of its own behind a copy of film and prompt; B = S."""
    rows = [_prefix_row(group, ids) for group in groups for ids in group["responses"]]
    inputs = _drop_packing_keys(template._data_collator(rows))
    width = inputs["input_ids"].shape[1]
    prefixes = [len(group["input_ids"]) for group in groups for _ in group["responses"]]
    starts = [(row * width + p - 1, row * width + p) for row, p in enumerate(prefixes)]
    sizes = [len(group["responses"]) for group in groups]
    return inputs, Batch(**_indices(starts, groups), group_sizes=sizes)


def collate_shared(template: Template, groups: list[dict[str, Any]]) -> tuple[dict[str, Any], Batch]:
    """One row a study: film and prompt, then the responses one after the other; B = G.

    Every response starts at rotary position max(prefix) + 1 on all three axes, as if it stood alone behind the film
    (image tokens compress positions, so that is not the prefix length).
    """
    inputs = _drop_packing_keys(template._data_collator([_prefix_row(group) for group in groups]))
    prefixes = [len(group["input_ids"]) for group in groups]
    lengths = [p + sum(map(len, group["responses"])) for p, group in zip(prefixes, groups, strict=True)]
    width = max(lengths)
    input_ids = inputs["input_ids"].new_full((len(groups), width), template.tokenizer.pad_token_id)
    position_ids = inputs["position_ids"].new_zeros((3, len(groups), width))
    starts = []
    for row, (prefix, group) in enumerate(zip(prefixes, groups, strict=True)):
        input_ids[row, :prefix] = inputs["input_ids"][row, :prefix]
        position_ids[:, row, :prefix] = inputs["position_ids"][:, row, :prefix]
        first_position = int(inputs["position_ids"][:, row, :prefix].max()) + 1
        at = prefix
        for ids in group["responses"]:
            end = at + len(ids)
            input_ids[row, at:end] = torch.tensor(ids)
            position_ids[:, row, at:end] = torch.arange(first_position, first_position + len(ids))
            starts.append((row * width + prefix - 1, row * width + at))
            at = end
    inputs["input_ids"], inputs["position_ids"] = input_ids, position_ids
    inputs.pop("attention_mask", None)
    types = inputs.get("mm_token_type_ids")
    if types is not None:
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(types, (0, width - types.shape[1]))
    shapes = tuple((p, *map(len, group["responses"])) for p, group in zip(prefixes, groups, strict=True))
    sizes = [len(group["responses"]) for group in groups]
    return inputs, Batch(**_indices(starts, groups), group_sizes=sizes, shapes=shapes)
