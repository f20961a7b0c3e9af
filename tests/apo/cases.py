"""Studies of unequal sizes over random films, and a loaded student with its template."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torch.utils.checkpoint
import transformers.modeling_utils
from PIL import Image

from scripts.plan import free_port

ROOT = Path(__file__).parents[2]
PROMPT = "This is a patient's chest DR image <image>. Please help me determine the patient's disease."
WORDS = ["no", "left", "right", "small", "large", "effusion", "edema", "is", "seen.", "The", "heart", "**normal**\n-"]


def sentence(rng, low, high):
    return " ".join(rng.choice(WORDS, size=rng.integers(low, high)))


def make_rows(folder, *, studies=3, negatives=(7, 1, 3), films=(1, 2, 1), seed=0, size=84):
    """APO rows over random films: `negatives[i]` and `films[i]` of study i."""
    rng = np.random.default_rng(seed)
    rows = []
    for study in range(studies):
        paths = []
        for film in range(films[study]):
            path = folder / f"{seed}-{study}-{film}.png"
            pixels = rng.integers(0, 255, (size + 28 * (study % 2), size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            paths.append(str(path))
        prompt = PROMPT.replace("<image>", "<image>" * films[study])
        texts = [sentence(rng, 5, 30) for _ in range(negatives[study] + 1)]
        user = {"role": "user", "content": prompt}
        rows.append(
            {
                "messages": [user, {"role": "assistant", "content": texts[0]}],
                "negative_messages": [[{"role": "assistant", "content": text}] for text in texts[1:]],
                "images": paths,
            }
        )
    return rows


def make_many_rows(folder, seeds, **shape):
    """The rows of `make_rows` for each of the seeds 0, 1, ..., in one list."""
    return [row for seed in range(seeds) for row in make_rows(folder, seed=seed, **shape)]


def load(student_dir, family="qwen2_5_vl", **kwargs):
    from swift.model import get_model_processor
    from swift.template import get_template

    from apo.template import register_templates

    register_templates()
    settings = {"model_type": family, "torch_dtype": torch.float32, "attn_impl": "sdpa", **kwargs}
    model, processor = get_model_processor(str(student_dir), **settings)
    template = get_template(processor, template_type=family, max_length=2048, truncation_strategy="raise")
    template.set_mode("rlhf")
    template.model = model
    return model, template


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_list(value):
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def arguments(student, rows, out, stage, model_kwargs, flags):
    """The words after `swift rlhf|sft` of a small run."""
    settings = {"rlhf_type": "dpo", "loss_type": "plackett_luce"} if stage == "critique" else {}
    settings |= {
        "external_plugins": str(ROOT / "apo" / "plugin.py"),
        "model": str(student),
        "model_type": "qwen2_5_vl",
        "template": "qwen2_5_vl",
        "check_model": "false",
        "dataset": str(rows),
        "split_dataset_ratio": "0",
        "strict": "true",
        "add_version": "false",
        "attn_impl": "sdpa",
        "torch_dtype": "float32",
        "use_cpu": "true",
        "tuner_type": "lora",
        "output_dir": str(out),
        "num_train_epochs": "1",
        "logging_steps": "1",
        "learning_rate": "1e-3",
        "per_device_train_batch_size": "2",
        "gradient_accumulation_steps": "1",
        "dataloader_num_workers": "0",
        "load_from_cache_file": "false",
        "dataset_shuffle": "false",
        "train_dataloader_shuffle": "false",
        "report_to": "none",
    }
    settings.update(flags)
    if model_kwargs:
        settings["model_kwargs"] = json.dumps(model_kwargs)
    return [item for key, value in settings.items() for item in (f"--{key}", *as_list(value))]


def read_logs(out):
    """The logged training steps and the logged evaluations of a run."""
    logs = [json.loads(line) for line in (out / "logging.jsonl").read_text(encoding="utf-8").splitlines()]
    return [log for log in logs if "loss" in log], [log for log in logs if "eval_loss" in log]


def train(student, rows, out, *, stage="critique", model_kwargs=None, **flags):
    """Run stock `swift rlhf|sft` with the plugin in this process; returns what `read_logs` does."""
    from swift.pipelines import rlhf_main, sft_main

    before, checkpoint = dict(os.environ), torch.utils.checkpoint.checkpoint
    theirs = transformers.modeling_utils.checkpoint
    try:
        main = rlhf_main if stage == "critique" else sft_main
        main(arguments(student, rows, out, stage, model_kwargs, flags))
    finally:
        # model_kwargs travel as environment variables, and ms-swift replaces torch's checkpoint for good
        os.environ.clear()
        os.environ.update(before)
        torch.utils.checkpoint.checkpoint = checkpoint
        transformers.modeling_utils.checkpoint = theirs
    return read_logs(out)


def train_on_ranks(ranks, student, rows, out, *, stage="critique", model_kwargs=None, **flags):
    """The same by the command line on several processes, as a user starts it."""
    flags = {"ddp_backend": "gloo"} | flags
    words = arguments(student, rows, out, stage, model_kwargs, flags)
    ours = {
        "NPROC_PER_NODE": str(ranks),
        "MASTER_PORT": str(free_port()),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "swift.cli.main", "rlhf" if stage == "critique" else "sft", *words]
    done = subprocess.run(command, env={**os.environ, **ours}, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return read_logs(out)


def column(logs, key):
    return [log[key] for log in logs]
