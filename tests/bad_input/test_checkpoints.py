"""Checkpoints that are damaged, incomplete, of another kind, or that bring code along."""

import json

import numpy as np
import pytest
from safetensors.numpy import save

from tests.bad_input.cases import adapter, refused, run

WHOLE = save({"w": np.arange(4000, dtype=np.float32)})
MARK = "ran"


class Payload:
    """Unpickled, it makes the file MARK."""

    def __reduce__(self):
        return open, (MARK, "w")


def replace(world, name, content):
    path = world.student / name
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def pickled(world, name="pytorch_model.bin"):
    import pickle

    (world.student / "model.safetensors").unlink()
    replace(world, name, pickle.dumps(Payload()))


CONFIG = {"model_type": "qwen2_5_vl"}
BAD = {
    "truncated": (lambda w: replace(w, "model.safetensors", WHOLE[:-100]), "model.safetensors: damaged or cut off"),
    "head alone": (lambda w: replace(w, "model.safetensors", WHOLE[:40]), "model.safetensors: damaged or cut off"),
    "zero bytes": (lambda w: replace(w, "model.safetensors", b""), "model.safetensors: damaged or cut off"),
    "text": (lambda w: replace(w, "model.safetensors", b"version https://git-lfs"), "damaged or cut off"),
    "no weights": (lambda w: (w.student / "model.safetensors").unlink(), "checkpoint without weights"),
    "pickle": (pickled, r"weights are a pickle \(pytorch_model.bin\), which may run code when loaded"),
    "missing shard": (
        lambda w: replace(w, "model.safetensors.index.json", {"weight_map": {"a": "model-1-of-1.safetensors"}}),
        "weight file model-1-of-1.safetensors is missing",
    ),
    "shard elsewhere": (
        lambda w: replace(w, "model.safetensors.index.json", {"weight_map": {"a": "../../model.safetensors"}}),
        "names no weight files beside itself",
    ),
    "broken index": (lambda w: replace(w, "model.safetensors.index.json", b"{"), "not readable as JSON"),
    "broken config": (lambda w: replace(w, "config.json", b"{"), "config.json: not readable as JSON"),
    "config as list": (lambda w: replace(w, "config.json", []), "config.json: not a JSON object"),
    "auto_map": (
        lambda w: replace(w, "config.json", CONFIG | {"auto_map": {"AutoModel": "code.Model"}}),
        "auto_map names Python code that loading would run",
    ),
    "auto_map of the tokenizer": (
        lambda w: replace(w, "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["code.T", None]}}),
        "tokenizer_config.json: auto_map names Python code",
    ),
    "no tokenizer": (lambda w: (w.student / "tokenizer.json").unlink(), "without tokenizer"),
    "no processor": (lambda w: (w.student / "processor_config.json").unlink(), "without image processor"),
    "a training run": (lambda w: (w.student / "config.json").rename(w.student / "x.json"), "not a checkpoint"),
}
DOORS = {
    "train": lambda w: ["train", "apo", w.config()],
    "compare": lambda w: ["compare", w.student, w.studies, "--out", w.folder / "out.jsonl", "--device", "cpu"],
    "predict": lambda w: [
        *("predict", w.student, "--studies", w.studies, "--out", w.folder / "predictions.jsonl"),
        *("--split", "train", "--device", "cpu", "--overwrite"),
    ],
}


@pytest.mark.parametrize("name", BAD)
def test_checkpoint(name, world, monkeypatch):
    make, message = BAD[name]
    make(world)
    for door in DOORS.values():
        refused(world, monkeypatch, door(world), message)
    assert not (world.folder / MARK).exists()


def test_another_architecture(world, monkeypatch):
    replace(world, "config.json", {"model_type": "llama"})
    refused(world, monkeypatch, DOORS["train"](world), "model_type llama: this project trains qwen2_vl, qwen2_5_vl")
    replace(world, "config.json", {})
    refused(world, monkeypatch, DOORS["train"](world), "names no model_type")


def test_a_broken_tokenizer(world, monkeypatch):
    replace(world, "tokenizer.json", b"{}")
    refused(world, monkeypatch, DOORS["train"](world), "tokenizer.json: no tokenizer that can be read")


@pytest.mark.parametrize(
    ("base", "weights", "message"),
    [
        (None, None, "the adapter names no base model"),
        ("gone/away/model", None, "its base model gone/away/model is not there"),
        ("student", WHOLE[:-8], "adapter_model.safetensors: damaged or cut off"),
    ],
)
def test_adapter(base, weights, message, world, monkeypatch):
    folder = adapter(world.folder / "lora", base, weights)
    refused(world, monkeypatch, ["train", "apo", world.config(), "--adapters", folder], message)
    words = ["predict", folder, "--studies", world.studies, "--out", world.folder / "predictions.jsonl"]
    refused(world, monkeypatch, [*words, "--split", "train", "--device", "cpu"], message)


def test_kinds_are_not_mixed_up(world, monkeypatch):
    folder = adapter(world.folder / "lora", world.student)
    refused(world, monkeypatch, ["train", "apo", world.config(model=str(folder))], "is a LoRA adapter, not a model")
    words = ["train", "apo", world.config(), "--adapters", world.student]
    refused(world, monkeypatch, words, "is a full model, not an adapter; pass it as --model")
    refused(
        world, monkeypatch, ["train", "apo", world.config(model="studies.jsonl")], "a file, not a checkpoint folder"
    )


def test_code_runs_only_when_asked_for(world, monkeypatch):
    BAD["auto_map"][0](world)
    monkeypatch.setenv("AD_TRUST_REMOTE_CODE", "1")
    assert run(["checkpoints", "describe", world.student], monkeypatch)[0] in (0, None)
    monkeypatch.setenv("AD_TRUST_REMOTE_CODE", "yes")
    refused(world, monkeypatch, ["checkpoints", "describe", world.student], "auto_map")
