"""The variants of the objective through ms-swift's own entry point: pairs against stock DPO, weights, lengths."""

import json
import math

import pytest
import torch

from apo.trainer import APOTrainer
from tests.apo.cases import column, make_many_rows, train, write_rows

ONE_STUDY = {"per_device_train_batch_size": 1, "max_steps": 4}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    return make_many_rows(folder, 4, studies=1, negatives=(3,), films=(1,))


def first_gradients(monkeypatch, found, name):
    original = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        grads = [p.grad.clone() for group in self.param_groups for p in group["params"] if p.grad is not None]
        found.setdefault(name, grads)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)


def test_pairs_of_a_study_train_like_stock_dpo_pairs(rows, student_dir, tmp_path):
    pairs = [
        {"messages": row["messages"], "images": row["images"], "rejected_response": negative[0]["content"]}
        for row in rows
        for negative in row["negative_messages"]
    ]
    gradients = {}
    with pytest.MonkeyPatch.context() as patch:
        first_gradients(patch, gradients, "ours")
        path = write_rows(tmp_path / "groups.jsonl", rows)
        ours, _ = train(student_dir, path, tmp_path / "ours", loss_type="pairwise", **ONE_STUDY)
    with pytest.MonkeyPatch.context() as patch:
        first_gradients(patch, gradients, "stock")
        path = write_rows(tmp_path / "pairs.jsonl", pairs)
        batch = {"per_device_train_batch_size": 3, "max_steps": 4}
        stock, _ = train(student_dir, path, tmp_path / "stock", loss_type="sigmoid", **batch)
    assert ours[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert column(ours, "loss") == pytest.approx(column(stock, "loss"), abs=1e-5)
    assert column(ours, "rewards/margins") == pytest.approx(column(stock, "rewards/margins"), abs=1e-4)
    assert len(gradients["ours"]) == len(gradients["stock"]) > 0
    for got, wanted in zip(gradients["ours"], gradients["stock"], strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
    assert json.loads((tmp_path / "ours/apo_config.json").read_text())["loss_type"] == "pairwise"


@pytest.mark.parametrize("layout", ["rows", "shared"])
def test_weights_of_a_row_reach_the_loss(rows, student_dir, tmp_path, layout):
    weights = [0.5, 1.0, 4.0]
    path = write_rows(tmp_path / "rows.jsonl", [{**row, "negative_weights": weights} for row in rows])
    logs, _ = train(student_dir, path, tmp_path / "out", model_kwargs={"apo_layout": layout}, **ONE_STUDY)
    assert logs[0]["loss"] == pytest.approx(math.log(1 + sum(weights)), abs=1e-6), "policy = reference: all r are 0"


def test_length_normalised_rewards(rows, student_dir, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", rows)
    kwargs = {"apo_length_normalised": "true"}
    plain, _ = train(student_dir, path, tmp_path / "plain", **ONE_STUDY)
    short, _ = train(student_dir, path, tmp_path / "short", model_kwargs=kwargs, **ONE_STUDY)
    assert [log[0]["loss"] for log in (plain, short)] == pytest.approx([math.log(4)] * 2, abs=1e-6)
    assert 0 < abs(short[1]["rewards/chosen"]) < abs(plain[1]["rewards/chosen"]) / 3


def test_without_a_reference_rewards_are_the_policys_own(rows, student_dir, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", rows)
    kwargs, made, seen = {"apo_reference_free": "true"}, APOTrainer.__init__, []

    def spy(self, model=None, ref_model=None, *args, **more):
        made(self, model, ref_model, *args, **more)
        seen.append((ref_model, self.ref_model))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(APOTrainer, "_reference", None)  # it is never asked
        patch.setattr(APOTrainer, "__init__", spy)
        logs, _ = train(
            student_dir, path, tmp_path / "free", beta=0.5, tuner_type="full", model_kwargs=kwargs, **ONE_STUDY
        )
    for log in logs:
        assert log["rewards/chosen"] == pytest.approx(0.5 * log["logps/chosen"], rel=1e-6)
        assert log["rewards/rejected"] == pytest.approx(0.5 * log["logps/rejected"], rel=1e-6)
    assert abs(logs[0]["loss"] - math.log(4)) > 0.1
    ((loaded, kept),) = seen
    assert kept is None and all(p.is_meta for p in loaded.parameters()), "ms-swift's copy takes no memory"
