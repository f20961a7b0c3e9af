"""The same mixin over Qwen2-VL and Qwen3-VL: shared rows equal plain rows, through the model and through training."""

import numpy as np
import pytest
import torch

from apo import group
from apo.attention import use_split_attention
from apo.trainer import APOTrainer
from tests.apo import families
from tests.apo.cases import PROMPT, column, load, make_rows, sentence, train, write_rows
from tests.apo.test_group import encode, run, worst_relative

SIZE = 96  # pixels: whole patches of 16 for Qwen3-VL; ms-swift rounds for Qwen2-VL


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen3_vl"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    texts = [PROMPT, *(sentence(np.random.default_rng(i), 5, 30) for i in range(50))]
    return families.build(family, tmp_path_factory.mktemp("family") / family, texts)


@pytest.fixture(scope="module")
def student(folder, family):
    return load(folder, family)


@pytest.fixture(scope="module")
def groups(student, tmp_path_factory):
    rows = make_rows(tmp_path_factory.mktemp("films"), negatives=(7, 1, 3), films=(1, 2, 1), size=SIZE)
    return encode(student[1], rows)


@pytest.fixture(scope="module")
def plain(student, groups):
    return run(student, groups, group.collate_rows)


def test_the_film_is_seen(family, student, groups, plain):
    """Log-probs change with the pixels, and gradients reach the vision tower, deepstack included."""
    _, logps, gradients, _ = plain
    darker = [{**one, "pixel_values": one["pixel_values"] * 0.5} for one in groups]
    assert (run(student, darker, group.collate_rows)[1] - logps).abs().max() > 1e-3
    vision = [name for name in gradients if "visual" in name]
    assert vision
    assert any("deepstack" in name for name in vision) == (family == "qwen3_vl")
    assert all(gradients[name].abs().max() > 0 for name in vision if name.endswith("mlp.fc1.weight"))


@pytest.mark.parametrize("attention", ["mask", "split", "eager"])
def test_shared_equals_rows(folder, family, groups, plain, attention):
    model, template = load(folder, family, attn_impl="eager" if attention == "eager" else "sdpa")
    if attention == "split":
        use_split_attention(model)
    loss, logps, gradients, _ = run((model, template), groups, group.collate_shared, attention=attention)
    torch.testing.assert_close(logps, plain[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, plain[0], rtol=0, atol=1e-6)
    assert worst_relative(gradients, plain[2]) < 1e-5


def test_shared_equals_rows_in_float64(folder, family, groups):
    model, template = load(folder, family)
    split, _ = load(folder, family)
    use_split_attention(split)
    _, wanted, wanted_gradients, _ = run((model, template), groups, group.collate_rows, float64=True)
    _, logps, gradients, _ = run((split, template), groups, group.collate_shared, float64=True, attention="split")
    torch.testing.assert_close(logps, wanted, rtol=0, atol=1e-10)
    assert worst_relative(gradients, wanted_gradients) < 1e-6


@pytest.mark.parametrize("vision", ["true", "false"])
def test_training_and_one_look(folder, family, tmp_path, monkeypatch, vision):
    looks = []
    original = APOTrainer._settle_vision

    def counting(self):
        tower = self.accelerator.unwrap_model(self.model).visual
        tower.patch_embed.register_forward_hook(lambda *_: looks.append(1))
        original(self)

    monkeypatch.setattr(APOTrainer, "_settle_vision", counting)
    studies = make_rows(tmp_path, studies=4, negatives=(5, 1, 3, 2), films=(1, 2, 1, 1), size=SIZE)
    rows = write_rows(tmp_path / "rows.jsonl", studies)
    flags = {"model_type": family, "template": family, "freeze_vit": vision, "num_train_epochs": 2}
    shared, _ = train(folder, rows, tmp_path / "shared", model_kwargs={"apo_layout": "shared"}, **flags)
    assert len(looks) == (4 if vision == "true" else 8)
    options = {"apo_layout": "rows", "apo_one_look": "false"}
    plain, _ = train(folder, rows, tmp_path / "rows", model_kwargs=options, **flags)
    assert len(shared) == len(plain) == 4
    assert column(shared, "loss") == pytest.approx(column(plain, "loss"), abs=1e-5)
    assert column(shared, "grad_norm") == pytest.approx(column(plain, "grad_norm"), rel=1e-3)
    assert shared[-1]["loss"] != pytest.approx(shared[0]["loss"], abs=1e-4)
