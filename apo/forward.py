"""The forward pass that both training stages share: a micro-batch of studies in, log-probs of their responses out."""

from typing import Any, NamedTuple

import torch
from swift.utils import get_logger
from torch import nn

from apo import group
from apo.attention import SHAPES_KEY, refuse_sliding_window, row_segments, shared_mask, use_split_attention
from apo.head import logps_head
from apo.options import Options
from apo.refusals import refuse_settings

logger = get_logger()


class Attention(NamedTuple):
    """`implementation`: what the language model was loaded with. `kind`: how shared rows attend, `mask` or `split`."""

    implementation: str
    kind: str


class ResponseLogps(NamedTuple):
    """`tokens`: [K] nats. `sums`: [S] float64 log-prob of each response. `counts`: [S] its tokens."""

    tokens: torch.Tensor
    sums: torch.Tensor
    counts: torch.Tensor


def check_template(template, args) -> None:
    """Refuse settings under which the responses of a study could not be found behind one prefix.

    Raises:
        ValueError: the setting, the reason and the flag to change.
    """
    refuse_settings(
        {
            "use_liger_kernel": getattr(args, "use_liger_kernel", None),
            "padding_free": template.padding_free,
            "packing": template.packing,
            "sequence_parallel_size": template.sequence_parallel_size,
            "padding_side": template.padding_side,
            "truncation_strategy": template.truncation_strategy,
            "loss_scale": template._loss_scale,
        }
    )


def settle_attention(models: list[nn.Module], options: Options) -> Attention:
    """Choose how shared rows attend, and switch the decoder layers of `models` to it.

    Raises:
        ValueError: a mask was asked for that the implementation cannot take, or a layer has a sliding window.
    """
    config = models[0].config
    implementation = config.get_text_config()._attn_implementation
    kind = options.attention
    if kind == "auto":
        kind = "mask" if implementation == "eager" else "split"
    if kind == "mask" and implementation not in ("sdpa", "eager"):
        raise ValueError(f"apo_attention=mask needs --attn_impl sdpa or eager, not {implementation}")
    if options.layout != "rows":
        for model in models:
            refuse_sliding_window(model)
            if kind == "split":
                use_split_attention(model)
    return Attention(implementation, kind)


def sum_responses(token_logps: torch.Tensor, batch: group.Batch) -> ResponseLogps:
    """Sum token log-probs by response, in float64: their difference to the reference is small beside them."""
    total = sum(batch.group_sizes)
    sums = token_logps.new_zeros(total, dtype=torch.float64).index_add(0, batch.response, token_logps.double())
    return ResponseLogps(token_logps, sums, torch.bincount(batch.response, minlength=total))


def forward_logps(
    model: nn.Module,
    unwrapped: nn.Module,
    inputs: dict[str, Any],
    batch: group.Batch,
    attention: Attention,
    chunk_size: int,
) -> ResponseLogps:
    """Log-probs of all responses of a micro-batch.

    Args:
        model: what is called: the model inside its distributed wrapper, if it has one.
        unwrapped: the same model without the wrapper.
        inputs: the model's own arguments, as collated.
    """
    inputs = dict(inputs)
    if batch.shapes is not None and attention.kind == "split":
        inputs[SHAPES_KEY] = batch.shapes
    elif batch.shapes is not None:
        segments = row_segments(batch.shapes, inputs["input_ids"].shape[1], inputs["input_ids"].device)
        additive = unwrapped.dtype if attention.implementation == "eager" else None
        inputs["attention_mask"] = shared_mask(segments, additive)
    logger.info_once(
        "APO: a study is one row, its film and prompt shared"
        if batch.shapes is not None
        else "APO: every response is a full row (apo_layout rows, or too little to share)"
    )
    with logps_head(unwrapped, batch.index, batch.targets, chunk_size):
        outputs = model(**inputs, use_cache=False)
    return sum_responses(outputs.logits.flatten(), batch)
