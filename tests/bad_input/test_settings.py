"""Configurations and flags: spelling, places, and numbers that are none."""

import socket
from pathlib import Path

import pytest

from scripts import settings
from tests.bad_input.cases import SECRET, refused, study

TEXT = {
    "not YAML": ("beta: [1\n", r"train.yaml:\d+: not YAML"),
    "a list": ("- beta\n", "must hold `key: value` lines"),
    "a word": ("beta\n", "must hold `key: value` lines"),
    "nothing": ("# nothing\n", "train.yaml: holds no setting; copy one of configs/"),
    "a tab": ("model:\n\t- x\n", "not YAML"),
    "a date": ("model: 2024-13-45\n", "not YAML that can be read"),
    "a row of the ablation": ("question: q\nlauncher: apo\n", "train.yaml: is a row of the ablation .*ablate.sh reads"),
    "a collection": ("studies: s.jsonl\nteachers: []\n", "train.yaml: asks teachers .*collect.sh reads it"),
    "a Python object": ("model: !!python/object/apply:os.system ['touch pwned']\n", "not YAML"),
    "twice": ("beta: 1\nbeta: 2\n", r"train.yaml:2: key beta stands twice \(line 1 too\); keep one"),
    "deep": ("a: " + "[" * 2000 + "]" * 2000 + "\n", "not YAML that can be read|unknown key"),
}


@pytest.mark.parametrize("name", TEXT)
def test_training_yaml(name, world, monkeypatch):
    text, message = TEXT[name]
    refused(world, monkeypatch, ["train", "apo", world.config(text)], message)
    refused(world, monkeypatch, ["doctor", world.config(text), "--stage", "apo"], message)
    assert not (world.folder / "pwned").exists()


def test_every_misspelt_key_is_named_at_once(world, monkeypatch):
    path = world.config(learning_rat=1, lora_rnk=8)
    for words in (["train", "apo", path], ["doctor", path]):
        refused(world, monkeypatch, words, "unknown key learning_rat; did you mean learning_rate")
        refused(world, monkeypatch, words, "unknown key lora_rnk; did you mean lora_rank")


NUMBERS = [
    ("learning_rate", "nan", "a number above 0"),
    ("learning_rate", "-1e-5", "a number above 0"),
    ("learning_rate", "0", "a number above 0"),
    ("learning_rate", "inf", "a number above 0"),
    ("learning_rate", "fast", "a number above 0"),
    ("beta", "0", "a number above 0"),
    ("beta", "-0.1", "a number above 0"),
    ("beta", "nan", "a number above 0"),
    ("label_smoothing", "0.5", "a number of at least 0 and below 0.5"),
    ("rpo_alpha", "-1", "a number of at least 0"),
    ("num_train_epochs", "0", "a number above 0"),
    ("num_train_epochs", "nan", "a number above 0"),
    ("max_length", "0", "a whole number of at least 1"),
    ("max_length", "-1", "a whole number of at least 1"),
    ("max_length", "1e3", "a whole number of at least 1"),
    ("max_pixels", "100", "a whole number of at least 3136"),
    ("max_steps", "0", "or -1 for as many as"),
    ("per_device_train_batch_size", "0", "a whole number of at least 1"),
    ("gradient_accumulation_steps", "-2", "a whole number of at least 1"),
    ("effective_batch_size", "0", "a whole number of at least 1"),
    ("effective_batch_size", "nan", "a whole number of at least 1"),
    ("lora_rank", "0", "a whole number of at least 1"),
    ("lora_alpha", "nan", "a number above 0"),
    ("lora_dropout", "1.5", "a number of at least 0 and at most 1"),
    ("warmup_ratio", "-0.1", "a number of at least 0 and at most 1"),
    ("save_steps", "0", "a number above 0"),
    ("save_total_limit", "0", "a whole number of at least 1"),
    ("seed", "-1", "a whole number of at least 0 and at most 4294967295"),
    ("dataloader_num_workers", "-1", "a whole number of at least 0"),
]


@pytest.mark.parametrize(("name", "value", "range_"), NUMBERS)
def test_numbers(name, value, range_, world, monkeypatch):
    flag = ["train", "apo", world.config(), f"--{name}={value}"]
    refused(world, monkeypatch, flag, f"--{name} {value}: must be .*{range_}")
    refused(world, monkeypatch, ["train", "apo", world.config(**{name: value})], f"train.yaml: {name} {value}: must be")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rat", "1"], "unknown flag --learning_rat; did you mean learning_rate"),
        (["--share_prefix", "true"], "belongs to the other stage"),
        (["--use_cpu", "perhaps"], "use_cpu perhaps: must be true or false"),
        (["--check_images", "all"], "check_images all: must be true or false"),
        (["--on_identical", "drop"], "on_identical drop: must be error or drop-negative"),
        (["--overlong", "no"], "--overlong no: must be error or drop"),
        (["--gradient_checkpointing", "maybe"], "--gradient_checkpointing maybe: must be true or false"),
        (["--fp16", "maybe"], "--fp16 maybe: must be true or false"),
        (["--torch_dtype", "float23"], "--torch_dtype float23: did you mean 'float32'"),
        (["--lr_scheduler_type", "cosin"], "--lr_scheduler_type cosin: did you mean 'cosine'"),
        (["--eval_strategy", "never"], "--eval_strategy never: use one of no, steps, epoch"),
        (["--logging_steps", "0.5"], "--logging_steps 0.5: must be a whole number"),
        (["--router_aux_loss_coef", "much"], "--router_aux_loss_coef much: must be a number"),
        (["--system", "two", "words"], "--system two words: takes one value"),
        (["--model_kwargs", "{"], "model_kwargs: must be a JSON object, such as"),
        (["--model_kwargs", '{"apo_chunk_size": 0}'], "apo_chunk_size='0': expected a positive number"),
        (["--model_kwargs", '{"apo_chunk_size": "nan"}'], "apo_chunk_size='nan'"),
        (["--model_kwargs", '{"apo_layot": "rows"}'], "did you mean apo_layout"),
        (["--model_kwargs", '{"apo_reference_free": true, "apo_cache_dir": "c"}'], "leave apo_cache_dir out"),
        (["--deepspeed", "zero9"], "deepspeed zero9: neither a file nor one of zero0, zero1"),
        (["--template", "llama3"], "template llama3: this project trains qwen2_vl, qwen2_5_vl, qwen3_vl"),
        (["--external_plugins", "none.py"], "external_plugins none.py: no such file"),
        (["--dataset", "none.jsonl"], "dataset none.jsonl: no such file"),
        (["--dataset", "./typo"], r"dataset ./typo: no such file"),
        (["--dataset", "films/typo"], "dataset films/typo: no such file"),
        (["--val_dataset", "~/typo"], "dataset /.*/typo: no such file"),
        (["--dataset", "films"], "films: is a folder; name a file"),
        (["--output_dir", "studies.jsonl"], "output_dir studies.jsonl: .*studies.jsonl is not a folder"),
        (["--output_dir", "studies.jsonl/run"], "is not a folder; choose another"),
        (["--model_kwargs", '{"apo_cache_dir": "studies.jsonl/c"}'], "apo_cache_dir studies.jsonl/c: .* not a folder"),
        (["--resume_from_checkpoint", "none"], "none: no such folder"),
        (["--effective_batch_size", "3", "--per_device_train_batch_size", "2"], "the nearest that fit: 2, 4"),
        (["more"], "'more' belongs to no flag|is no .yaml file"),
    ],
)
def test_flags(words, message, world, monkeypatch):
    given = ["train", "apo", *words] if words == ["more"] else ["train", "apo", world.config(), *words]
    refused(world, monkeypatch, given, message)


def test_a_port_that_is_taken_and_one_that_is_none(world, monkeypatch):
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        refused(world, monkeypatch, ["train", "apo", world.config()], r"MASTER_PORT \d+: cannot be used .*leave it out")
    monkeypatch.setenv("MASTER_PORT", "99999999")
    refused(world, monkeypatch, ["train", "apo", world.config()], "must be a port from 1 to 65535")


def test_every_value_of_another_kind_is_named_at_once(world, monkeypatch):
    path = world.config(save_strategy="epochs", modules_to_save=[], warmup_ratio=2)
    for words in (["train", "apo", path], ["doctor", path]):
        refused(world, monkeypatch, words, "save_strategy epochs: did you mean 'epoch'")
        refused(world, monkeypatch, words, "modules_to_save: needs a value; leave it out otherwise")
        refused(world, monkeypatch, words, "warmup_ratio 2: must be a number of at least 0 and at most 1")


KEY = "sk-canary-0123456789abcdef"
COLLECT = {
    "not YAML": ({"text": f"a: b: {KEY}\n"}, r"collect.yaml:1: not YAML"),
    "a date": ({"text": "out: 2024-13-45\n"}, "not YAML that can be read"),
    "a list": ({"text": "- 1\n"}, "must be a mapping"),
    "misspelt": ({"budgett": 1}, "unknown field 'budgett'; did you mean 'budget'"),
    "misspelt field of a teacher": ({"teacher": {"modell": "m"}}, "did you mean 'model'"),
    "a key": ({"teacher": {"api_key": KEY}}, "name the key's variable in key_env, never the key"),
    "a key as its name": ({"teacher": {"key_env": KEY}}, "must be the NAME of an environment variable"),
    "a key in the address": (
        {"teacher": {"base_url": f"https://u:{KEY}@example.org"}},
        "may hold no user, key or query",
    ),
    "plain http": ({"teacher": {"base_url": "http://example.org", "key_env": "K"}}, "films unencrypted; use https://"),
    "key not set": ({"teacher": {"key_env": "NOT_SET_ANYWHERE"}}, "variable NOT_SET_ANYWHERE is not set"),
    "negative budget": ({"budget": -1}, "budget must be a number of 0 or more"),
    "NaN budget": ({"budget": float("nan")}, "budget must be a number of 0 or more"),
    "NaN temperature": ({"teacher": {"temperature": float("nan")}}, "temperature must be a number of at least 0"),
    "no tokens": ({"teacher": {"max_tokens": 0}}, "max_tokens must be a whole number of at least 1"),
    "infinite price": ({"teacher": {"price_in": float("inf"), "price_out": 1}}, "price_in must be a number"),
    "quality": ({"teacher": {"image_quality": 101}}, "JPEG quality of 1 to 100"),
    "concurrency": ({"teacher": {"concurrency": -3}}, "concurrency must be a whole number of at least 1"),
    "teachers twice": (
        {"teachers": [{"name": "a", "base_url": "http://127.0.0.1:9", "model": "m"}] * 2},
        "comes twice",
    ),
    "no teachers": ({"teachers": []}, "teachers must be a list with at least one teacher"),
    "manifest missing": ({"studies": "none.jsonl"}, "none.jsonl: cannot be read"),
    "out is the manifest": ({"studies": "studies.jsonl", "out": "studies.jsonl"}, "studies.jsonl: is the input file"),
}


@pytest.mark.parametrize("name", COLLECT)
def test_collect(name, world, monkeypatch):
    changes, message = COLLECT[name]
    world.write([study(n, trajectories=[]) for n in range(3)])
    if name != "key not set":  # the run itself knows only after the store which teachers still have to be asked
        refused(world, monkeypatch, ["collect", world.collect(**changes)], message)
    if "text" not in changes:  # the doctor tells a collection by its keys
        refused(world, monkeypatch, ["doctor", world.collect(**changes)], message)


def test_flags_are_for_trainings_alone(world, monkeypatch):
    refused(world, monkeypatch, ["doctor", world.collect(), "--limit", "3"], "--limit: is read by trainings alone")


def test_no_key_is_shown(world, monkeypatch):
    """`refused` looks for SECRET in what is said: here it is a key."""
    for changes in ({"teacher": {"api_key": SECRET}}, {"teacher": {"key_env": SECRET}}, {"text": f"a: b: {SECRET}\n"}):
        refused(world, monkeypatch, ["collect", world.collect(**changes)], "collect.yaml")


def test_mimic_films_go_to_no_online_service(world, monkeypatch):
    world.write([study(n, trajectories=[], source="mimic-cxr") for n in range(3)])
    monkeypatch.setenv("SOME_KEY", KEY)
    words = ["collect", world.collect(teacher={"base_url": "https://example.org/v1", "key_env": "SOME_KEY"})]
    refused(world, monkeypatch, words, "3 studies .* come from MIMIC-CXR. PhysioNet's data use agreement forbids")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "-", "studies.jsonl", "--out", "out.jsonl"], "--strategy self needs a checkpoint"),
        (["compare", "-", "studies.jsonl", "--out", "studies.jsonl", "--strategy", "vote"], "is the input file"),
        (["compare", "-", "studies.jsonl", "--out", "out.jsonl", "--strategy", "votes"], "invalid choice: 'votes'"),
        (["compare", "-", "studies.jsonl", "--out", "films", "--strategy", "vote"], "films: is not a regular file"),
        (["compare", "student", "studies.jsonl", "--out", "out.jsonl", "--temperature", "-1"], "must not be negative"),
        (["compare", "student", "studies.jsonl", "--out", "out.jsonl", "--temperature", "nan"], "must be a number"),
        (["compare", "student", "studies.jsonl", "--out", "out.jsonl", "--batch-size", "0"], "must be at least 1"),
        (["compare", "student", "studies.jsonl", "--out", "out.jsonl", "--shard", "3/2"], "write i/n with 1 <= i <= n"),
        (
            ["predict", "student", "--studies", "studies.jsonl", "--out", "predictions.jsonl"],
            'no study of split "test"',
        ),
        (["predict", "student", "--studies", "studies.jsonl", "--out", "p", "--limit", "0"], "must be at least 1"),
        (
            ["splits", "studies.jsonl", "--out", "studies.jsonl"],
            "--out studies.jsonl: is the input file; choose another",
        ),
        (["splits", "studies.jsonl", "--out", "out.jsonl", "--test", "nan"], "write a part from 0 to below 1"),
        (["splits", "studies.jsonl", "--out", "out.jsonl", "--test", "-0.1"], "write a part from 0 to below 1"),
        (["splits", "studies.jsonl", "--out", "out.jsonl", "--test", "0.9"], "too few for these parts"),
        (
            ["rows", "apo", "studies.jsonl", "--split", "train", "--out", "studies.jsonl"],
            "is the file of studies itself",
        ),
        (["rows", "apo", "studies.jsonl", "--split", "test", "--out", "rows.jsonl"], "no study has split 'test'"),
        (["collect", "none.yaml"], "none.yaml: cannot be read"),
        (["doctor", "studies.jsonl"], "is no .yaml file"),
        (["doctor", "none.yaml"], "none.yaml: cannot be read"),
        (["doctor", "--stage", "learn"], "--stage learn: must be sft or apo"),
        (["doctor", "--json", "x.yaml"], "'x.yaml' after --json, which takes no value: name configurations first"),
        (["doctor", "--json=x.yaml"], "'x.yaml' after --json, which takes no value"),
        (["doctor", "--stage", "apo", "x.yaml"], "'x.yaml' after --stage, which takes one value"),
        (["doctor", "--seed", "1"], "--seed belongs to no configuration"),
        (["plan", "--gpus", "0"], "--gpus 0: must be a whole number of at least 1"),
        (["plan", "--utilisation", "nan", "--model-size", "7B"], "must be a positive number, at most 1"),
    ],
)
def test_other_command_lines(words, message, world, monkeypatch):
    refused(world, monkeypatch, words, message)


def test_stages_are_told_by_their_keys(world):
    assert settings.stage_of(Path(world.config())) == "critique"
    assert settings.stage_of(Path(world.config(beta=None))) == "learn"
    assert settings.stage_of(Path(world.collect())) == "collect"


def test_a_flag_for_one_of_the_pair_replaces_the_other_of_the_file():
    batch, steps = {"effective_batch_size": "32"}, {"gradient_accumulation_steps": "4"}
    assert settings.merge(steps, batch, "train.yaml") == batch
    assert settings.merge(batch, steps, "train.yaml") == steps
