"""The shell launchers train for real: a tiny student, two or three steps, one process."""

import json
import os
import random
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


def train(script, config, world, out, *words):
    """Run a launcher; return the loss of every step."""
    given = ["--dataset", world / "studies.jsonl", "--image_root", world, "--output_dir", out, "--logging_steps", 1]
    given += ["--per_device_train_batch_size", 4, "--effective_batch_size", 4, "--save_strategy", "steps"]
    given += ["--save_steps", 2, "--save_total_limit", 5, "--max_steps", 4, "--dataloader_num_workers", 0, *words]
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1"}
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


@pytest.mark.parametrize(
    ("script", "config"), [("SFT-Qwen2.5.sh", "sft_phantom.yaml"), ("APO-Qwen2.5.sh", "apo_phantom.yaml")]
)
def test_a_resumed_run_is_the_uninterrupted_run(script, config, world, tmp_path):
    from safetensors.torch import load_file

    model = ("--model", world / "student")
    whole = train(script, config, world, tmp_path / "whole", *model)
    half = tmp_path / "whole/checkpoint-2"
    resumed = train(script, config, world, tmp_path / "resumed", *model, "--resume_from_checkpoint", half)
    assert len(whole) == 4
    assert resumed == whole[2:]
    ends = [load_file(tmp_path / name / "checkpoint-4/model.safetensors") for name in ("whole", "resumed")]
    assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])
