"""What a training run will take, from its settings and a sample of its data: steps, tokens, memory, disk.

Steps and tokens need no torch. Memory is `apo.plan`'s formula with the sampled lengths, which needs transformers.
"""

import math
from pathlib import Path
from typing import Any

from scripts.plan import Plan
from scripts.sampling import Sample
from scripts.settings import as_bool

DEFAULT_EPOCHS = 3.0  # ms-swift's, as the ones below
DEFAULT_BATCH = 16
DEFAULT_SAVE_STEPS = 500
ANSWER = 256  # tokens, where none can be counted


def number(plan: Plan, name: str, default: float) -> float:
    """A setting that `scripts.ranges` has checked."""
    value = plan.settings.get(name)
    return default if value is None else float(str(value))


def ranks(plan: Plan) -> int:
    """Processes of the run, over all nodes."""
    return int(plan.environment.get("NPROC_PER_NODE", 1)) * int(plan.environment.get("NNODES", 1))


def steps_and_tokens(plan: Plan, samples: list[Sample]) -> dict[str, Any]:
    """{"rows", "rows_a_step", "steps", "epochs", "tokens"}: of the whole run; tokens None where they are not known."""
    rows = sum(sample.rows for sample in samples)
    micro = number(plan, "per_device_train_batch_size", 1) * ranks(plan)
    batch = micro * number(plan, "gradient_accumulation_steps", math.ceil(DEFAULT_BATCH / micro))
    epochs = number(plan, "num_train_epochs", DEFAULT_EPOCHS)
    steps = math.ceil(math.ceil(rows / batch) * epochs) if rows else 0
    most = number(plan, "max_steps", -1)
    if most > 0:
        steps, epochs = int(most), most * batch / rows if rows else 0.0
    known = all(sample.facts()["tokens"] for sample in samples if sample.rows)
    tokens = sum(sample.facts()["tokens"]["row"] * sample.rows for sample in samples if sample.rows) if known else None
    return {
        "rows": round(rows),
        "rows_a_step": int(batch),
        "steps": steps,
        "epochs": round(epochs, 2),
        "tokens": None if tokens is None else round(tokens * epochs),
    }


def peak(plan: Plan, samples: list[Sample], gpu_memory: float) -> dict[str, Any]:
    """{"process_gib", "checkpoint_bytes", "remedies", "notes"} by the formulas of apo/memory.py.

    Args:
        gpu_memory: GiB of the device that one process has for itself, for the remedies.

    Raises UserError (data.errors) where the planner does not know the model or a setting.
    """
    from apo import flops, memory, shapes
    from apo import plan as planner

    longest = [sample.facts()["tokens"] for sample in samples if sample.lengths]
    groups = max((max(sample.groups) for sample in samples if sample.groups), default=1)
    config, _ = planner.resolve_model(plan.settings, plan.config, None)
    setup, notes = planner.resolve_setup(plan.settings, ranks(plan))
    film = int(number(plan, "max_pixels", planner.FILM_TOKENS * shapes.PIXELS_A_TOKEN)) // shapes.PIXELS_A_TOKEN
    if longest:
        prompt, answer = max(one["prompt"] for one in longest), max(one["longest_answer"] for one in longest)
        film = min(film, prompt - 4)
    else:
        prompt, answer = film + planner.TEXT_TOKENS, ANSWER
        notes.append(f"memory: for answers of {answer} tokens; lengths are only known with a local qwen2_5_vl model")
    study = flops.Study(prompt, max(4, film), answer, max(1, groups))
    frozen = {"freeze_vit": setup.freeze_vit, "freeze_aligner": setup.freeze_aligner}
    counts = shapes.count(shapes.build(config), setup.rank, **frozen)
    micro = int(number(plan, "per_device_train_batch_size", 1))
    critique = plan.stage == "critique"

    def lay_out(study: flops.Study) -> flops.Layout:
        # A row of Critique is a whole study; one of Learn a single answer, unless it has several (share_prefix).
        return flops.shared(study, groups) if critique or groups > 1 else flops.rows(study, 1)

    shape = shapes.shape_of(config)
    bytes_needed = memory.needed(counts, shape, lay_out(study), study, setup, micro, critique=critique)
    remedies: list[str] = []
    if bytes_needed > memory.usable(gpu_memory):
        if micro > 1:
            remedies.append(f"--per_device_train_batch_size {micro // 2}")
        remedies += memory.remedies(counts, shape, lay_out, study, setup, gpu_memory, critique=critique)
    trained = memory.trainable(counts, setup)
    # The optimiser's state is saved in float32: two moments, and the master weights of mixed precision.
    state = 0 if as_bool(plan.settings, "save_only_model") else (12 if setup.element_bytes == 2 else 8) * trained
    weights = setup.element_bytes * counts.total if setup.full else 4 * trained
    return {
        "process_gib": bytes_needed / memory.GIB,
        "checkpoint_bytes": weights + state,
        "remedies": remedies,
        "notes": notes,
    }


def checkpoint_bytes(plan: Plan) -> float:
    """A checkpoint's size without the planner: for full fine-tuning from the weight files, for LoRA next to nothing."""
    folder = Path(str(plan.settings["model"]))
    if plan.settings.get("tuner_type") != "full" or not folder.is_dir():
        return 0.0
    weights = sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
    return weights * (3 if plan.settings.get("torch_dtype") == "float32" else 7)


def disk_bytes(plan: Plan, samples: list[Sample], steps: int, epochs: float, one_checkpoint: float) -> float:
    """Bytes that a run of `steps` in `epochs` writes: rows, the checkpoints that are kept, and one more while it is
    written."""
    each = number(plan, "save_steps", DEFAULT_SAVE_STEPS)
    saved = math.ceil(steps / each) if each >= 1 else math.ceil(1 / each)
    saved = {"no": 0, "epoch": math.ceil(epochs)}.get(str(plan.settings.get("save_strategy")), saved)
    kept = min(saved, number(plan, "save_total_limit", saved)) + 1 if saved else 0
    # Rows repeat prompt and image paths for every answer of Learn.
    rows = sum(2 * sample.path.stat().st_size for sample in samples if sample.kind == "studies")
    return kept * one_checkpoint + rows
