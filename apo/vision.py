"""One look at the film: a frozen vision tower runs once for policy and reference together."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from apo.head import swapped_forward
from apo.refusals import of_adapter


def is_frozen(module: nn.Module) -> bool:
    """Whether no parameter is trained, adapters inside included.

    Asked of the parameters and not of `torch.is_grad_enabled()`: in evaluation gradients are off, yet a tower that
    carries LoRA still differs between policy and reference.
    """
    return not any(parameter.requires_grad for parameter in module.parameters())


def has_adapter(module: nn.Module) -> bool:
    """Whether any parameter belongs to an adapter."""
    return any(of_adapter(name) for name, _ in module.named_parameters())


def same_weights(left: nn.Module, right: nn.Module) -> bool:
    """Whether two modules hold equal parameters, name by name; False where ZeRO-3 has put them elsewhere."""
    ours, theirs = dict(left.named_parameters()), dict(right.named_parameters())
    return ours.keys() == theirs.keys() and all(
        ours[name].numel() > 0
        and ours[name].shape == theirs[name].shape
        and torch.equal(ours[name], theirs[name].to(ours[name].device))
        for name in ours
    )


@contextmanager
def one_look(towers: list[nn.Module]) -> Iterator[None]:
    """Within this context, a call of any of `towers` on the pixels of the last call returns that call's output.

    The caller vouches that all towers are frozen and hold the same weights (`is_frozen`, `same_weights`); that the
    pixels are equal is checked here, value by value.
    """
    last = {}

    def memoised(original):
        def forward(pixels, grid_thw, *args, **kwargs):
            seen = last.get("pixels")
            if seen is None or seen.shape != pixels.shape or not torch.equal(seen, pixels):
                last.update(pixels=pixels, output=original(pixels, grid_thw, *args, **kwargs))
            # A copy, tensors shared: Qwen3-VL writes split features back into the output that it was given.
            return copy.copy(last["output"])

        return forward

    with ExitStack() as stack:
        for tower in towers:
            stack.enter_context(swapped_forward(tower, memoised(tower.forward)))
        yield
