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

from apo.bench_counts import ATTENTION_FLOPS, Counters, films_in, plain_masks, real_tokens, watch_logps


class Finished(Exception):
    """Leaves ms-swift's training loop once no more commands come."""


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
            plain_masks(self.spec["device"]),
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
