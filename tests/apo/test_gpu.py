"""What only a GPU can show: its attention kernels, its precision, and the launchers without `use_cpu`.

Everything here skips without one. On a GPU machine: `python -m pytest tests/apo/test_gpu.py`.
"""

import json
import math
import subprocess
import sys

import pytest
import torch

from apo import bench, self_check
from apo.attention import masked_rows, split_rows
from apo.bench_cases import CASES, Settings
from apo.windows import by_size, one_by_one
from data import checkpoints
from data.files import read_jsonl
from scripts.plan import ROOT
from tests.apo import test_self_check as wrong

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: its kernels are not tested here")

# Two studies at the head shapes of the 7B student, their responses unequal, the first row padded.
SHAPES = ((1340, 256, 201, 311), (700, 64, 1))
HEADS, KV_HEADS, SIZE = 28, 4, 128


def tensors(dtype):
    length = max(map(sum, SHAPES)) + 5
    generator = torch.Generator(DEVICE).manual_seed(0)
    sizes = (HEADS, KV_HEADS, KV_HEADS)
    return tuple(torch.randn(2, n, length, SIZE, generator=generator, device=DEVICE).to(dtype) for n in sizes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_split_attention_agrees_with_the_mask(dtype):
    given, (output, gradient) = tensors(dtype), self_check.TOLERANCES[dtype]
    found = self_check.difference(split_rows, masked_rows, given, SHAPES, None)
    assert found.output < output and found.gradient < gradient, found
    one_key_less = self_check.difference(wrong.without_last_prefix_token, masked_rows, given, SHAPES, None)
    assert one_key_less.output > output


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_windows_by_size_agree_with_one_at_a_time(dtype):
    """At the head shapes of the 7B student's vision tower: a film of 9 x 9 windows, those at its rim smaller."""
    lengths = ((64,) * 8 + (32,)) * 8 + (48,) * 8 + (24,)
    generator = torch.Generator(DEVICE).manual_seed(0)
    given = [torch.randn(1, 16, sum(lengths), 80, generator=generator, device=DEVICE).to(dtype) for _ in range(3)]
    output, gradient = self_check.TOLERANCES[dtype]
    found = self_check.difference(by_size, one_by_one, given, (lengths,), None)
    assert found.output < output and found.gradient < gradient, found
    one_patch_off = self_check.difference(
        lambda q, k, v, *a, **s: by_size(q, k.roll(1, 2), v, *a, **s), one_by_one, given, (lengths,), None
    )
    assert one_patch_off.output > output


@pytest.mark.slow
def test_shared_rows_compute_what_plain_rows_do():
    settings = Settings(prompt_tokens=300, response_tokens=60, negatives=3, studies=2, steps=1, device=DEVICE)
    result = bench.measure(settings, list(CASES))
    assert result["device"] != "cpu"
    worst = result["max_difference"]
    assert worst["token_logps"] < 1e-4 and worst["loss"] < 1e-4 and worst["gradient_relative"] < 1e-3, worst
    assert result["difference_by_case"]["stock_pairs"]["summed_logps_relative"] < 1e-5
    assert all(case["peak_mb"] > case["loaded_mb"] > 0 for case in result["cases"].values())
    flops = {name: case["flops"] for name, case in result["cases"].items()}
    assert flops["shared_split"] < flops["plain_rows"] < flops["stock_pairs"]


def run(*words, folder):
    log = folder / f"log-{len(list(folder.glob('log-*')))}.txt"
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(list(map(str, words)), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    text = log.read_text(encoding="utf-8")
    assert done.returncode == 0, text[-4000:]
    return text


@pytest.mark.slow
def test_every_stage_runs_on_a_gpu_in_bfloat16(tmp_path):
    python = (sys.executable, "-m")
    cohort, studies = tmp_path / "cohort", tmp_path / "cohort" / "studies.jsonl"
    films = ("--train", 32, "--validate", 4, "--test", 4)
    run(*python, "data.phantom", "--out", cohort, *films, "--seed", 0, folder=tmp_path)
    student = tmp_path / "student"
    run(*python, "data.phantom.student", "--out", student, "--texts", studies, "--seed", 0, folder=tmp_path)
    on_gpu = ("--use_cpu", "false", "--torch_dtype", "bfloat16", "--logging_steps", 1)
    on_gpu += ("--image_root", cohort, "--num_train_epochs", 1)

    def train(stage, config, model, dataset, *flags):
        out = tmp_path / f"{stage}{len(list(tmp_path.iterdir()))}"
        words = (*python, "scripts.launch", stage, f"configs/{config}.yaml", "--model", model, "--dataset", dataset)
        text = run(*words, "--output_dir", out, *on_gpu, *flags, folder=tmp_path)
        assert "split attention agrees with the dense mask on cuda in torch.bfloat16" in text
        assert "window attention by size agrees with one window at a time on cuda in torch.bfloat16" in text
        losses = [row["loss"] for _, row in read_jsonl(out / "logging.jsonl") if "loss" in row]
        assert len(losses) == (8 if stage == "sft" else 4) and all(map(math.isfinite, losses))
        return checkpoints.latest(out)

    learnt = train("sft", "sft_phantom", student, studies)
    compare = (*python, "apo.compare", learnt, studies, "--image-root", cohort)
    own = ("--strategy", "self", "--max-new-tokens", 8, "--cut-off", "keep", "--allow-failures")
    run(*compare, *own, "--split", "test", "--out", tmp_path / "self.jsonl", folder=tmp_path)
    consensus = tmp_path / "consensus.jsonl"
    run(*compare, "--strategy", "dawid_skene", "--out", consensus, folder=tmp_path)
    cache = json.dumps({"apo_cache_dir": str(tmp_path / "cache")})
    critiqued = train("apo", "apo_phantom", learnt, consensus, "--model_kwargs", cache)
    adapter = train("apo", "apo_phantom", learnt, consensus, "--tuner_type", "lora", "--deepspeed", "zero2")
    asked = ("--studies", consensus, "--split", "test", "--image-root", cohort, "--max-new-tokens", 8)
    for number, checkpoint in enumerate((critiqued, adapter)):
        answers = tmp_path / f"answers-{number}.jsonl"
        run(*python, "eval.predict", checkpoint, *asked, "--out", answers, folder=tmp_path)
        assert sum(1 for _ in read_jsonl(answers)) == 4
