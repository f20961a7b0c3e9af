"""Attention of the vision tower: all windows of one size in one call.

Under sdpa, transformers takes the windows of a film one by one: a film of 1,300 tokens has 81 of them in each of 28
layers, some 2,300 calls too small to keep a GPU busy, and a wait for the GPU in each layer to learn their sizes. A film
has four sizes of windows at most (inside, at the right, at the bottom, in the corner), so they are put together by size
and their sizes are read once. The numbers are the same: no window sees more or less than before.
"""

from functools import lru_cache
from itertools import pairwise

import torch
from swift.utils import get_logger
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface

from apo.self_check import Names, Shapes, agree

# transformers hands all windows over in one call, with their borders, to an implementation whose name says flash.
NAME = "apo_flash_windows"
NAMES = Names("window attention by size", "one window at a time", "")

logger = get_logger()

# By the tensor of borders, which is one for all layers of a pass: reading it waits for the GPU.
_lengths = WeakTensorKeyDictionary()


def window_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function of a vision tower: [1, H, L, D] each -> [1, L, H, D].

    Args:
        cu_seq_lens_q: [windows + 1] where each window of patches begins and the last one ends.

    Raises:
        ValueError: no borders, so the caller is no vision tower that this was made for.
    """
    if cu_seq_lens_q is None or attention_mask is not None:
        raise ValueError(f"{NAME} is for vision towers that give the borders of their windows and no mask")
    shapes = (read_lengths(cu_seq_lens_q),)
    proven = agree(by_size, one_by_one, (query, key, value), shapes, scaling, NAMES)
    output = (by_size if proven else one_by_one)(query, key, value, shapes, dropout_p=dropout, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


def read_lengths(borders: torch.Tensor) -> tuple[int, ...]:
    """Patches of each window, from [windows + 1] borders."""
    if borders not in _lengths:
        _lengths[borders] = tuple(end - start for start, end in pairwise(borders.tolist()))
    return _lengths[borders]


@lru_cache(maxsize=64)
def order_by_size(lengths: tuple[int, ...], device: torch.device) -> tuple[dict[int, int], torch.Tensor, torch.Tensor]:
    """How many windows there are of each length, the order [L] that puts them together, and the way back [L]."""
    starts: dict[int, list[int]] = {}
    at = 0
    for length in lengths:
        starts.setdefault(length, []).append(at)
        at += length
    order = torch.cat([(torch.tensor(s)[:, None] + torch.arange(n)).flatten() for n, s in starts.items()])
    return {n: len(s) for n, s in starts.items()}, order.to(device), order.argsort().to(device)


def by_size(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shapes: Shapes, **settings) -> torch.Tensor:
    """Attention within windows of `shapes[0]` patches: [1, H, L, D] -> [1, H, L, D], one call a length."""
    counts, order, back = order_by_size(shapes[0], query.device)
    tensors = [whole[0].transpose(0, 1) for whole in (query, key, value)]
    if len(counts) > 1:
        tensors = [whole.index_select(0, order) for whole in tensors]
    sizes = [length * count for length, count in counts.items()]
    outputs = []
    for length, *pieces in zip(counts, *(whole.split(sizes) for whole in tensors), strict=True):
        # [windows x length, H, D] -> [windows, H, length, D]
        windows = (piece.unflatten(0, (-1, length)).transpose(1, 2) for piece in pieces)
        outputs.append(scaled_dot_product_attention(*windows, **settings).transpose(1, 2).flatten(0, 1))
    output = torch.cat(outputs).index_select(0, back) if len(counts) > 1 else outputs[0]
    return output.transpose(0, 1)[None]


def one_by_one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shapes: Shapes, **settings) -> torch.Tensor:
    """The same a window at a time, as transformers does it under sdpa."""
    windows = zip(*(whole.split(list(shapes[0]), dim=2) for whole in (query, key, value)), strict=True)
    return torch.cat([scaled_dot_product_attention(*window, **settings) for window in windows], dim=2)


AttentionInterface.register(NAME, window_attention)


def use_window_attention(model: nn.Module) -> bool:
    """Switch the vision tower of `model`, if it has one, to `window_attention` where it runs sdpa; whether it was."""
    tower = getattr(model, "visual", None)
    config = getattr(tower, "config", None)
    if getattr(config, "_attn_implementation", None) != "sdpa":
        return False
    for module in tower.modules():
        own = getattr(module, "config", None)
        if own is not None:
            own._attn_implementation = NAME
    logger.info("vision tower: all windows of a size in one call (apo/windows.py)")
    return True
