"""An accelerated attention proves itself on the hardware it runs on, or leaves the work to the portable one.

The tests hold the split path against plain rows on a CPU. On any other device it runs kernels that no test of ours has
seen. So on its first call there, with the queries, keys and values of the first micro-batch, values and gradients are
compared with the dense mask's. All of that happens inside one attention layer: no pass of the model is repeated, and no
rank waits for another.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from swift.utils import get_logger

Shapes = tuple[tuple[int, ...], ...]
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Names(NamedTuple):
    """What a message calls the fast way, the portable one, and how to choose the portable one from the start."""

    fast: str
    portable: str
    remedy: str


# Where nothing has to be proven: the tests' device, and the one that computes nothing.
TRUSTED_DEVICES = {"cpu", "meta"}
# Largest errors of a token's output and of its gradients, relative to the norms there, against the masked path in
# float32 (for float64 in its own precision). In bfloat16 random tensors (600 and 1,340 prefix tokens) had 3e-3 and
# 2.4e-2 from rounding, for either path, and those of a random 7B on an H200 3e-3 and 4.8e-2; a key too many or too few
# for all tokens of a response 0.2 and more.
TOLERANCES = {
    torch.bfloat16: (1e-2, 1e-1),
    torch.float16: (2e-3, 1e-2),
    torch.float32: (1e-3, 5e-3),  # TF32, where a user switched it on
    torch.float64: (1e-8, 1e-8),
}

_verdicts: dict[tuple[str, str, torch.dtype], bool] = {}
logger = get_logger()


def agree(
    fast: Callable, portable: Callable, tensors: Tensors, shapes: Shapes, scale: float | None, names: Names
) -> bool:
    """Whether `fast` may be used for `tensors`: query [B, H, L, D], key and value [B, Hkv, L, D].

    Decided once for a name, device and dtype; where they disagree, or `fast` fails, that is logged as an error by every
    rank.
    """
    device, dtype = tensors[0].device.type, tensors[0].dtype
    if device in TRUSTED_DEVICES:
        return True
    key = (names.fast, device, dtype)
    if key not in _verdicts:
        try:
            found = difference(fast, portable, tensors, shapes, scale)
            close = all(error <= most for error, most in zip(found, TOLERANCES[dtype], strict=True))
            problem = "" if close else f"is off by {found.output:.1e} (gradients {found.gradient:.1e})"
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as failure:
            problem = f"fails ({str(failure).splitlines()[0]})"
        _verdicts[key] = not problem
        if problem:
            logger.error(
                f"APO: {names.fast} {problem} on {device} in {dtype}, compared with {names.portable} on the first "
                f"micro-batch. This run GOES ON WITH {names.portable.upper()}: right numbers, more time and memory. "
                f"Please report it{names.remedy}"
            )
        else:
            logger.info(
                f"APO: {names.fast} agrees with {names.portable} on {device} in {dtype}: {found.output:.1e}, "
                f"gradients {found.gradient:.1e}"
            )
    return _verdicts[key]


class Difference(NamedTuple):
    """Largest relative differences by token: of the output, and of the gradients of query, key and value."""

    output: float
    gradient: float


def difference(fast: Callable, portable: Callable, tensors: Tensors, shapes: Shapes, scale: float | None) -> Difference:
    """Compare two ways of attending on copies of `tensors`, forward and backward; NaN counts as infinite."""
    real = torch.zeros(tensors[0].shape[0], tensors[0].shape[2], dtype=torch.bool, device=tensors[0].device)
    for row, shape in enumerate(shapes):
        real[row, : sum(shape)] = True
    # Not of torch's own generator: the draws of a run do not depend on whether it was checked.
    generator = torch.Generator(real.device).manual_seed(0)
    exact = torch.promote_types(tensors[0].dtype, torch.float32)
    cotangent = torch.randn(tensors[0].shape, generator=generator, device=real.device, dtype=exact)
    # padding has values of no meaning
    cotangent *= real[:, None, :, None]

    def both(attend: Callable, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
        output = attend(*leaves, shapes, dropout_p=0.0, scale=scale)
        gradients = torch.autograd.grad(output, leaves, cotangent.to(dtype))
        return [output.detach() * real[:, None, :, None], *gradients]

    # Hooks of its own: those of gradient checkpointing would take this backward pass for their layer's.
    plain = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.enable_grad(), torch.autocast(real.device.type, enabled=False), plain:
        ours, theirs = both(fast, tensors[0].dtype), both(portable, exact)
    errors = []
    for got, wanted in zip(ours, theirs, strict=True):
        # [B, heads, L]: a token's error beside its own norm, or beside the usual one where its own is nearly nothing
        error, norm = (got.to(exact) - wanted).norm(dim=-1), wanted.norm(dim=-1)
        floor = norm[real[:, None].expand_as(norm)].mean()
        errors.append((error / norm.maximum(floor))[real[:, None].expand_as(norm)].max())
    output, *gradients = torch.stack(errors).nan_to_num(nan=float("inf"), posinf=float("inf")).tolist()
    return Difference(output, max(gradients))
