"""Counts what a step of a benchmark case does: floating-point operations, tokens, films; and keeps its log-probs."""

import contextlib

import torch

from apo import group

aten = torch.ops.aten


def pairs_computed(query: tuple[int, ...], key: tuple[int, ...], is_causal: bool) -> int:
    """Query-key pairs of one head: all, or those of a causal square."""
    return query[2] * (query[2] + 1) // 2 if is_causal else query[2] * key[2]


def _flops(query, key, is_causal: bool) -> int:
    return 4 * query[0] * query[1] * query[3] * pairs_computed(query, key, is_causal)


def _flash_forward(query, key, value, dropout_p=0.0, is_causal=False, *args, out_shape=None, **kwargs) -> int:
    return _flops(query, key, is_causal)


def _flash_backward_cpu(grad_out, query, key, value, out, logsumexp, dropout_p, is_causal, *args, **kwargs) -> int:
    return 2 * _flops(query, key, is_causal)


def _flash_backward(grad_out, query, key, value, out, lse, cu_q, cu_k, max_q, max_k, dropout_p, is_causal, *_, **__):
    return 2 * _flops(query, key, is_causal)


def _biased_forward(query, key, value, bias, lse, dropout_p=0.0, is_causal=False, *args, out_shape=None, **kwargs):
    return _flops(query, key, is_causal)


def _efficient_backward(grad_out, query, key, value, bias, out, lse, seed, offset, p, mask, is_causal=False, **kwargs):
    return 2 * _flops(query, key, is_causal)


def _cudnn_backward(
    grad_out, query, key, value, out, lse, seed, offset, bias, cu_q, cu_k, max_q, max_k, p, is_causal, **_
):
    return 2 * _flops(query, key, is_causal)


# PyTorch counts matrix products, but not its CPU attention kernel. Of a GPU's kernels it counts all pairs of a causal
# square, and none where a key-value head serves several query heads: it refuses those shapes.
# Backward is twice the forward, as in apo/flops.py; the scores that the kernel forms again there are not counted.
ATTENTION_FLOPS = {
    aten._scaled_dot_product_flash_attention_for_cpu: _flash_forward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward_cpu,
    aten._scaled_dot_product_flash_attention: _flash_forward,
    aten._scaled_dot_product_flash_attention_backward: _flash_backward,
    aten._scaled_dot_product_efficient_attention: _biased_forward,
    aten._scaled_dot_product_efficient_attention_backward: _efficient_backward,
    aten._scaled_dot_product_cudnn_attention: _biased_forward,
    aten._scaled_dot_product_cudnn_attention_backward: _cudnn_backward,
}


@contextlib.contextmanager
def plain_masks(device: str):
    """PyTorch's causal biases cannot be made while operations are counted; on a CPU they become this mask anyway."""
    from apo import attention

    original = getattr(attention, "causal_lower_right", None)
    if original is None:
        yield
        return
    attention.causal_lower_right = lambda q, k: torch.ones(q, k, dtype=torch.bool, device=device).tril(k - q)
    try:
        yield
    finally:
        attention.causal_lower_right = original


class Counters:
    """Counts films through the vision tower and tokens through the decoder, and keeps the policy's log-probs."""

    def __init__(self, model: torch.nn.Module):
        self.reset()
        modules = dict(model.named_modules())
        embed = next(m for name, m in modules.items() if name.endswith("visual.patch_embed"))
        decoder = next(m for name, m in modules.items() if name.endswith("language_model"))
        embed.register_forward_hook(self._count_patches)
        decoder.register_forward_pre_hook(self._count_tokens, with_kwargs=True)

    def reset(self) -> None:
        self.patches = 0
        self.tokens = 0
        self.passes = 0
        self.logps: dict[str, list[torch.Tensor]] = {}

    def _count_patches(self, module, args, output) -> None:
        self.patches += output.shape[0]

    def _count_tokens(self, module, args, kwargs) -> None:
        embeds = kwargs["inputs_embeds"]
        self.tokens += embeds.shape[0] * embeds.shape[1]
        self.passes += 1

    def keep(self, **values: torch.Tensor) -> None:
        if torch.is_grad_enabled():  # the policy, not the reference
            for name, value in values.items():
                self.logps.setdefault(name, []).append(value.detach().double().cpu())


def watch_logps(trainer, spec: dict, counters: Counters) -> None:
    """Keep the log-probs of the policy's forward passes in `counters`; stock SFT shows none."""
    if spec["stock"]:
        if spec["stage"] == "critique":
            original = trainer.concatenated_forward

            def stock(*args, **kwargs):
                output = original(*args, **kwargs)
                counters.keep(chosen=output["chosen_logps"], rejected=output["rejected_logps"])
                return output

            trainer.concatenated_forward = stock
        return
    import apo.learn
    import apo.trainer

    module = apo.trainer if spec["stage"] == "critique" else apo.learn
    original_forward = module.forward_logps

    def ours(*args, **kwargs):
        logps = original_forward(*args, **kwargs)
        counters.keep(tokens=logps.tokens, sums=logps.sums)
        return logps

    module.forward_logps = ours


def real_tokens(batches: list[dict]) -> tuple[int, list[list[int]] | None]:
    """Tokens of one decoder pass without padding, and the shapes of shared rows (prefix, response 0, ...)."""
    total, shapes = 0, []
    for batch in batches:
        found = batch.get(group.BATCH_KEY, {}).get("shapes")
        if found is None:
            total += int(batch["attention_mask"].sum())
        else:
            shapes += [list(shape) for shape in found]
            total += sum(map(sum, found))
    return total, shapes or None


def films_in(batches: list[dict]) -> int:
    return sum(len(batch["image_grid_thw"]) for batch in batches)
