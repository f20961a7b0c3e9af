"""Log-probabilities of response tokens straight from the hidden states, without the logits of a whole batch.

The language-model head is swapped for the length of one forward pass, inside the wrapped model, so that DDP, ZeRO and
PEFT see an ordinary call. It gathers the hidden states that predict response tokens and takes them through the head in
chunks: peak memory is chunk x vocabulary, whatever the prompt, the film and the number of responses.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

# ms-swift replaces torch.utils.checkpoint.checkpoint when training starts and forces its own use_reentrant.
from torch.utils.checkpoint import checkpoint


def chunk_logps(head: Callable, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probability in nats of each target: hidden [C, H], targets [C] -> [C] float32 (float64 stays float64)."""
    logits = head(hidden)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    picked = logits.gather(-1, targets[:, None]).squeeze(-1)
    return picked - torch.logsumexp(logits, dim=-1)


class FrozenHeadLogps(torch.autograd.Function):
    """chunk_logps for a frozen, bias-free linear head, with its gradient formed in the forward pass.

    d log p(y) / d h = W_y - sum_v p_v W_v. Forming it while the logits are at hand takes two matrix products of
    vocabulary size a chunk (logits, and probabilities times W) where checkpointing takes three.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, chunk_size):
        logps, gradients = [], []
        for states, wanted in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True):
            logits = states @ weight.t()
            logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
            # One exponential: in place the chunk's logits become exp(logit - max), their sum the normaliser.
            top = logits.amax(dim=-1, keepdim=True)
            picked = logits.gather(-1, wanted[:, None])
            total = logits.sub_(top).exp_().sum(dim=-1, keepdim=True)
            logps.append((picked - top - total.log()).squeeze(-1))
            expected = (logits.to(weight.dtype) @ weight) / total
            gradients.append((weight.index_select(0, wanted) - expected).to(weight.dtype))
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(logps)

    @staticmethod
    def backward(ctx, grad_logps):
        (gradients,) = ctx.saved_tensors
        return (grad_logps[:, None] * gradients).to(gradients.dtype), None, None, None


def selected_logps(
    head: Callable, hidden: torch.Tensor, index: torch.Tensor, targets: torch.Tensor, chunk_size: int
) -> torch.Tensor:
    """Log-probabilities of K chosen tokens.

    Args:
        head: maps [C, H] to logits [C, V].
        hidden: [B, L, H] last hidden states.
        index: [K] positions in the flattened [B * L] of the states that PREDICT the targets.
        targets: [K] token ids.
        chunk_size: tokens that pass the head at a time.

    Returns:
        [K] in nats, float32 (float64 for float64 weights).
    """
    states = hidden.flatten(0, 1).index_select(0, index)
    module = getattr(head, "__self__", head)
    trains_head = isinstance(module, nn.Module) and any(p.requires_grad for p in module.parameters())
    pieces = zip(states.split(chunk_size), targets.split(chunk_size), strict=True)
    if not (torch.is_grad_enabled() and (states.requires_grad or trains_head)):
        return torch.cat([chunk_logps(head, *piece) for piece in pieces])
    if type(module) is nn.Linear and module.bias is None and not trains_head:
        return FrozenHeadLogps.apply(states, module.weight, targets, chunk_size)
    return torch.cat([checkpoint(chunk_logps, head, *piece, use_reentrant=False) for piece in pieces])


@contextmanager
def swapped_forward(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Within this context `module` computes `forward`; afterwards what it had before, instance attribute or none."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


@contextmanager
def logps_head(model: nn.Module, index: torch.Tensor, targets: torch.Tensor, chunk_size: int) -> Iterator[None]:
    """Within this context a forward pass of `model` returns token log-probs as `logits`, shape [1, K, 1]."""
    module = model.get_output_embeddings()
    original = module.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        return selected_logps(original, hidden, index, targets, chunk_size)[None, :, None]

    with swapped_forward(module, forward):
        yield
