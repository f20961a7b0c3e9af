import json

import numpy as np
import pytest
from safetensors.numpy import save

from data import checkpoints
from data.errors import UserError


def tensors(content):
    """A safetensors file that holds these bytes."""
    return save({"w": np.frombuffer(content, np.uint8)})


def model(folder, weights=b"w", **files):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    for name in ("tokenizer.json", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(tensors(weights))
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def adapter(folder, base):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (folder / "adapter_model.safetensors").write_bytes(tensors(b"a"))
    args = {"model": str(base), "model_type": "qwen2_5_vl", "template": "qwen2_5_vl", "rlhf_type": "dpo"}
    (folder / "args.json").write_text(json.dumps(args))
    return folder


def test_latest_is_by_number_not_by_name(tmp_path):
    for name in ("checkpoint-90", "checkpoint-1000", "checkpoint-200", "checkpoint-x"):
        (tmp_path / name).mkdir()
    assert checkpoints.latest(tmp_path).name == "checkpoint-1000"


def test_the_best_is_the_one_that_the_newest_names(tmp_path, capsys):
    model(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-20").mkdir()
    state = tmp_path / "checkpoint-20/trainer_state.json"
    state.write_text('{"best_model_checkpoint": "before-it-was-moved/checkpoint-10"}')
    assert checkpoints.best(tmp_path) == tmp_path / "checkpoint-10"
    checkpoints.main(["best", str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path / 'checkpoint-10'}\n"
    state.write_text('{"best_model_checkpoint": "run/checkpoint-15"}')
    with pytest.raises(UserError, match="checkpoint-15: the best checkpoint is gone; .*save_total_limit"):
        checkpoints.best(tmp_path)
    state.write_text('{"best_model_checkpoint": null}')
    with pytest.raises(UserError, match="chose no best checkpoint; .*eval_strategy"):
        checkpoints.best(tmp_path)


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(UserError, match="no checkpoint-N"):
        checkpoints.latest(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        checkpoints.latest(tmp_path / "nowhere")


def test_full_and_adapter(tmp_path):
    base = model(tmp_path / "base")
    full = checkpoints.describe(base)
    assert (full["kind"], full["template"], full["stage"]) == ("full", "qwen2_5_vl", None)
    info = checkpoints.describe(adapter(tmp_path / "lora", base))
    assert (info["kind"], info["model"], info["stage"]) == ("adapter", str(base), "critique")


def test_an_output_folder_given_instead_of_its_checkpoint(tmp_path):
    model(tmp_path / "run/checkpoint-20")
    with pytest.raises(UserError, match="did you mean .*checkpoint-20"):
        checkpoints.describe(tmp_path / "run")


@pytest.mark.parametrize(
    ("gone", "message"),
    [("tokenizer.json", "without tokenizer"), ("model.safetensors", "without weights"),
     ("preprocessor_config.json", "without image processor"), ("config.json", "not a checkpoint")],
)  # fmt: skip
def test_incomplete_checkpoints(tmp_path, gone, message):
    folder = model(tmp_path / "m")
    (folder / gone).unlink()
    with pytest.raises(UserError, match=message):
        checkpoints.describe(folder)


def test_a_missing_shard_and_a_missing_base(tmp_path):
    folder = model(tmp_path / "m")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="model-1.safetensors is missing"):
        checkpoints.describe(folder)
    with pytest.raises(UserError, match="base model .*gone is not there"):
        checkpoints.describe(adapter(tmp_path / "lora", tmp_path / "gone"))


@pytest.mark.parametrize("command", ["latest", "best", "describe"])
def test_an_adapter_whose_base_has_moved_is_found_with_its_new_place(tmp_path, capsys, command):
    found = adapter(tmp_path / "run/checkpoint-10", tmp_path / "gone")
    (found / "trainer_state.json").write_text('{"best_model_checkpoint": "run/checkpoint-10"}')
    words = [command, str(found if command == "describe" else found.parent)]
    with pytest.raises(UserError, match=r"gone is not there; put it back, or pass its folder \(--base DIR\)"):
        checkpoints.main(words)
    checkpoints.main([*words, "--base", str(model(tmp_path / "moved"))])
    said = capsys.readouterr().out
    if command == "describe":
        assert json.loads(said)["model"] == str(tmp_path / "moved")
    else:
        assert said == f"{found}\n"


def test_fingerprint_follows_the_content_not_the_place(tmp_path):
    one, two = model(tmp_path / "one"), model(tmp_path / "two")
    assert checkpoints.fingerprint(one) == checkpoints.fingerprint(two)
    lora = adapter(tmp_path / "lora", one)
    before = checkpoints.fingerprint(lora)
    (one / "model.safetensors").write_bytes(tensors(b"W"))
    assert checkpoints.fingerprint(one) != checkpoints.fingerprint(two)
    assert checkpoints.fingerprint(lora) != before, "an adapter answers with its base"


def test_fingerprint_of_a_large_file_sees_a_change_between_its_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "WHOLE_FILE", 1000)
    monkeypatch.setattr(checkpoints, "SAMPLE", 16)
    one, two = model(tmp_path / "one", bytes(4096)), model(tmp_path / "two", bytes(2048) + b"\1" * 16 + bytes(2032))
    assert checkpoints.fingerprint(one) != checkpoints.fingerprint(two)
