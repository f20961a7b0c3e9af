"""The launchers: every shipped configuration resolves, flags win, bad input is refused before a model is loaded."""

import errno
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from safetensors.numpy import save

from data.errors import UserError
from data.phantom.qwen_tokenizer import save_tokenizer, train_bpe
from scripts import arguments, launch, plan, settings, training_data

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.name.startswith(("sft_", "apo_")))
# Rows that no dry run finds here, whatever has been run in this checkout.
STOCK = ("--dataset", "someone/pairs", "--loss_type", "sigmoid")
ROWS = ("--model_kwargs", '{"apo_layout": "rows"}')
PHANTOM = {"sft": str(ROOT / "configs/sft_phantom.yaml"), "apo": str(ROOT / "configs/apo_phantom.yaml")}
TEACHERS = {"a": "No pneumothorax.", "b": "There is a left pleural effusion.", "c": "Clear lungs; no effusion."}


def method_of(config: Path) -> str:
    return config.name.split("_")[0]


@pytest.fixture(autouse=True)
def no_world(monkeypatch):
    for name in plan.WORLD_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpus(monkeypatch):
    """Set the number of GPUs that the launcher sees."""

    def see(count):
        monkeypatch.setattr(plan, "visible_gpus", lambda: count)

    see(0)
    return see


@pytest.fixture
def model(tmp_path):
    """What the launcher looks at in a checkpoint folder; no weights that anyone could load."""
    folder = tmp_path / "student"
    folder.mkdir()
    save_tokenizer(train_bpe(list(TEACHERS.values()) * 3, 300), folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    (folder / "processor_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(save({}))
    return folder


@pytest.fixture
def studies(tmp_path):
    """Three studies of the split train and one to validate, with a consensus."""
    (tmp_path / "cohort/films").mkdir(parents=True)
    records = []
    for number, split in enumerate(["train", "train", "train", "validate"]):
        image = f"films/{number}.png"
        Image.new("L", (112, 84), 40 * number).save(tmp_path / "cohort" / image)
        trajectories = [{"teacher": t, "text": text, "status": "ok"} for t, text in TEACHERS.items()]
        trajectories.append({"teacher": "d", "text": "", "status": "empty"})
        records.append(
            {
                "id": f"s{number}",
                "patient": f"p{number}",
                "source": "test",
                "split": split,
                "images": [image],
                "prompt": "What does this film show? <image>",
                "trajectories": trajectories,
                "consensus": {"text": "Left pleural effusion. No pneumothorax.", "strategy": "self"},
            }
        )
    return write(tmp_path / "cohort/studies.jsonl", records)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def ran(monkeypatch):
    """Catch the plans that would be run; the run ends with the status in `ran.status`."""

    class Ran(list):
        status = 0

    plans = Ran()

    def execute(one, lock):
        plans.append(one)
        return plans.status

    monkeypatch.setattr(launch, "execute", execute)
    return plans


def dry(capsys, *words):
    assert launch.main([*map(str, words), "--dry-run"]) == 0
    return capsys.readouterr().out


def flag(text, name):
    """The words after --NAME in a printed command, joined."""
    found = [line.strip().removesuffix(" \\") for line in text.splitlines() if line.strip().startswith(f"--{name} ")]
    assert len(found) == 1, f"--{name} stands {len(found)} times"
    return found[0].removeprefix(f"--{name} ")


# ---- configurations


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_dry_runs(config, capsys, gpus, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    out = dry(capsys, method_of(config), config)
    assert f"swift.cli.main {'sft' if method_of(config) == 'sft' else 'rlhf'}" in out
    assert flag(out, "external_plugins") == str(ROOT / "apo/plugin.py")
    assert flag(out, "strict") == "true"
    assert flag(out, "add_version") == "false"
    assert "effective_batch_size" not in out.replace("# effective", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_opens_with_its_launch_line(config):
    script = settings.SCRIPTS[launch.STAGES[method_of(config)]]
    head = config.read_text().split("\n\n")[0]
    assert f"bash {script}" in config.read_text().split("\nmodel:")[0]
    assert head.startswith("# ")


def test_shipped_configs_are_in_the_table():
    table = (ROOT / "configs/README.md").read_text()
    assert [c.name for c in CONFIGS if f"`{c.name}`" not in table] == []


@pytest.mark.parametrize(
    ("method", "published"),
    [
        (
            "sft",
            {
                "learning_rate": "0.0001",
                "max_length": "2304",
                "eval_steps": "200",
                "save_steps": "200",
                "model": "Qwen/Qwen2.5-VL-7B-Instruct",
            },
        ),
        (
            "apo",
            {
                "learning_rate": "5e-07",
                "max_length": "4096",
                "eval_steps": "100",
                "save_steps": "100",
                "deepspeed": "zero2",
                "rlhf_type": "dpo",
                "loss_type": "plackett_luce",
            },
        ),
    ],
)
def test_the_default_is_the_published_setting_on_two_gpus(method, published, capsys, gpus):
    gpus(2)
    out = dry(capsys, method)
    published |= {
        "lora_rank": "8",
        "lora_alpha": "32",
        "target_modules": "all-linear",
        "torch_dtype": "bfloat16",
        "warmup_ratio": "0.05",
        "num_train_epochs": "1",
        "per_device_train_batch_size": "2",
        "gradient_accumulation_steps": "8",
        "save_total_limit": "5",
    }
    assert {name: flag(out, name) for name in published} == published
    assert "NPROC_PER_NODE=2" in out


# ---- flags


def test_flags_win_over_the_file(capsys, gpus):
    out = dry(capsys, "sft", PHANTOM["sft"], "--learning_rate=5e-3", "--lora-rank", "4", "--max_steps", "-1")
    assert flag(out, "learning_rate") == "5e-3"
    assert flag(out, "lora_rank") == "4"
    assert flag(out, "max_steps") == "-1"


def test_lists_and_bare_flags(capsys, gpus):
    words = ["--target_modules", "q_proj", "v_proj", "--lazy_tokenize", "--no_dataset_shuffle", "--system", "two words"]
    out = dry(capsys, "sft", PHANTOM["sft"], *words)
    assert flag(out, "target_modules") == "q_proj v_proj"
    assert flag(out, "lazy_tokenize") == "true"
    assert flag(out, "dataset_shuffle") == "false"
    assert flag(out, "system") == "'two words'"


def test_own_plugins_come_after_ours(capsys, gpus):
    out = dry(capsys, "apo", PHANTOM["apo"], "--external_plugins", "mine.py")
    assert flag(out, "external_plugins") == f"{ROOT / 'apo/plugin.py'} mine.py"


def test_another_loss_is_left_to_stock_dpo(capsys, gpus):
    assert flag(dry(capsys, "apo", PHANTOM["apo"], *STOCK), "loss_type") == "sigmoid"
    out = dry(capsys, "apo", PHANTOM["apo"], *STOCK, "sft", "--loss_weights", "1", "0.5")
    assert flag(out, "loss_type") == "sigmoid sft"


def test_stock_losses_are_those_of_the_installed_versions():
    """As its trainer lists them; reading the file spares the import."""
    source = Path(importlib.util.find_spec("swift").origin).parent / "rlhf_trainers/dpo_trainer.py"
    listed = source.read_text().split("Should be one of [")[1].split("]")[0]
    assert set(re.findall(r"'(\w+)'", listed)) == set(training_data.STOCK_LOSSES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sft", "--learning_rat", "1"], r"^unknown flag --learning_rat; did you mean learning_rate\?$"),
        (["sft", "--train_type", "lora"], r"did you mean tuner_type\?"),
        (["sft", "--beta", "0.1"], r"unknown flag --beta; it belongs to the other stage, bash APO-Qwen2.5.sh"),
        (["sft", "--qqqqqq", "1"], r"swift sft --help"),
        (["apo", "config.json"], r"config.json: is no .yaml file"),
        (["apo", "--", "x"], r"belongs to no flag"),
        (["sft", "--dry-run", "yes"], r"takes no value"),
        (["train"], r"sft\|apo"),
        (["sft", "none.yaml"], r"none.yaml: cannot be read"),
        (["sft", "--learning_rate", "--seed", "1"], r"^--learning_rate needs a value$"),
        (["sft", "--no_learning_rate"], r"unknown flag --no_learning_rate"),
        (["sft", "--seed", "1", "my.yaml"], r"^--seed 1 my.yaml: a configuration stands before all flags; write: bash"),
        (["sft", "--lazy_tokenize", "my.yaml"], r"my.yaml: a configuration stands before all flags"),
        (["sft", "--add_version", "true"], r"add_version"),
        (["apo", PHANTOM["apo"], "--model_kwargs", '{"apo_layot": "rows"}'], r"did you mean apo_layout"),
        (["apo", PHANTOM["apo"], "--model_kwargs", "[1]"], r"JSON object"),
        (["apo", PHANTOM["apo"], "--on_identical", "drop"], r"on_identical drop: must be error or drop-negative"),
        (["sft", PHANTOM["sft"], "--use_cpu", "maybe"], r"use_cpu maybe: must be true or false"),
        (
            ["apo", PHANTOM["apo"], "--loss_type", "plackett-luce"],
            r"loss_type plackett-luce: did you mean 'plackett_luce",
        ),
        (["sft", PHANTOM["sft"], "--tuner_type", "lorra"], r"--tuner_type lorra: did you mean 'lora'\?"),
        (["apo", PHANTOM["apo"], "--optimizer", "moun"], r"--optimizer moun: did you mean 'muon'\?"),
        (["sft", PHANTOM["sft"], "--eval_metric", "accc"], r"--eval_metric accc: did you mean 'acc'\?"),
        (["sft", PHANTOM["sft"], "--callbacks", "lisa", "early"], r"--callbacks lisa early: did you mean 'early_stop'"),
        (["apo", PHANTOM["apo"], "--report_to", "tensorbord"], r"--report_to tensorbord: did you mean 'tensorboard'"),
        (["sft", PHANTOM["sft"], "--attn_impl", "spda"], r"attn_impl spda: did you mean 'sdpa'\?"),
        (["apo", PHANTOM["apo"], "--loss_type", "sigmoid", "hing"], r"loss_type hing: did you mean 'hinge'\?"),
        (["apo", PHANTOM["apo"], "--loss_type", "pairwise", "sft"], r"pairwise stands alone; .*--rpo_alpha"),
        (["apo", PHANTOM["apo"], "--loss_type", "pairwize", *ROWS], r"pairwize: did you mean 'pairwise'"),
        (["apo", PHANTOM["apo"], "--loss_type", "sigmoid", *ROWS], "apo_layout: not read by this kind of training"),
        (["sft", PHANTOM["sft"], *ROWS, "--share_prefix", "false"], "apo_layout: not read by this kind of training"),
    ],
)
def test_bad_command_lines(words, message, gpus, capsys):
    with pytest.raises(UserError, match=message):
        launch.main([*words, "--dry-run"] if words != ["sft", "--dry-run", "yes"] else words)


@pytest.mark.parametrize("name", ["tuner_type", "optimizer", "callbacks", "eval_metric"])
def test_what_a_plugin_may_add_to_is_left_to_it(name, capsys, gpus):
    words = [PHANTOM["sft"], f"--{name}", "mine"]
    assert flag(dry(capsys, "sft", *words, "--external_plugins", "mine.py"), name) == "mine"
    with pytest.raises(UserError, match=f"--{name} mine: "):
        launch.main(["sft", *words, "--dry-run"])


def test_choices_of_several_and_kernels_of_the_hub_pass(capsys, gpus):
    words = ["--report_to", "tensorboard", "wandb", "--attn_impl", "kernels-community/flash-attn2"]
    out = dry(capsys, "sft", PHANTOM["sft"], *words)
    assert "--report_to tensorboard wandb" in out and flag(out, "attn_impl") == words[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\n\nlearning_rat: 1\n", r"c.yaml:3: unknown key learning_rat; did you mean learning_rate\?$"),
        ("seed: 1\nmodel: m\nseed: 2\n", r"c.yaml:3: key seed stands twice \(line 1 too\)"),
        ("seed: [1\n", r"c.yaml:\d+: not YAML"),
        ("- seed\n", r"c.yaml: must hold"),
        ("", r"c.yaml: holds no setting; copy one of configs/"),
        ("# model: m\n{}\n", r"c.yaml: holds no setting"),
        ("model: null\n", r"c.yaml: holds no setting"),
        ("model: m\n", r"c.yaml: no dataset; write it there or pass --dataset"),
    ],
)
def test_bad_config_files(text, message, tmp_path, gpus):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        launch.main(["sft", str(tmp_path / "c.yaml"), "--dry-run"])


def test_null_means_unset(tmp_path, capsys, gpus):
    (tmp_path / "c.yaml").write_text("model: m\ndataset: d.jsonl\noutput_dir: o\nuse_cpu: true\nmax_length: null\n")
    assert "--max_length" not in dry(capsys, "sft", tmp_path / "c.yaml")


def test_table_of_arguments_is_of_the_installed_versions():
    """If this fails the pinned versions have changed: python -m scripts.arguments --write."""
    table = json.loads(arguments.TABLE.read_text())
    assert table["versions"] == arguments.installed_versions()
    assert table["arguments"] == arguments.ask_swift()


# ---- processes and batch


@pytest.mark.parametrize(("processes", "steps"), [(1, 16), (2, 8), (4, 4), (8, 2)])
def test_effective_batch_is_kept(processes, steps, capsys, gpus, monkeypatch):
    gpus(8)
    monkeypatch.setenv("NPROC_PER_NODE", str(processes))
    assert flag(dry(capsys, "sft"), "gradient_accumulation_steps") == str(steps)


def test_nodes_count_too(capsys, gpus, monkeypatch):
    gpus(2)
    for name, value in {"NNODES": 2, "NODE_RANK": 1, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": 29501}.items():
        monkeypatch.setenv(name, str(value))
    out = dry(capsys, "sft")
    assert flag(out, "gradient_accumulation_steps") == "4"
    assert "MASTER_ADDR=10.0.0.1 MASTER_PORT=29501 NNODES=2 NODE_RANK=1 NPROC_PER_NODE=2" in out
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(UserError, match="NNODES=2 needs MASTER_ADDR"):
        launch.main(["sft", "--dry-run"])


def test_what_does_not_divide_is_refused_with_the_nearest(gpus, monkeypatch):
    gpus(3)
    monkeypatch.setenv("NPROC_PER_NODE", "3")
    with pytest.raises(UserError, match=r"effective_batch_size 32 .*\(2 x 3 = 6\); the nearest that fit: 30, 36"):
        launch.main(["sft", "--dry-run"])


def test_accumulation_by_flag_replaces_the_effective_batch(capsys, gpus):
    assert flag(dry(capsys, "sft", "--gradient_accumulation_steps", "3"), "gradient_accumulation_steps") == "3"
    with pytest.raises(UserError, match="flags: effective_batch_size and gradient_accumulation_steps"):
        launch.main(["sft", "--gradient_accumulation_steps", "3", "--effective_batch_size", "6", "--dry-run"])


def test_no_gpu_names_the_phantom_config(gpus):
    with pytest.raises(UserError, match=r"none is visible; .*bash APO-Qwen2.5.sh configs/apo_phantom.yaml"):
        launch.main(["apo"])


def test_more_processes_than_gpus(gpus, monkeypatch):
    gpus(2)
    monkeypatch.setenv("NPROC_PER_NODE", "4")
    with pytest.raises(UserError, match="NPROC_PER_NODE=4, but 2 GPU"):
        launch.main(["sft"])


@pytest.mark.parametrize("value", ["two", "0", "-1"])
def test_nonsense_in_the_environment(value, gpus, monkeypatch):
    monkeypatch.setenv("NPROC_PER_NODE", value)
    with pytest.raises(UserError, match=f"NPROC_PER_NODE {value}"):
        launch.main(["sft", PHANTOM["sft"], "--dry-run"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"NODE_RANK": "1"}, "NODE_RANK=1: with NNODES=1"),
        ({"NODE_RANK": "2", "NNODES": "2", "MASTER_ADDR": "a", "MASTER_PORT": "29501"}, "from 0 to 1"),
        ({"NODE_RANK": "foo", "NNODES": "2", "MASTER_ADDR": "a", "MASTER_PORT": "29501"}, "NODE_RANK=foo"),
    ],
)
def test_a_node_that_could_only_wait_is_refused(given, message, gpus, monkeypatch):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        launch.main(["sft", PHANTOM["sft"], "--dry-run"])


def test_yaml_reads_no_as_false_and_strategies_mean_the_word(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("save_strategy: no\neval_strategy: 'no'\nuse_cpu: no\nlogging_strategy: steps\n")
    found = settings.read_config("learn", path)
    assert found == {"save_strategy": "no", "eval_strategy": "no", "use_cpu": "false", "logging_strategy": "steps"}


def test_one_gpu_runs_without_torchrun_unless_deepspeed_wants_it(capsys, gpus):
    gpus(1)
    assert "NPROC_PER_NODE" not in dry(capsys, "sft")
    assert "NPROC_PER_NODE=1" in dry(capsys, "apo")


def test_all_gpus_are_not_taken_silently(capsys, gpus):
    gpus(8)
    out = dry(capsys, "sft")
    assert "NPROC_PER_NODE=2" in out
    assert "8 GPUs visible, 2 used as published; NPROC_PER_NODE=8 uses all" in out


def test_cpu_hides_gpus_and_ranks_talk_by_gloo(capsys, gpus, monkeypatch):
    monkeypatch.setattr(plan, "visible_gpus", lambda: pytest.fail("a CPU run asked for GPUs"))
    assert "CUDA_VISIBLE_DEVICES=''" in dry(capsys, "sft", PHANTOM["sft"])
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    out = dry(capsys, "sft", PHANTOM["sft"])
    assert flag(out, "ddp_backend") == "gloo"
    assert flag(out, "gradient_accumulation_steps") == "1"


def test_float32_on_a_gpu_says_that_it_is_computed_in_float16(capsys, gpus):
    gpus(2)
    for stage in ("sft", "apo"):
        assert "computes in float16" in dry(capsys, stage, "--torch_dtype", "float32")
        assert "computes in float16" not in dry(capsys, stage)
        assert "computes in float16" not in dry(capsys, stage, PHANTOM[stage])
        for flags in (("--bf16", "true", "--fp16", "false"), ("--fp16", "false")):
            assert "computes in float16" not in dry(capsys, stage, "--torch_dtype", "float32", *flags)


def test_flash_attention_falls_back_aloud(capsys, gpus, monkeypatch):
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None)
    out = dry(capsys, "sft")
    assert flag(out, "attn_impl") == "sdpa"
    assert "flash-attn is not installed" in out
    with pytest.raises(UserError, match="packing needs flash-attn"):
        launch.main(["sft", "--packing", "true", "--dry-run"])
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: object())
    assert flag(dry(capsys, "sft"), "attn_impl") == "flash_attn"


REFUSED = [
    ("packing", "true"),
    ("padding_free", "true"),
    ("sequence_parallel_size", "2"),
    ("use_liger_kernel", "true"),
    ("padding_side", "left"),
    ("loss_scale", "react"),
    ("loss_scale", "all"),
    ("loss_scale", "last_round+ignore_empty_think"),
    ("truncation_strategy", "left"),
    ("truncation_strategy", "right"),
    ("truncation_strategy", "split"),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_would_cut_studies_is_refused_first(capsys, gpus, name, value):
    """Before the model is looked at: none of these paths exists."""
    given = [f"--{name}", value, "--dry-run"]
    with pytest.raises(UserError, match=rf"^--{name} {value.replace('+', '.')} .*(set it to|use) "):
        launch.main(["apo", *given])
    with pytest.raises(UserError, match=f"^--{name} "):
        launch.main(["sft", "--share_prefix", "true", *given])
    # plain rows and stock DPO are ms-swift's own business
    assert flag(dry(capsys, "apo", PHANTOM["apo"], *STOCK, f"--{name}", value), name) == value
    rows = ("--share_prefix", "false")
    assert flag(dry(capsys, "sft", PHANTOM["sft"], *rows, f"--{name}", value), name) == value


def test_film_sizes_of_the_environment_become_settings(model, studies, tmp_path, ran, monkeypatch):
    monkeypatch.setenv("MAX_PIXELS", "3136")
    given = ("--model_kwargs", '{"MIN_PIXELS": 784}')
    with pytest.raises(UserError, match=r"model_kwargs: a film of at least 9 and at most 4 tokens"):
        run("sft", model, studies, tmp_path / "o", "--model_kwargs", '{"image_min_token_num": 9}')
    run("sft", model, studies, tmp_path / "o", *given)
    assert json.loads(ran[0].settings["model_kwargs"]) == {"MIN_PIXELS": 784, "max_pixels": "3136"}
    assert any("MAX_PIXELS=3136; written into model_kwargs" in note for note in ran[0].notes)
    assert training_data.length_inputs(ran[0])[2] == (12544, 1, 4)
    monkeypatch.setenv("MAX_PIXELS", "many")
    with pytest.raises(UserError, match="environment: MAX_PIXELS many: must be a whole number above 0; mend"):
        run("sft", model, studies, tmp_path / "o2")


def test_options_of_ours_are_checked_in_both_stages(capsys, gpus):
    for method in ("sft", "apo"):
        with pytest.raises(UserError, match="model_kwargs: apo_cache_dir null: leave the option out"):
            dry(capsys, method, *STOCK, "--model_kwargs", '{"apo_cache_dir": null}')
        with pytest.raises(UserError, match="unknown option apo_chunksize .* did you mean apo_chunk_size"):
            launch.main([method, "--model_kwargs", '{"apo_chunksize": 8}', "--dry-run"])


@pytest.mark.parametrize(
    "text",
    [
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1, "num_hidden_layers": 3},
        {"text_config": {"layer_types": ["full_attention", *["sliding_attention"] * 2], "num_hidden_layers": 3}},
    ],
)
def test_a_model_with_a_sliding_window(model, studies, tmp_path, ran, text):
    (model / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", **text}))
    with pytest.raises(UserError, match=r"student: 2 of its 3 layers look through a sliding window.*apo_layout"):
        run("apo", model, studies, tmp_path / "o")
    assert ran == []
    run("apo", model, studies, tmp_path / "o", "--model_kwargs", '{"apo_layout": "rows"}')
    run("sft", model, studies, tmp_path / "p", "--share_prefix", "false")
    assert len(ran) == 2
    window = {"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 1, "num_hidden_layers": 3}
    (model / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", **window}))
    run("apo", model, studies, tmp_path / "q")


# ---- model


def test_missing_model(gpus, studies, tmp_path):
    words = ["apo", PHANTOM["apo"], "--dataset", str(studies), "--output_dir", str(tmp_path / "o")]
    for model in ("runs/none/checkpoint-9", "./none", "/none", "none"):
        with pytest.raises(UserError, match=f"model {model}: no such folder"):
            launch.main([*words, "--model", model])
    assert not (tmp_path / "o").exists()


def test_hub_names_pass(gpus, studies, tmp_path, ran, monkeypatch):
    monkeypatch.chdir(tmp_path)
    launch.main(
        [
            "sft",
            PHANTOM["sft"],
            "--dataset",
            str(studies),
            "--model",
            "Qwen/Qwen2.5-VL-7B-Instruct",
            "--output_dir",
            "o",
        ]
    )
    assert ran[0].settings["model"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert "check_model" not in ran[0].settings


def test_an_adapter_is_no_model(gpus, model, tmp_path):
    adapter = tmp_path / "checkpoint-5"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    (adapter / "adapter_model.safetensors").write_bytes(save({}))
    with pytest.raises(UserError, match=f"merge it first .*--merge_lora true.*--model {model} --adapters {adapter}"):
        launch.main(["apo", PHANTOM["apo"], "--model", str(adapter)])
    with pytest.raises(UserError, match="is a full model, not an adapter"):
        launch.main(["apo", PHANTOM["apo"], "--model", str(model), "--adapters", str(model)])


def test_a_model_of_another_family_than_the_configs(gpus, model):
    (model / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    call = ["sft", PHANTOM["sft"], "--model", str(model)]
    with pytest.raises(UserError, match="model_type qwen2_5_vl: the model .* is of qwen3_vl; pass --model_type qwen3"):
        launch.main([*call, "--dry-run"])
    assert launch.main([*call, "--model_type", "qwen3_vl", "--template", "qwen3_vl", "--dry-run"]) == 0


def test_reference_of_an_adapter_is_that_adapter(capsys, gpus):
    out = dry(capsys, "apo", PHANTOM["apo"], "--adapters", "learn/checkpoint-5")
    assert flag(out, "ref_adapters") == "learn/checkpoint-5"
    assert "reference = the stage-one adapter" in out
    out = dry(capsys, "apo", PHANTOM["apo"], "--adapters", "a", "--ref_adapters", "b")
    assert flag(out, "ref_adapters") == "b"
    assert "--ref_adapters" not in dry(capsys, "sft", PHANTOM["sft"], "--adapters", "a")


# ---- data


def run(method, model, studies, out, *words, config=None):
    given = ["--model", model, "--dataset", studies, "--output_dir", out, *words]
    # The phantom config takes its films from the quickstart's folder.
    root = ["--image_root", Path(str(studies)).parent] if method == "apo" and "--image_root" not in words else []
    return launch.main([method, str(config or PHANTOM[method]), *map(str, [*given, *root])])


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.parametrize(("share", "rows"), [("false", (9, 3)), ("true", (3, 1))])
def test_study_records_become_sft_rows(model, studies, tmp_path, ran, capsys, share, rows):
    assert run("sft", model, studies, tmp_path / "o", "--share_prefix", share) == 0
    used = ran[0].settings
    assert used["dataset"] == [str(tmp_path / "o/rows/train.jsonl")]
    assert used["val_dataset"] == [str(tmp_path / "o/rows/validate.jsonl")]
    assert (len(lines(used["dataset"][0])), len(lines(used["val_dataset"][0]))) == rows
    assert used["model"] == str(model)
    assert used["check_model"] == "false"
    assert not {"image_root", "effective_batch_size", "check_images", "share_prefix"} & used.keys()
    out = capsys.readouterr().out
    assert f"{rows[0]} rows from 3 studies" in out
    assert "empty 3" in out
    assert "longest row" in out


def test_study_records_become_apo_rows(model, studies, tmp_path, ran):
    run("apo", model, studies, tmp_path / "o")
    rows = lines(ran[0].settings["dataset"][0])
    assert [len(row["negative_messages"]) for row in rows] == [3, 3, 3]
    assert not [key for key in ran[0].settings if key.startswith("on_")]


def test_rows_pass_as_they_are(model, studies, tmp_path, ran, capsys):
    run("apo", model, studies, tmp_path / "o")
    rows = Path(ran[0].settings["dataset"][0])
    with pytest.raises(UserError, match=r"lies outside the image root .*--allow-outside"):
        run("apo", model, rows, tmp_path / "p", "--image_root", tmp_path / "student")
    run("apo", model, f"{rows}#2", tmp_path / "p", "--image_root", studies.parent)
    assert ran[1].settings["dataset"] == [f"{rows}#2"]
    assert "val_dataset" not in ran[1].settings
    assert not (tmp_path / "p/rows").exists()
    assert f"{rows}: 3 rows, checked" in capsys.readouterr().out


def test_stock_losses_take_only_rows_with_one_rejected_response(model, studies, tmp_path, ran):
    """The trainer would say so after the rows are written and the model is loaded."""
    run("apo", model, studies, tmp_path / "o")
    made = lines(ran.pop().settings["dataset"][0])
    pairs = [{**row, "rejected_response": row["negative_messages"][0][0]["content"]} for row in made]
    for row in pairs:
        row["negative_messages"] = None
    stock = ("--loss_type", "sigmoid", "--val_dataset")
    mixed, pairs = write(tmp_path / "mixed.jsonl", [*pairs, made[0]]), write(tmp_path / "pairs.jsonl", pairs)
    refusals = {
        studies: r"studies.jsonl: study records .*--loss_type sigmoid .*rejected_response.*--loss_type pairwise",
        mixed: r"mixed.jsonl:4: negative_messages .*--loss_type sigmoid .*rejected_response.*--loss_type pairwise",
    }
    for bad, message in refusals.items():
        for train, validate in ((bad, pairs), (pairs, bad)):
            for words in ((), ("--dry-run",)):
                given = (*stock, validate, "--image_root", studies.parent, *words)
                with pytest.raises(UserError, match=message):
                    run("apo", model, train, tmp_path / "p", *given)
    assert ran == [] and not (tmp_path / "p").exists()
    run("apo", model, pairs, tmp_path / "p", *stock, pairs, "--image_root", studies.parent)
    with pytest.raises(UserError, match=r"pairs.jsonl:1: rejected_response .*plackett_luce .*negative_messages; write"):
        run("apo", model, pairs, tmp_path / "q", "--image_root", studies.parent)
    assert ran[0].settings["dataset"] == ran[0].settings["val_dataset"] == [str(pairs)]


def test_smoothed_weights_are_refused_before_a_model_is_loaded(model, studies, tmp_path, ran):
    changed = lines(studies)
    changed[1]["consensus"]["audit"] = {"negative_weights": {changed[1]["trajectories"][0]["teacher"]: 2.0}}
    weighted = write(studies.with_name("weighted.jsonl"), changed)
    smooth = ("--label_smoothing", "0.1")
    message = r"rows/train.jsonl:2: negative_weights .*--label_smoothing .*or train with --loss_type pairwise"
    with pytest.raises(UserError, match=message):
        run("apo", model, weighted, tmp_path / "o", *smooth)
    with pytest.raises(UserError, match=message):
        run("apo", model, tmp_path / "o/rows/train.jsonl", tmp_path / "p", *smooth, "--image_root", studies.parent)
    for number, words in enumerate((("--label_smoothing", "0"), (*smooth, "--loss_type", "pairwise"))):
        assert run("apo", model, weighted, tmp_path / str(number), *words) == 0
    assert len(ran) == 2


@pytest.mark.parametrize("words", [("--loss_type", "cross_entropy"), ("--enable_channel_loss", "true")])
def test_what_learning_whole_studies_does_not_read_is_refused(model, studies, tmp_path, ran, words):
    with pytest.raises(UserError, match=f"{words[0]} {words[1]} is not read for whole studies"):
        run("sft", model, studies, tmp_path / "o", *words)
    assert run("sft", model, studies, tmp_path / "o", "--share_prefix", "false", *words) == 0 and ran


def test_given_validation_set_wins(model, studies, tmp_path, ran):
    run("sft", model, studies, tmp_path / "o", "--val_dataset", studies)
    assert ran[0].settings["val_dataset"] == [str(tmp_path / "o/rows/validate.jsonl")]


def test_two_files_of_studies(model, studies, tmp_path, ran):
    second = write(studies.with_name("more.jsonl"), [row | {"id": f"t{n}"} for n, row in enumerate(lines(studies)[:2])])
    launch.main(
        ["sft", PHANTOM["sft"], "--model", str(model), "--output_dir", str(tmp_path / "o"), "--dataset"]
        + [str(studies), str(second)]
    )
    assert [len(lines(path)) for path in ran[0].settings["dataset"]] == [3, 2]
    assert len(ran[0].settings["val_dataset"]) == 1


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (lambda row: row.pop("consensus"), [], r"studies.jsonl:2: study 's1': has no consensus"),
        (lambda row: row.update(trajectories=row["trajectories"][3:]), [], r":2: study 's1': has no ok trajectory"),
        (lambda row: row.update(images=["films/none.png"]), [], r":2: study 's1': image"),
        (lambda row: row.update(splitt="train"), [], r":2: .*did you mean 'split'"),
        (
            lambda row: row["consensus"].update(text="effusion " * 2000),
            [],
            r"studies.jsonl:2: \d+ tokens .* max_length 1024",
        ),
        (lambda row: row["consensus"].update(text=TEACHERS["a"]), ["--on_identical", "error"], r":2: .*equals"),
    ],
)
def test_bad_studies_stop_before_training(change, words, message, model, studies, tmp_path, ran):
    rows = lines(studies)
    change(rows[1])
    with pytest.raises(UserError, match=message):
        run("apo", model, write(studies, rows), tmp_path / "o", *words)
    assert ran == []


def test_a_study_without_consensus_can_be_dropped(model, studies, tmp_path, ran):
    rows = lines(studies)
    del rows[1]["consensus"]
    run("apo", model, write(studies, rows), tmp_path / "o", "--on-missing-consensus", "drop")
    assert len(lines(ran[0].settings["dataset"][0])) == 2


def test_a_validation_set_of_dropped_studies_alone_is_left_out(model, studies, tmp_path, ran, capsys):
    """As `compare.sh --split train` leaves it."""
    rows = lines(studies)
    del rows[3]["consensus"]
    run("apo", model, write(studies, rows), tmp_path / "o", "--on-missing-consensus", "drop")
    assert "val_dataset" not in ran[0].settings and len(lines(ran[0].settings["dataset"][0])) == 3
    assert "every study of split 'validate' was set aside; no validation" in capsys.readouterr().out
    with pytest.raises(UserError, match="no row for split 'validate'"):
        words = ("--val_dataset", studies, "--on-missing-consensus", "drop")
        run("apo", model, studies, tmp_path / "o2", *words)


def test_a_number_sign_in_a_folder_name_is_no_sample(model, studies, tmp_path, ran):
    moved = (tmp_path / "cohort").rename(tmp_path / "cohort#2") / "studies.jsonl"
    for entry, sample in ((moved, ""), (f"{moved}#2", "#2")):
        out = tmp_path / f"out{sample}#1"
        run("apo", model, entry, out, "--overlong", "drop", "--max_length", "1024")
        assert ran[-1].settings["dataset"] == [f"{out}/rows/train.jsonl{sample}"]
        assert ran[-1].settings["val_dataset"] == [f"{out}/rows/validate.jsonl"]
    rows = f"{tmp_path}/out#1/rows/train.jsonl"
    with pytest.raises(UserError, match=r"rows/train.jsonl:1: \d+ tokens .* are over max_length 8"):
        run("apo", model, rows, tmp_path / "again", "--max_length", "8", "--image_root", moved.parent)


@pytest.mark.parametrize("method", ["apo", "sft"])
def test_studies_too_long_can_be_dropped(method, model, studies, tmp_path, ran, capsys):
    rows = lines(studies)
    rows[1]["consensus"]["text"] = rows[1]["trajectories"][0]["text"] = "effusion " * 2000
    records = write(studies, rows)
    share = ["--share_prefix", "true"] if method == "sft" else []
    with pytest.raises(UserError, match=r"studies.jsonl:2: \d+ tokens .* --overlong drop"):
        run(method, model, records, tmp_path / "o", *share)
    run(method, model, f"{records}#5", tmp_path / "o", "--overlong", "drop", *share)
    used = ran[0].settings
    assert used["dataset"] == [f"{tmp_path / 'o/rows/train-fitting.jsonl'}#5"]
    assert used["val_dataset"] == [str(tmp_path / "o/rows/validate.jsonl")], "nothing to drop there"
    assert "overlong" not in used
    kept, made = lines(tmp_path / "o/rows/train-fitting.jsonl"), lines(tmp_path / "o/rows/train.jsonl")
    assert kept == [made[0], made[2]]
    out = capsys.readouterr().out
    assert "1 rows over it DROPPED (overlong drop), 2 kept:\n  line 2: " in out


def test_overlong_needs_lengths_and_a_known_word(model, studies, tmp_path, ran):
    with pytest.raises(UserError, match="overlong skip: must be error or drop"):
        run("apo", model, studies, tmp_path / "o", "--overlong", "skip")
    with pytest.raises(UserError, match="overlong drop: lengths are counted only for a local model"):
        run("apo", "Qwen/Qwen2.5-VL-7B-Instruct", studies, tmp_path / "o", "--overlong", "drop")
    assert ran == []


def test_missing_dataset(model, tmp_path, ran):
    with pytest.raises(UserError, match=r"dataset none.jsonl: no such file; .*python -m data.phantom"):
        run("sft", model, "none.jsonl", tmp_path / "o")


# ---- running


def test_record_of_the_run(model, studies, tmp_path, ran):
    run("sft", model, studies, tmp_path / "o", "--seed", "7", "--image_root", studies.parent)
    note = json.loads((tmp_path / "o/launch.json").read_text())
    assert note["command"][1:4] == ["-m", "swift.cli.main", "sft"]
    assert note["settings"]["seed"] == "7"
    assert note["datasets"][0]["path"] == str(studies)
    assert note["image_root"] == str(studies.parent)
    assert len(note["datasets"][0]["sha256"]) == len(note["config"]["sha256"]) == 64
    assert note["versions"]["ms-swift"] == arguments.installed_versions()["ms-swift"]
    assert note["environment"] == {"CUDA_VISIBLE_DEVICES": ""}


def test_two_runs_on_one_folder(model, studies, tmp_path, ran):
    with (
        launch.locked(tmp_path / "o"),
        pytest.raises(UserError, match=rf"process {os.getpid()} trains into it; wait for it"),
    ):
        run("sft", model, studies, tmp_path / "o")
    assert run("sft", model, studies, tmp_path / "o") == 0


def test_a_file_system_without_locks_is_told_of_and_trains(model, studies, tmp_path, ran, capsys, monkeypatch):
    def unknown(handle, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(launch.fcntl, "flock", unknown)
    assert run("sft", model, studies, tmp_path / "o") == 0
    assert f"note: output_dir {tmp_path / 'o'}: no lock (Function not implemented)" in capsys.readouterr().err


def checkpoint(folder, model=None):
    folder.mkdir(parents=True) if model is None else shutil.copytree(model, folder)
    (folder / "trainer_state.json").write_text("{}")
    zipfile.ZipFile(folder / "optimizer.pt", "w").close()
    return folder


def test_earlier_checkpoints_are_not_mixed_in(model, studies, tmp_path, ran):
    saved = checkpoint(tmp_path / "o/checkpoint-20", model)
    with pytest.raises(UserError, match="holds checkpoint-20 of an earlier run; .*--resume_from_checkpoint last"):
        run("sft", model, studies, tmp_path / "o")
    assert run("sft", model, studies, tmp_path / "o", "--resume_from_checkpoint", saved) == 0
    with pytest.raises(UserError, match="no trainer_state.json"):
        run("sft", model, studies, tmp_path / "o", "--resume_from_checkpoint", model)
    with pytest.raises(UserError, match="none: no such folder; .*or last for the newest"):
        run("sft", model, studies, tmp_path / "o", "--resume_from_checkpoint", tmp_path / "none")


def test_a_checkpoint_of_elsewhere_is_not_gone_on_with_among_others(model, studies, tmp_path, ran):
    checkpoint(tmp_path / "o/checkpoint-20", model)
    elsewhere = checkpoint(tmp_path / "e/checkpoint-10", model)
    with pytest.raises(UserError, match="holds checkpoint-20 of an earlier run"):
        run("sft", model, studies, tmp_path / "o", "--resume_from_checkpoint", elsewhere)
    assert not ran


def test_a_tilde_is_the_home_wherever_a_path_stands(model, studies, tmp_path, ran, monkeypatch):
    """Bash leaves that of --output_dir=~/o as it is, and ms-swift writes it out: both must mean one folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(studies.parent)
    words = ("--image_root=~/cohort", "--resume_from_checkpoint=last")
    assert run("apo", "~/student", "~/cohort/studies.jsonl", "~/o", *words) == 0
    saved = checkpoint(tmp_path / "o/checkpoint-20", model)
    assert run("apo", "~/student", "~/cohort/studies.jsonl", "~/o", *words) == 0
    assert ran[-1].settings["resume_from_checkpoint"] == str(saved)
    assert ran[-1].output_dir == tmp_path / "o" and not (studies.parent / "~").exists()
    with pytest.raises(UserError, match="~nobody-of-this-name/s: no user of this name has a home folder"):
        run("apo", model, "~nobody-of-this-name/s", tmp_path / "n")


def test_going_on_from_an_older_checkpoint_sets_the_newer_aside(model, studies, tmp_path, ran, capsys):
    older, newer = (checkpoint(tmp_path / f"o/checkpoint-{step}", model) for step in (20, 40))
    elsewhere = checkpoint(tmp_path / "e/checkpoint-10", model)
    assert run("sft", model, studies, tmp_path / "o", "--resume_from_checkpoint", newer) == 0
    assert run("sft", model, studies, tmp_path / "n", "--resume_from_checkpoint", elsewhere) == 0
    assert newer.exists()
    assert run("sft", model, studies, tmp_path / "o", "--resume_from_checkpoint", older) == 0
    assert "later than checkpoint-20, from which this run goes on; renamed" in capsys.readouterr().out
    assert older.exists() and not newer.exists() and (tmp_path / "o/abandoned-checkpoint-40").exists()


def test_last_begins_and_goes_on(model, studies, tmp_path, ran, capsys):
    """One command for both, as queues that requeue a job need; a checkpoint that was cut off does not count."""
    words = ("--resume_from_checkpoint", "last")
    assert run("apo", model, studies, tmp_path / "o", *words) == 0
    assert "resume_from_checkpoint" not in ran[-1].settings
    assert "no checkpoint yet: begins at step 0" in capsys.readouterr().out
    saved = checkpoint(tmp_path / "o/checkpoint-20", model)
    shutil.copytree(saved, tmp_path / "o/checkpoint-30")
    (tmp_path / "o/checkpoint-30/trainer_state.json").unlink()
    assert run("apo", model, studies, tmp_path / "o", *words) == 0
    used = ran[-1].settings
    assert [used[name] for name in ("resume_from_checkpoint", "model")] == [str(saved)] * 2
    assert used["ref_model"] == str(model)
    assert "goes on from checkpoint-20" in capsys.readouterr().out


def test_a_checkpoint_without_optimizer_is_not_gone_on_with_unasked(model, studies, tmp_path, ran, capsys):
    assert run("apo", model, studies, tmp_path / "o", "--save_only_model", "true") == 0
    assert "an interrupted run cannot be gone on with" in capsys.readouterr().out
    saved = checkpoint(tmp_path / "o/checkpoint-20", model)
    (saved / "optimizer.pt").unlink()
    for words in (("--resume_from_checkpoint", saved), ("--resume_from_checkpoint", "last")):
        with pytest.raises(UserError, match=f"resume_from_checkpoint {saved}: holds no state of the optimizer"):
            run("apo", model, studies, tmp_path / "o", *words)
        assert run("apo", model, studies, tmp_path / "o", *words, "--resume_only_model", "true") == 0
    (saved / "global_step20").mkdir()  # DeepSpeed's
    assert run("apo", model, studies, tmp_path / "o", *words) == 0


def test_a_mapping_on_the_command_line_replaces_the_files(model, studies, tmp_path, ran, capsys):
    config = tmp_path / "c.yaml"
    config.write_text(f"{(ROOT / 'configs/apo_phantom.yaml').read_text()}\nmodel_kwargs: {{apo_cache_dir: cache}}\n")
    words = ("--model_kwargs", '{"apo_layout": "rows"}')
    assert run("apo", model, studies, tmp_path / "o", *words) == 0 and "replaces" not in capsys.readouterr().out
    assert run("apo", model, studies, tmp_path / "o", *words, config=config) == 0
    assert """--model_kwargs replaces the whole of c.yaml's: {"apo_cache_dir": "cache"}""" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tuner_type", "adapter"], "tuner_type adapter trains weights that the reference shares"),
        (["--lora_bias", "all"], "lora_bias all"),
        (["--init_weights", "pissa"], "init_weights pissa"),
        (["--neftune_noise_alpha", "5"], "neftune_noise_alpha 5"),
        (["--label_smoothing_factor", "0.1"], "that of ours is --label_smoothing$"),
        (["--sync_ref_model", "true"], "sync_ref_model true"),
    ],
)
def test_what_would_move_the_reference_is_refused(model, studies, tmp_path, ran, words, message):
    with pytest.raises(UserError, match=message):
        run("apo", model, studies, tmp_path / "o", *words)
    assert not ran


def test_without_a_reference_any_tuner_may_train(model, studies, tmp_path, ran):
    free = ["--model_kwargs", '{"apo_reference_free": true}', "--tuner_type", "lora_llm"]
    assert run("apo", model, studies, tmp_path / "o", *free) == 0 and ran
    with pytest.raises(UserError, match="neftune"):
        run("apo", model, studies, tmp_path / "p", *free, "--neftune_noise_alpha", "5")


def test_resuming_full_tuning_loads_the_checkpoints_weights(model, studies, tmp_path, ran, capsys):
    """transformers alone would go on with the first weights, see plan.resume_weights; tests/scripts/test_runs.py."""
    saved = checkpoint(tmp_path / "o/checkpoint-20", model)
    words = ("--resume_from_checkpoint", saved)
    run("sft", model, studies, tmp_path / "o", *words)
    run("apo", model, studies, tmp_path / "o", *words)
    run("apo", model, studies, tmp_path / "o", *words, "--tuner_type", "lora")
    used = [(one.settings["model"], one.settings.get("ref_model")) for one in ran]
    assert used == [(str(saved), None), (str(saved), str(model)), (str(model), None)]
    assert "weights are loaded from the checkpoint" in capsys.readouterr().out


def test_failure_says_how_to_go_on(model, studies, tmp_path, ran, capsys, monkeypatch):
    ran.status = 3
    assert run("sft", model, studies, tmp_path / "o") == 3
    assert "no checkpoint was saved" in capsys.readouterr().err

    def fail_after_saving(one, lock):
        checkpoint(tmp_path / "o/checkpoint-40")
        return 1

    monkeypatch.setattr(launch, "execute", fail_after_saving)
    assert run("sft", model, studies, tmp_path / "o") == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "status 1; to go on from checkpoint-40: bash SFT-Qwen2.5.sh" in last
    assert last.endswith(f"--resume_from_checkpoint {tmp_path}/o/checkpoint-40")


def test_failure_before_the_first_checkpoint_keeps_the_one_it_went_on_from(tmp_path):
    typed = ["--dataset", "s.jsonl", "--output_dir", "new", "--resume_from_checkpoint", "old/checkpoint-500"]
    one = plan.Plan("learn", tmp_path / "run.yaml", {"output_dir": str(tmp_path / "new")})
    assert launch.after(one, typed, 1).endswith("start again: bash SFT-Qwen2.5.sh " + " ".join(typed))


@pytest.mark.parametrize(("free", "told"), [(2**20, True), (2**40, False)])
def test_failure_on_a_full_disk_says_so(model, studies, tmp_path, ran, capsys, monkeypatch, free, told):
    def fill_and_fail(one, lock):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        return 1

    monkeypatch.setattr(launch, "execute", fill_and_fail)
    assert run("sft", model, studies, tmp_path / "o") == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert (f"output_dir {tmp_path}/o: the disk is full, or nearly; make room first" in lines) == told
    assert lines[-1].startswith("error: ms-swift ended with status 1; no checkpoint was saved")


def test_success_says_what_is_next(model, studies, tmp_path, capsys, monkeypatch):
    def train(one, lock):
        folder = checkpoint(Path(str(one.settings["output_dir"])) / "checkpoint-8")
        if one.stage == "learn" and "lora" in str(folder):
            (folder / "adapter_config.json").write_text("{}")
        return 0

    monkeypatch.setattr(launch, "execute", train)
    for method, name, line in (
        ("sft", "full", "next: bash scripts/compare.sh"),
        ("sft", "lora", "export --adapters"),
        ("apo", "full2", "next: bash scripts/evaluate.sh"),
    ):
        run(method, model, studies, tmp_path / name)
        last = capsys.readouterr().out.strip().splitlines()[-1]
        assert line in last
        assert f"{tmp_path}/{name}/checkpoint-8" in last
    for number, word in enumerate(("true", "1", "yes")):  # all that ms-swift takes
        run("sft", model, studies, tmp_path / f"lora{number}", "--use_hf", word)
        assert "next: USE_HF=1 " in capsys.readouterr().out.strip().splitlines()[-1], (
            "as the training found its student"
        )
    run("sft", model, studies, tmp_path / "lora-of-modelscope", "--use_hf", "0")
    assert "USE_HF" not in capsys.readouterr().out.strip().splitlines()[-1]


# A stand-in for ms-swift: found before the real one, it notes how it was called and does what it is told.
STUB = """
import json, os, pathlib, signal, subprocess, sys, time
note = pathlib.Path(os.environ["STUB"])
behaviour = os.environ["STUB_DOES"]
if behaviour == "wait":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    note.write_text(json.dumps({"pid": os.getpid(), "child": child.pid}))
    child.wait()
note.write_text(json.dumps({"argv": sys.argv[1:], "env": dict(os.environ)}))
sys.exit(int(behaviour))
"""


@pytest.fixture
def stub(tmp_path):
    package = tmp_path / "stub/swift/cli"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    (package / "main.py").write_text(STUB)
    note = tmp_path / "note.json"

    def start(does, *words):
        environment = {**os.environ, "STUB": str(note), "STUB_DOES": does}
        environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{tmp_path / 'stub'}"
        command = [sys.executable, "-m", "scripts.launch", *map(str, words)]
        return subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    start.note = note
    return start


def words_for(model, studies, out):
    return "sft", PHANTOM["sft"], "--model", model, "--dataset", studies, "--output_dir", out


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z" if Path("/proc").exists() else True


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("status", ["0", "7"])
def test_swift_is_called_and_its_status_passed_on(status, stub, model, studies, tmp_path):
    process = stub(status, *words_for(model, studies, tmp_path / "o"))
    out, err = process.communicate(timeout=120)
    assert process.returncode == int(status)
    called = json.loads(stub.note.read_text())
    assert called["argv"][:3] == ["sft", "--model", str(model)]
    assert called["env"]["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
    assert called["env"]["CUDA_VISIBLE_DEVICES"] == ""
    assert ("error: ms-swift ended with status 7" in err) == (status == "7")
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_whole_tree(number, stub, model, studies, tmp_path):
    process = stub("wait", *words_for(model, studies, tmp_path / "o"))
    wait_for(lambda: stub.note.exists() and stub.note.read_text().endswith("}"))
    started = json.loads(stub.note.read_text())
    second = stub("0", *words_for(model, studies, tmp_path / "o"))
    _, refused = second.communicate(timeout=120)
    assert second.returncode == 2
    assert f"process {process.pid} trains into it" in refused
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "error: ms-swift ended with status" in err
    wait_for(lambda: not alive(started["pid"]) and not alive(started["child"]))


def test_a_training_under_nohup_outlives_its_terminal(stub, model, studies, tmp_path):
    """`nohup` lets the launcher ignore the hang-up; what it starts must, too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = stub("wait", *words_for(model, studies, tmp_path / "o"))
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for(lambda: stub.note.exists() and stub.note.read_text().endswith("}"))
    started = json.loads(stub.note.read_text())
    for pid in (process.pid, started["pid"], started["child"]):
        os.kill(pid, signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None and all(alive(started[name]) for name in ("pid", "child"))
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


def test_killing_the_launcher_alone_keeps_the_folder_locked(stub, model, studies, tmp_path):
    process = stub("wait", *words_for(model, studies, tmp_path / "o"))
    wait_for(lambda: stub.note.exists() and stub.note.read_text().endswith("}"))
    started = json.loads(stub.note.read_text())
    process.kill()
    process.wait(timeout=60)
    try:
        assert alive(started["pid"])
        with pytest.raises(UserError, match="trains into it"), launch.locked(tmp_path / "o"):
            pass
    finally:
        os.killpg(started["pid"], signal.SIGKILL)
        process.communicate(timeout=60)


def test_shell_launchers(tmp_path):
    """From any folder, with a package of ours shadowed by one of the caller's."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/__init__.py").write_text("raise SystemExit('the wrong scripts package')")
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    for script, config, word in (
        ("SFT-Qwen2.5.sh", "sft_phantom.yaml", "sft"),
        ("APO-Qwen2.5.sh", "apo_phantom.yaml", "rlhf"),
    ):
        command = ["bash", str(ROOT / script), str(ROOT / "configs" / config)]
        done = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        assert f"swift.cli.main {word}" in done.stdout
        done = subprocess.run([*command, "--sead", "1"], capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert (done.returncode, done.stderr) == (2, "error: unknown flag --sead; did you mean seed?\n")
        done = subprocess.run(["bash", str(ROOT / script), "-h"], capture_output=True, text=True, env=environment)
        assert done.stdout.startswith(("Learn:", "Critique:"))
        assert f"bash {script}" in done.stdout


def test_shell_scripts_find_their_checkout_through_a_link(tmp_path):
    link = tmp_path / "apo"
    link.symlink_to(ROOT / "APO-Qwen2.5.sh")
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    done = subprocess.run(["bash", str(link), "-h"], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0 and done.stdout.startswith("Critique:"), done.stderr
    for script in (*ROOT.glob("*.sh"), *(ROOT / "scripts").glob("*.sh")):
        places = re.findall(r"dirname -- .*BASH_SOURCE.*", script.read_text())
        assert all('"$(readlink -f -- "${BASH_SOURCE[0]}")"' in place for place in places), script


def test_help_of_the_tests_runs_none():
    done = subprocess.run(["bash", str(ROOT / "scripts/test.sh"), "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("Everything that must hold")
    assert "PYTEST ARGUMENT" in done.stdout and "set -" not in done.stdout


def test_another_python_is_told_of_before_anything_runs(tmp_path):
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    patched = "import sys; code = sys.argv[1]; sys.version_info = (3, 10, 9); exec(code)"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{patched}" "$2"\n')
    python.chmod(0o755)
    call = ["bash", str(ROOT / "SFT-Qwen2.5.sh"), "--dry-run"]
    done = subprocess.run(call, env=os.environ | {"VIRTUAL_ENV": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: {python} is not Python 3.11 or 3.12 with ms-swift; run: bash scripts/setup.sh\n"


def test_launchers_read_utf_8_in_any_locale():
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ask = '. scripts/env.sh; "$PYTHON" -c "import locale; print(locale.getpreferredencoding())"'
    done = subprocess.run(["bash", "-c", ask], cwd=ROOT, env=os.environ | plain, capture_output=True, text=True)
    assert done.stdout.strip().lower().replace("-", "") == "utf8", done.stderr
