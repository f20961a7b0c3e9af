"""The shell launchers train for real: a tiny student, four steps, one rank or two."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data.phantom.student import SHAPES, build_student

ROOT = Path(__file__).resolve().parents[2]
TEACHERS = {"a": "No pneumothorax is seen.", "b": "There is a left pleural effusion.", "c": "Clear lungs; no effusion."}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a student, twelve studies and their films (noise: only that it runs is looked at)."""
    folder = tmp_path_factory.mktemp("world")
    draw = random.Random(0)
    records = []
    for number in range(12):
        Image.frombytes("L", (112, 112), draw.randbytes(112 * 112)).save(folder / f"{number}.png")
        records.append(
            {
                "id": f"s{number}",
                "patient": f"p{number}",
                "source": "test",
                "split": "train",
                "images": [f"{number}.png"],
                "prompt": "What does this film show? <image>",
                "trajectories": [{"teacher": t, "text": text, "status": "ok"} for t, text in TEACHERS.items()],
                "consensus": {"text": "Left pleural effusion. No pneumothorax.", "strategy": "self"},
            }
        )
    (folder / "studies.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    build_student(folder / "student", seed=0, texts=list(TEACHERS.values()) * 5, shape=SHAPES["tiny"])
    return folder


def train(script, config, world, out, *words, ranks=1):
    """Run a launcher; return the loss of every step."""
    given = ["--dataset", world / "studies.jsonl", "--image_root", world, "--output_dir", out, "--logging_steps", 1]
    given += ["--per_device_train_batch_size", 4 // ranks, "--effective_batch_size", 4, "--save_strategy", "steps"]
    given += ["--save_steps", 2, "--save_total_limit", 5, "--max_steps", 4, "--dataloader_num_workers", 0, *words]
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1"}
    if ranks > 1:
        environment["NPROC_PER_NODE"] = str(ranks)
    done = subprocess.run(
        ["bash", str(ROOT / script), str(ROOT / "configs" / config), *map(str, given)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=world,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.strip().splitlines()[-1].startswith("next: ")
    log = [json.loads(line) for line in (Path(out) / "logging.jsonl").read_text().splitlines()]
    return [line["loss"] for line in log if "loss" in line]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("tuner", "weights"), [("full", "model.safetensors"), ("lora", "adapter_model.safetensors")])
@pytest.mark.parametrize(
    ("script", "config"), [("SFT-Qwen2.5.sh", "sft_phantom.yaml"), ("APO-Qwen2.5.sh", "apo_phantom.yaml")]
)
def test_a_resumed_run_is_the_uninterrupted_run(script, config, tuner, weights, ranks, world, tmp_path):
    """To the last digit: dropout of LoRA and the order of the rows come back from the saved random states."""
    from safetensors.torch import load_file

    words = ("--model", world / "student", "--tuner_type", tuner)
    whole = train(script, config, world, tmp_path / "whole", *words, ranks=ranks)
    half = tmp_path / "whole/checkpoint-2"
    resumed = train(script, config, world, tmp_path / "resumed", *words, "--resume_from_checkpoint", half, ranks=ranks)
    assert len(whole) == len(set(whole)) == 4
    assert resumed == whole[2:]
    first, second = (load_file(tmp_path / name / "checkpoint-4" / weights) for name in ("whole", "resumed"))
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)
    before = load_file(half / weights)
    assert not all(first[name].equal(before[name]) for name in first)


def test_the_same_command_begins_goes_on_and_ends(world, tmp_path):
    """`--resume_from_checkpoint last`, as a queue that requeues jobs gives it."""
    out, words = tmp_path / "o", ("--model", world / "student", "--resume_from_checkpoint", "last")

    def again():
        return train("APO-Qwen2.5.sh", "apo_phantom.yaml", world, out, *words)

    whole = again()
    shutil.rmtree(out / "checkpoint-4")
    assert again() == whole, "the log is kept up to step 2 and the two steps after it are trained anew"
    saved = (out / "checkpoint-4/model.safetensors").stat().st_mtime_ns
    assert again() == whole, "nothing is left to train"
    assert (out / "checkpoint-4/model.safetensors").stat().st_mtime_ns == saved
