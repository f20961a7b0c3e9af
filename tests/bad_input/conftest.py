import json
import shutil
import sys
import types

import pytest
from safetensors.numpy import save

from data.phantom.qwen_tokenizer import save_tokenizer, train_bpe
from scripts import plan
from tests.bad_input.cases import TEXTS, World


@pytest.fixture(scope="session")
def tokenizer_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_bpe(list(TEXTS.values()) * 3, 300), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def world(tmp_path, tokenizer_files, monkeypatch):
    """Good input, and computing that fails the test: no training, no model, no request."""
    for name in plan.WORLD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    student = tmp_path / "student"
    student.mkdir()
    for name, content in tokenizer_files.items():
        (student / name).write_bytes(content)
    (student / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    (student / "processor_config.json").write_text("{}")
    (student / "model.safetensors").write_bytes(save({}))

    def computes(*args, **kwargs):
        pytest.fail("computing has started")

    from data.collect import __main__ as collect
    from scripts import launch

    # Good input stays good on a machine whose disk is nearly full: a checkpoint is counted as a 7B model's.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(total=2**40, used=0, free=2**40))

    monkeypatch.setattr(launch, "execute", computes)
    monkeypatch.setattr(collect, "_collect", computes)
    # In place of the module that loads torch and the model.
    monkeypatch.setitem(sys.modules, "apo.student_engine", types.SimpleNamespace(Student=computes))
    return World(tmp_path, student)
