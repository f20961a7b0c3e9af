"""Attention over a shared row without anything of size L x L.

The dense mask of the shared layout computes every response against every other and throws the result away. Here the
prefix attends to itself, and each response to the prefix and itself: the same numbers, at the cost of plain rows less
the repeated prefix. Registered with transformers as an attention implementation, so that the model's own code calls it;
the shape of each row travels as an argument of the forward pass, and with it through gradient checkpointing.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from apo.self_check import Names, Shapes, agree

NAME = "apo_split"
# The forward argument with, for each row of the micro-batch, (prefix length, response length, response length, ...).
SHAPES_KEY = "apo_row_shapes"
NAMES = Names(
    "split attention",
    "the dense mask",
    '; --model_kwargs \'{"apo_attention": "mask"}\' chooses the mask from the start',
)


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
    looks to its right. With them, the split path proves itself on its first call on a device that no test of ours runs
    on (apo/self_check.py).
    """
    settings = {"dropout_p": dropout, "scale": scaling}
    device = query.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        # As sdpa does itself under autocast. The causal bias compares dtypes before that, and the rotary embedding has
        # made query and key float32.
        query, key, value = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (query, key, value))
    shapes: Shapes | None = kwargs.get(SHAPES_KEY)
    if shapes is not None:
        proven = agree(split_rows, masked_rows, (query, key, value), shapes, scaling, NAMES)
        output = (split_rows if proven else masked_rows)(query, key, value, shapes, **settings)
    elif attention_mask is not None:
        output = attend(query, key, value, mask=attention_mask, **settings)
    else:
        output = attend(query, key, value, is_causal=query.shape[2] > 1, **settings)
    return output.transpose(1, 2).contiguous(), None


def reads_grouped_heads(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, masked: bool) -> bool:
    """Whether sdpa has a kernel that reads one key-value head for several query heads; else they must be repeated.

    On the CPU always. On CUDA flash alone does, which takes no mask and half precision only; sdpa would otherwise take
    its plain formula, which keeps all scores.
    """
    if query.device.type == "cpu":
        return True
    return not masked and can_use_flash_attention(SDPAParams(query, key, value, None, 0.0, True, True))


def attend(query, key, value, *, mask=None, **settings) -> torch.Tensor:
    """sdpa over [B, H, L, D] and [B, Hkv, L', D], key-value heads repeated where its kernels cannot do without."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and reads_grouped_heads(query, key, value, masked=mask is not None):
        settings["enable_gqa"] = True
    else:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, **settings)


def split_rows(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shapes: Shapes, **settings) -> torch.Tensor:
    """Attention of shared rows piece by piece: [B, H, L, D] -> [B, H, L, D]. Padding gets finite values of no meaning.

    Pieces are views that one `split` makes: its backward pass puts gradients together once, where each slice would fill
    and add a gradient of the whole row.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and reads_grouped_heads(query, key, value, masked=False):
        settings["enable_gqa"] = True
    else:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    rows = []
    for q, k, v, shape in zip(query.split(1), key.split(1), value.split(1), shapes, strict=True):
        sizes = [*shape, query.shape[2] - sum(shape)]
        (q_prefix, *queries, q_padding), (k_prefix, *keys, _), (v_prefix, *values, _) = (
            whole.split(sizes, dim=2) for whole in (q, k, v)
        )
        pieces = [scaled_dot_product_attention(q_prefix, k_prefix, v_prefix, is_causal=True, **settings)]
        for own_q, own_k, own_v in zip(queries, keys, values, strict=True):
            length = own_q.shape[2]
            pieces.append(
                scaled_dot_product_attention(
                    own_q,
                    torch.cat([k_prefix, own_k], dim=2),
                    torch.cat([v_prefix, own_v], dim=2),
                    # Aligned at the lower right corner: the first token sees the whole prefix and itself.
                    attn_mask=causal_lower_right(length, shape[0] + length),
                    **settings,
                )
            )
        # Padding predicts nothing and nothing looks at it.
        rows.append(torch.cat([*pieces, q_padding], dim=2))
    return torch.cat(rows)


def masked_rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shapes: Shapes, **settings
) -> torch.Tensor:
    """The same by a dense mask, row by row: slower, L x L, and right wherever sdpa is."""
    length = query.shape[2]
    return torch.cat(
        [
            attend(q, k, v, mask=shared_mask(row_segments((shape,), length, q.device), None), **settings)
            for q, k, v, shape in zip(query.split(1), key.split(1), value.split(1), shapes, strict=True)
        ]
    )


AttentionInterface.register(NAME, split_attention)


def row_segments(shapes: tuple[tuple[int, ...], ...], length: int, device: torch.device) -> torch.Tensor:
    """[B, length] what each token belongs to: 0 the prefix, i+1 response i of the study, -1 padding."""
    segments = torch.full((len(shapes), length), -1, device=device)
    for row, shape in enumerate(shapes):
        numbers = torch.arange(len(shape), device=device)
        segments[row, : sum(shape)] = numbers.repeat_interleave(
            torch.tensor(shape, device=device), output_size=sum(shape)
        )
    return segments


def shared_mask(segments: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """Attention mask [B, 1, L, L] of the shared layout: a token sees, up to itself, the prefix and its own response.

    Args:
        segments: [B, L] as `row_segments` gives them.
        dtype: None for a boolean mask (sdpa: True = may attend), else an additive mask of that dtype. Eager attention
            ADDS its mask, so a boolean one would be silently wrong there.

    Padding attends to itself alone: a row of nothing but -inf would make its softmax NaN.
    """
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    keys, queries = segments[:, None, :], segments[:, :, None]
    allowed = causal & ((keys == 0) | (keys == queries)) & (keys >= 0) & (queries >= 0)
    allowed = allowed | torch.eye(length, dtype=torch.bool, device=segments.device)
    if dtype is None:
        return allowed[:, None]
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


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
