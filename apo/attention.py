"""Attention over a shared row without anything of size L x L.

The dense mask of the shared layout computes every response against every other and throws the result away. Here the
prefix attends to itself, and each response to the prefix and itself: the same numbers, at the cost of plain rows less
the repeated prefix. Registered with transformers as an attention implementation, so that the model's own code calls it;
the shape of each row travels as an argument of the forward pass, and with it through gradient checkpointing.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

NAME = "apo_split"
# The forward argument with, for each row of the micro-batch, (prefix length, response length, response length, ...).
SHAPES_KEY = "apo_row_shapes"

Shapes = tuple[tuple[int, ...], ...]


def split_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query [B, H, L, D], key and value [B, Hkv, L, D] -> [B, L, H, D].

    Without row shapes this is ordinary causal attention; right padding needs no mask there, because no real token
    looks to its right.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    settings = {"dropout_p": dropout, "scale": scaling}
    shapes: Shapes | None = kwargs.get(SHAPES_KEY)
    if shapes is None:
        if attention_mask is not None:
            output = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, **settings)
        else:
            output = scaled_dot_product_attention(query, key, value, is_causal=query.shape[2] > 1, **settings)
        return output.transpose(1, 2).contiguous(), None

    rows = []
    for row, (prefix, *responses) in enumerate(shapes):
        q, k, v = query[row : row + 1], key[row : row + 1], value[row : row + 1]
        k_prefix, v_prefix = k[:, :, :prefix], v[:, :, :prefix]
        pieces = [scaled_dot_product_attention(q[:, :, :prefix], k_prefix, v_prefix, is_causal=True, **settings)]
        at = prefix
        for length in responses:
            own = slice(at, at + length)
            # Aligned at the lower right corner: the first token of the response sees the whole prefix and itself.
            mask = causal_lower_right(length, prefix + length)
            keys = torch.cat([k_prefix, k[:, :, own]], dim=2)
            values = torch.cat([v_prefix, v[:, :, own]], dim=2)
            pieces.append(scaled_dot_product_attention(q[:, :, own], keys, values, attn_mask=mask, **settings))
            at += length
        if at < query.shape[2]:
            # Padding predicts nothing and nothing looks at it; its values only have to be finite.
            pieces.append(v[:, :, at:])
        rows.append(torch.cat(pieces, dim=2))
    return torch.cat(rows).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, split_attention)


def language_configs(model: nn.Module) -> Iterator[object]:
    """The configurations that the decoder layers of `model` read their attention from, each once."""
    seen = set()
    for module in model.modules():
        config = getattr(module, "config", None)
        is_decoder_attention = hasattr(module, "layer_idx") and hasattr(module, "num_key_value_groups")
        if config is not None and (is_decoder_attention or hasattr(module, "embed_tokens")) and id(config) not in seen:
            seen.add(id(config))
            yield config


def refuse_sliding_window(model: nn.Module) -> None:
    """Raise ValueError if a decoder layer looks through a sliding window: neither mask nor split would keep it."""
    for config in language_configs(model):
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise ValueError(
                f"the model has {', '.join(sorted(kinds))} layers; a shared prefix needs full attention everywhere. "
                'Use --model_kwargs \'{"apo_layout": "rows"}\''
            )


def use_split_attention(model: nn.Module) -> None:
    """Switch the decoder layers of `model`, and nothing else of it, to `split_attention`."""
    for config in language_configs(model):
        config._attn_implementation = NAME
