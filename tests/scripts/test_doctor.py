"""The doctor: what it finds, how it says it, and that it writes nothing."""

import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from data.errors import UserError
from scripts import doctor, estimate, machine, sampling
from tests.bad_input.cases import refused, run, study
from tests.bad_input.conftest import tokenizer_files, world  # noqa: F401  (fixtures)


def report_of(world, monkeypatch, *words, status=0):  # noqa: F811
    """The JSON of the doctor for the world's configuration."""
    before = world.snapshot()
    found, told = run(["doctor", *(words or [world.config()]), "--json"], monkeypatch)
    assert found == status, told
    after = world.snapshot()
    assert {name: after[name] for name in before} == before and set(after) - set(before) <= {"train.yaml"}
    return json.loads(told)


@pytest.fixture
def without_planner(monkeypatch):
    """Spares the seconds of importing transformers."""
    peak = {"process_gib": 0.5, "checkpoint_bytes": 1e9, "remedies": [], "notes": []}
    monkeypatch.setattr(estimate, "peak", lambda plan, samples, room: peak)


def test_facts_of_a_run(world, monkeypatch, without_planner):  # noqa: F811
    world.write([study(n % 3, id=f"s{n}", split="train" if n < 40 else "test") for n in range(50)])
    found = report_of(world, monkeypatch, world.config(num_train_epochs=2, per_device_train_batch_size=4))
    assert found["ok"] and [one["errors"] for one in found["runs"]] == [[], []]
    facts = found["runs"][1]["facts"]
    (data,) = facts["datasets"]
    assert (data["kind"], data["records"], data["looked_at"], data["rows"]) == ("studies", 50, 50, 40)
    assert data["answers_a_row"] == {"least": 4, "median": 4, "most": 4}
    assert "trajectories" in data["columns"] and data["tokens"]["longest_row"] < 1024
    # 16 rows a step: 4 x 4 by ms-swift's default; 40 rows are 3 steps an epoch
    plan = facts["estimate"]
    assert (plan["rows_a_step"], plan["steps"], plan["epochs"]) == (16, 6, 2)
    assert plan["tokens"] == pytest.approx(data["tokens"]["row"] * 80, rel=0.02)
    assert plan["memory_gib_a_process"] == 0.5


def test_stage_may_be_given_with_an_equals_sign():
    assert doctor.parse(["run.yaml", "--stage=apo"]) == doctor.parse(["run.yaml", "--stage", "apo"])


def test_every_finding_is_told_at_once_and_the_launcher_says_the_same(world, monkeypatch):  # noqa: F811
    world.write([study(0), study(1, consensus=None), study(2, images=["films/9.png"])])
    path = world.config(external_plugins="none.py", model="nowhere/at/all")
    errors = report_of(world, monkeypatch, path, status=2)["runs"][1]["errors"]
    for part in ("model nowhere/at/all", "none.py: no such file", "'s1': has no consensus", "films/9.png missing"):
        assert sum(part in line for line in errors) == 1, part
    refused(world, monkeypatch, ["train", "apo", path], f"train.yaml: {len(errors)} problems:")


def test_configs_of_several_kinds_and_a_machine_without_gpu(world, monkeypatch, without_planner):  # noqa: F811
    monkeypatch.setattr("scripts.plan.visible_gpus", lambda: 0)
    gpu = world.config(name="gpu.yaml", use_cpu=False)
    world.config(name="sft.yaml", beta=None)
    status, told = run(["doctor", gpu, world.folder / "sft.yaml", world.collect()], monkeypatch)
    assert status == 2, told
    assert f"{gpu} (critique)" in told and "sft.yaml (learn)" in told and "collect.yaml (collect)" in told
    assert told.count("error: ") == 1 and "trains on a GPU and none is visible" in told
    assert "of 16 rows" in told, "the rest is looked at all the same"


def test_flags_win(world, monkeypatch, without_planner):  # noqa: F811
    found = report_of(world, monkeypatch, world.config(), "--max_steps", "7")
    assert found["runs"][1]["facts"]["estimate"]["steps"] == 7
    told = report_of(world, monkeypatch, world.config(), "--max_length", "20", status=2)["runs"][1]["errors"]
    assert "studies.jsonl:1: " in told[0] and "over max_length 20" in told[0]


@pytest.mark.parametrize("loss", ["sigmoid", "plackett-luce"])
def test_a_loss_that_does_not_fit_is_told_once_and_the_launcher_says_the_same(world, monkeypatch, loss):  # noqa: F811
    wanted = {
        "sigmoid": "studies.jsonl: study records .*--loss_type sigmoid",
        "plackett-luce": "did you mean 'plackett_l",
    }
    path = world.config(loss_type=loss)
    (error,) = report_of(world, monkeypatch, path, status=2)["runs"][1]["errors"]
    assert re.search(wanted[loss], error)
    refused(world, monkeypatch, ["train", "apo", path], wanted[loss])


def test_a_broken_line_is_told_once_under_a_stock_loss(world, monkeypatch):  # noqa: F811
    row = {
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a"}],
        "rejected_response": "b",
    }
    path = world.write([row, "{"], "rows.jsonl")
    words = [world.config(loss_type="sigmoid", dataset=str(path))]
    (error,) = report_of(world, monkeypatch, *words, status=2)["runs"][1]["errors"]
    assert "rows.jsonl:2: " in error


def test_disk_that_is_too_small(world, monkeypatch, without_planner):  # noqa: F811
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 10**9, total=0, used=0))
    words = [world.config(save_steps=1, max_steps=50, save_total_limit=1)]
    assert report_of(world, monkeypatch, *words)["ok"]
    words = [world.config(save_steps=1, max_steps=50, save_total_limit=5)]
    (error,) = report_of(world, monkeypatch, *words, status=2)["runs"][1]["errors"]
    assert "2.8 GiB free, about 5.8 GiB needed (checkpoints and rows)" in error and "--save_total_limit" in error


def test_a_full_disk_of_a_job_without_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20, total=0, used=0))
    with pytest.raises(UserError, match=r"--out .*needed \(answers and records\); make room, or choose another disk$"):
        doctor.before("compare", tmp_path / "out.jsonl")


def test_disk_follows_the_strategy_of_saving():
    def checkpoints(**settings):
        return estimate.disk_bytes(SimpleNamespace(settings=settings), [], 4000, 9.5, 1.0)

    assert checkpoints() == checkpoints(save_strategy="steps") == 8 + 1
    assert checkpoints(save_strategy="epoch") == 10 + 1 and checkpoints(save_strategy="no") == 0
    assert checkpoints(save_strategy="epoch", save_total_limit="2") == checkpoints(save_total_limit="2") == 3


def test_memory_that_is_too_small_is_advice(world, monkeypatch):  # noqa: F811
    peak = {"process_gib": 90.0, "checkpoint_bytes": 0, "remedies": ["--max_pixels 1"], "notes": []}
    monkeypatch.setattr(estimate, "peak", lambda plan, samples, room: peak)
    (note,) = [n for n in report_of(world, monkeypatch)["runs"][1]["notes"] if n.startswith("memory")]
    assert "about 90.0 GiB a process are needed" in note and "try --max_pixels 1" in note


def test_the_estimate_is_the_planners(world, monkeypatch, tmp_path):  # noqa: F811
    """A released size by its name, without weights on disk: bytes as apo.memory counts them."""
    from apo import memory
    from scripts.plan import resolve
    from scripts.settings import parse_command

    words = ["--model", "Qwen/Qwen2.5-VL-3B-Instruct", "--tuner_type", "lora", "--torch_dtype", "bfloat16"]
    plan = resolve("critique", parse_command("critique", [world.config(), *words]))
    small = estimate.peak(plan, [], 80.0)
    assert 6 < small["process_gib"] < 40 and small["remedies"] == []
    assert small["checkpoint_bytes"] < 10**9
    tight = estimate.peak(plan, [], 8.0)
    assert tight["remedies"] and tight["process_gib"] == small["process_gib"] > memory.usable(8.0) / memory.GIB
    full = resolve("critique", parse_command("critique", [world.config(), *words, "--tuner_type", "full"]))
    whole = estimate.peak(full, [], 80.0)
    assert whole["process_gib"] > 2 * small["process_gib"] and whole["checkpoint_bytes"] > 3e9 * 12


def test_a_python_without_any_package():
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    call = [sys.executable, "-S", "-m", "scripts.doctor"]
    done = subprocess.run(call, cwd=machine.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: packages: ms-swift, ") and "run: bash scripts/setup.sh" in done.stderr


def test_missing_and_other_packages(monkeypatch):
    pins = machine.pins()
    assert pins["ms-swift"] and pins["pillow"]
    found = dict(pins) | {"peft": None, "torch": "1.0", "openai": None}
    monkeypatch.setattr(machine, "installed_versions", lambda names: {name: found[name] for name in names})
    errors, notes = machine.package_problems()
    assert errors == ["packages: peft, openai not installed; run: bash scripts/setup.sh"]
    assert f"torch 1.0 (pinned {pins['torch']})" in notes[0]
    assert "openai" not in machine.package_problems(set())[0][0]
    assert "openai" in machine.package_problems({"collect"})[0][0]
    with pytest.raises(UserError, match="peft not installed"):
        doctor.before("evaluate", machine.ROOT / "runs/x.jsonl")
    monkeypatch.setattr(machine.sys, "version_info", (3, 14, 0))
    assert "the pinned packages need 3.11 or 3.12" in machine.package_problems()[0][0]


def test_gpus_as_the_driver_tells_them(monkeypatch):
    said = "0, GPU-aa, NVIDIA H100 80GB HBM3, 81559, 80000\n1, GPU-bb, NVIDIA H100 80GB HBM3, 81559, 1024\nnonsense\n"
    monkeypatch.setattr(machine.shutil, "which", lambda name: name)
    monkeypatch.setattr(machine.subprocess, "run", lambda *args, **kwargs: SimpleNamespace(stdout=said))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [round(gpu["free_gib"]) for gpu in machine.gpus()] == [78, 1]
    for visible, free in (("1", [1]), ("GPU-aa", [78]), ("", []), ("0,1", [78, 1])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert [round(gpu["free_gib"]) for gpu in machine.gpus()] == free
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert machine.gpus() == []


def test_places_to_write(tmp_path):
    assert machine.write_problem("--out", tmp_path / "a/b/c") is None
    (tmp_path / "file").write_text("")
    assert "is not a folder" in machine.write_problem("--out", tmp_path / "file/b")
    assert "is not a folder" in machine.write_problem("--out", tmp_path / "file")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("lines", [0, 1, 19, 20, 21, 40, 41, 100, 101, 500])
def test_lines_that_are_looked_at(lines, tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"".join(b"%d\n\n" % n for n in range(lines)))
    count, picked = sampling.pick_lines(path)
    assert count == lines
    assert len(picked) == min(lines, 100) and len({number for number, _ in picked}) == len(picked)
    assert [number for number, _ in picked] == sorted(number for number, _ in picked)
    assert all(int(raw) * 2 + 1 == number for number, raw in picked)
    held = {int(raw) for _, raw in picked}
    assert held >= set(range(min(20, lines))) | set(range(max(0, lines - 20), lines)), "first and last are there"
    assert sampling.pick_lines(path) == (count, picked)


def test_the_middle_is_drawn_evenly(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"".join(b"%d\n" % n for n in range(50)))
    seen = [0] * 50
    for seed in range(400):
        for number, _ in sampling.pick_lines(path, ends=5, middle=10, seed=seed)[1]:
            seen[number - 1] += 1
    # 10 of 40: expected 100 of 400, standard deviation 8.7; seeds are fixed
    assert all(65 <= n <= 135 for n in seen[5:45])
    assert seen[:5] + seen[45:] == [400] * 10


def test_steps_epochs_tokens_and_bytes_by_hand(tmp_path):
    def plan(environment=None, **settings):
        return SimpleNamespace(settings={k: str(v) for k, v in settings.items()}, environment=environment or {})

    def sample(rows, tokens=None):
        facts = {"tokens": tokens and {"row": tokens}}
        return SimpleNamespace(rows=rows, facts=lambda: facts, kind="studies", path=tmp_path / "studies.jsonl")

    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    four = plan({"NPROC_PER_NODE": "2", "NNODES": "2"}, num_train_epochs=2, **batch)
    assert estimate.steps_and_tokens(four, [sample(100, 10)]) == {
        "rows": 100,
        "rows_a_step": 24,
        "steps": 10,
        "epochs": 2,
        "tokens": 2000,
    }
    limited = plan(max_steps=25, **batch)
    found = estimate.steps_and_tokens(limited, [sample(100, 10)])
    assert (found["steps"], found["epochs"], found["tokens"]) == (25, 1.5, 1500)
    assert estimate.steps_and_tokens(limited, [sample(100, 10), sample(5)])["tokens"] is None
    (tmp_path / "studies.jsonl").write_bytes(bytes(50))
    assert estimate.disk_bytes(plan(save_steps=0.25), [sample(100)], 1000, 1.0, 1000.0) == 5 * 1000 + 2 * 50
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    for settings, wanted in (
        ({"tuner_type": "full"}, 700),
        ({"tuner_type": "full", "torch_dtype": "float32"}, 300),
        ({"tuner_type": "lora"}, 0),
    ):
        assert estimate.checkpoint_bytes(plan(model=tmp_path, **settings)) == wanted


def test_memory_follows_stage_film_and_type(world):  # noqa: F811
    from apo import memory
    from scripts.plan import resolve
    from scripts.settings import parse_command

    words = ["--model", "Qwen/Qwen2.5-VL-3B-Instruct", "--tuner_type", "full", "--torch_dtype", "bfloat16"]

    def peak(stage, *more, samples=()):
        config = world.config(beta=0.1 if stage == "critique" else None)
        return estimate.peak(resolve(stage, parse_command(stage, [config, *words, *more])), samples, 80.0)

    critique, learn = peak("critique"), peak("learn")
    weights = 2 * 3_754_622_976
    assert (critique["process_gib"] - learn["process_gib"]) * memory.GIB == pytest.approx(weights), "the reference"
    # weights, and for what is trained (not the vision tower) two moments and a master copy in float32
    assert 2.9e9 < (critique["checkpoint_bytes"] - weights) / 12 < 3.2e9
    short = SimpleNamespace(lengths=[1], groups=[], facts=lambda: {"tokens": {"prompt": 100, "longest_answer": 50}})
    small, large = (peak("learn", "--max_pixels", str(n * 784), samples=[short]) for n in (96, 1280))
    assert small == large, "no film is longer than its prompt"
