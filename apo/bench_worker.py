"""One case of `apo.bench` in a process of its own: ms-swift builds everything, then steps are run on command.

    python -m apo.bench_worker SPEC.json REPLY_FD      (started by apo.bench; commands on stdin, one a line)

The training loop is ms-swift's own up to the first training step: arguments, model, LoRA, template, data loader,
collator, checkpointing. There it is held: `check`, `step`, `flops`, `load` and `profile` each work on the batch of that
step; the optimizer never runs, so every step sees the same weights. A step is what stands between two optimizer
updates: forward of policy and reference, and backward, over all micro-batches.
"""

import contextlib
import ctypes
import json
import math
import os
import resource
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from apo import group

aten = torch.ops.aten


class Finished(Exception):
    """Leaves ms-swift's training loop once no more commands come."""


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
def _plain_masks(device: str):
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


def memory_mb(field: str) -> float:
    """`VmRSS` (resident now) or `VmHWM` (its peak) of this process, in MB of 10^6 bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"/proc/self/status has no {field}")


def forget_peak() -> None:
    """Let `VmHWM` start anew from what is resident now, so that loading the model does not count."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def give_back_freed() -> None:
    """Return what earlier steps freed to the kernel, where the C library can: glibc keeps it, and it would count as in
    use. The same for all cases, outside of what is timed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def fill_adapters(model: torch.nn.Module, seed: int) -> None:
    """Random LoRA weights that depend on the seed and a parameter's name alone: equal in all cases.

    Both halves are filled. With the usual zeros in B, policy and reference would be one and half of all gradients zero.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
                scale = 1 / math.sqrt(parameter.shape[-1]) if "lora_A" in name else 0.02
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


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


class Bench:
    """The commands, on one trainer held at its first step."""

    def __init__(self, spec: dict, trainer, model, batches: list[dict], items, step: Callable):
        self.spec, self.trainer, self.model, self.batches, self.items = spec, trainer, model, batches, items
        self._training_step = step
        self.counters = Counters(trainer.accelerator.unwrap_model(trainer.model))
        watch_logps(trainer, spec, self.counters)
        self.on_gpu = spec["device"] == "cuda"
        self.loaded_mb = torch.cuda.memory_allocated() / 1e6 if self.on_gpu else memory_mb("VmRSS")
        self._forget_peak()

    def _run(self) -> float:
        """One step on fresh gradients; the mean loss of its micro-batches (stock SFT: their sum)."""
        self.model.zero_grad(set_to_none=True)
        self.counters.reset()
        give_back_freed()
        self._finish()
        start = time.perf_counter()
        loss = 0.0
        for batch in self.batches:
            # The trainer takes its own keys out of what it is given.
            inputs = {key: dict(value) if isinstance(value, dict) else value for key, value in batch.items()}
            loss += float(self._training_step(self.model, inputs, self.items))
        self._finish()
        self.seconds = time.perf_counter() - start
        return loss

    def _forget_peak(self) -> None:
        try:
            if self.on_gpu:
                torch.cuda.reset_peak_memory_stats()
            else:
                forget_peak()
            self.peak_is_of_steps = True
        except OSError:
            self.peak_is_of_steps = False  # then the peak includes loading

    def _finish(self) -> None:
        """Wait for what a GPU was given to do: only then is it known how long it took."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def step(self) -> dict:
        self._run()
        return {"seconds": self.seconds}

    def check(self) -> dict:
        """One step, counted; log-probs and gradients go to check.npz in the worker's folder."""
        if "apo_cache_dir" in self.spec["model_kwargs"]:
            self._run()  # fills the reference cache; what is counted is a step that reads it
        loss = self._run()
        gradients = {
            f"grad/{name}": parameter.grad.detach().double().cpu().numpy()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and parameter.grad is not None
        }
        logps = {f"logps/{name}": torch.cat(values).numpy() for name, values in self.counters.logps.items()}
        np.savez(Path(self.spec["folder"]) / "check.npz", **gradients, **logps)
        tokens, shapes = real_tokens(self.batches)
        films = films_in(self.batches)
        patches = sum(int(batch["image_grid_thw"].prod(-1).sum()) for batch in self.batches)
        return {
            "loss": loss,
            "gradient_norm": math.sqrt(sum(float((g**2).sum()) for g in gradients.values())),
            "vision_encodes": self.counters.patches * films / patches,  # all films are of one size
            "decoder_passes": self.counters.passes / len(self.batches),
            "decoder_tokens": self.counters.tokens,
            "tokens_a_pass": tokens,
            "films_in_batch": films,
            "shapes": shapes,
        }

    def flops(self) -> dict:
        with (
            _plain_masks(self.spec["device"]),
            FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter,
        ):
            self._run()
        by_op = counter.get_flop_counts()["Global"]
        attention = sum(count for op, count in by_op.items() if op in ATTENTION_FLOPS)
        self._forget_peak()  # counting is no part of a step
        return {"flops": sum(by_op.values()), "attention_flops": attention}

    def load(self) -> dict:
        """Seconds to read the step's rows anew: film decoded, prompt and responses tokenised; then collated."""
        dataset = self.trainer.train_dataset
        start = time.perf_counter()
        rows = [dataset[i] for i in range(len(dataset))]
        encoded = time.perf_counter()
        micro = self.spec["micro_batch"]
        for at in range(0, len(rows), micro):
            self.trainer.data_collator(rows[at : at + micro])
        return {"encode_seconds": encoded - start, "collate_seconds": time.perf_counter() - encoded}

    def memory(self) -> dict:
        if self.on_gpu:
            peak = torch.cuda.max_memory_allocated() / 1e6
        elif self.peak_is_of_steps:
            peak = memory_mb("VmHWM")
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 976.5625
        return {"loaded_mb": self.loaded_mb, "peak_mb": peak, "peak_is_of_steps": self.peak_is_of_steps}

    def profile(self) -> dict:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.on_gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profiler:
            self._run()
        order = f"self_{self.spec['device']}_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60)
        return {"profile": table}


def swift_arguments(spec: dict) -> list[str]:
    """The command line of the case: every number that matters, stock names."""
    settings = {
        "model": spec["student"],
        "model_type": "qwen2_5_vl",
        "template": "qwen2_5_vl",
        "check_model": "false",
        "dataset": spec["rows"],
        "split_dataset_ratio": "0",
        "strict": "true",
        "add_version": "false",
        "attn_impl": "sdpa",
        "torch_dtype": spec["dtype"],
        # ms-swift would compute float32 weights in float16.
        "fp16": "false",
        "bf16": "true" if spec["dtype"] == "bfloat16" else "false",
        "use_cpu": "true" if spec["device"] == "cpu" else "false",
        "tuner_type": "lora",
        "lora_rank": "8",
        "target_modules": "all-linear",
        # Dropout draws other numbers for other shapes; preference training switches it off anyway.
        "lora_dropout": "0",
        "freeze_vit": "true",
        "output_dir": str(Path(spec["folder"]) / "out"),
        "per_device_train_batch_size": str(spec["micro_batch"]),
        "gradient_accumulation_steps": str(spec["accumulation"]),
        "max_steps": "1",
        "save_strategy": "no",
        "dataloader_num_workers": "0",
        "load_from_cache_file": "false",
        "dataset_shuffle": "false",
        "train_dataloader_shuffle": "false",
        "seed": str(spec["seed"]),
        "report_to": "none",
    }
    if spec["stage"] == "critique":
        settings |= {"rlhf_type": "dpo", "loss_type": "sigmoid" if spec["stock"] else "plackett_luce"}
    if spec["model_kwargs"]:
        settings["model_kwargs"] = json.dumps(spec["model_kwargs"])
    return [item for key, value in settings.items() for item in (f"--{key}", value)]


@contextlib.contextmanager
def held_at_first_step(trainer, hold: Callable):
    """Within this context `trainer.train()` calls `hold(model, batches, items, step)` in place of its first step."""
    batches: list[dict] = []
    original_samples, original_step = trainer.get_batch_samples, trainer.training_step

    def get_batch_samples(*args, **kwargs):
        samples, items = original_samples(*args, **kwargs)
        batches[:] = samples
        return samples, items

    def training_step(model, inputs, num_items_in_batch=None, *args):
        hold(model, batches, num_items_in_batch, original_step)
        raise Finished

    trainer.get_batch_samples, trainer.training_step = get_batch_samples, training_step
    try:
        yield
    finally:
        del trainer.get_batch_samples, trainer.training_step


def run(spec: dict, hold: Callable) -> None:
    """Build the case as `swift rlhf|sft` would and call `hold(bench)` at its first training step."""
    from swift.pipelines.train.rlhf import SwiftRLHF
    from swift.pipelines.train.sft import SwiftSft
    from swift.trainers import TrainerFactory

    from apo.template import register_templates

    # For the placeholder ids of a vocabulary that is not Qwen's; a stock row is otherwise encoded by stock code.
    register_templates()
    if not spec["stock"]:
        TrainerFactory.TRAINER_MAPPING |= {"dpo": "apo.trainer.APOTrainer", "causal_lm": "apo.learn.LearnTrainer"}

    def train(self, trainer):
        fill_adapters(trainer.model, spec["seed"])

        def held(model, batches, items, step):
            hold(Bench(spec, trainer, model, batches, items, step))

        with held_at_first_step(trainer, held):
            try:
                trainer.train()
            except Finished:
                return
        raise RuntimeError(f"{spec['name']}: training ended before its first step")

    base = SwiftRLHF if spec["stage"] == "critique" else SwiftSft
    pipeline = type("BenchPipeline", (base,), {"train": train})
    pipeline(swift_arguments(spec)).main()


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    with os.fdopen(int(sys.argv[2]), "w", encoding="utf-8") as replies:

        def reply(answer: dict) -> None:
            replies.write(json.dumps(answer) + "\n")
            replies.flush()

        def hold(bench: Bench) -> None:
            name = torch.cuda.get_device_name() if spec["device"] == "cuda" else "cpu"
            reply({"ready": True, "threads": torch.get_num_threads(), "device": name})
            for line in sys.stdin:
                reply(getattr(bench, line.strip())())

        run(spec, hold)


if __name__ == "__main__":
    main()
