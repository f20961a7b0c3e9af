"""Training through ms-swift's own entry point: equivalence classes of the objective, and what the trainer refuses."""

import json
import math

import pytest
import torch

from apo.options import Options
from apo.trainer import APOTrainer
from tests.apo.cases import column, make_many_rows, train, train_on_ranks, write_rows

STEPS = 20


def assert_same_run(ours, theirs, *, loss=1e-5, grad=1e-3):
    # Adam amplifies float32 noise in gradients that are nearly zero, so a trajectory is held less tightly than a step.
    assert len(ours) == len(theirs) > 1
    assert column(ours, "loss") == pytest.approx(column(theirs, "loss"), abs=loss)
    assert column(ours, "grad_norm") == pytest.approx(column(theirs, "grad_norm"), rel=grad)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    rows = make_many_rows(folder, 4, studies=4, negatives=(7, 1, 3, 9), films=(1, 2, 1, 1))
    return write_rows(folder / "rows.jsonl", rows), rows


@pytest.fixture(scope="module")
def shared_run(studies, student_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "shared"
    return train(
        student_dir, studies[0], out, model_kwargs={"apo_layout": "shared"}, max_steps=STEPS, save_steps=10
    ), out


def test_first_loss_is_log_of_the_number_of_responses(shared_run):
    (logs, _), _ = shared_run
    assert logs[0]["loss"] == pytest.approx((math.log(8) + math.log(2)) / 2, abs=1e-6)
    assert logs[1]["loss"] != logs[0]["loss"]


def test_resolved_options_are_written_beside_the_checkpoints(shared_run):
    _, out = shared_run
    assert (out / "checkpoint-10").is_dir()
    written = json.loads((out / "apo_config.json").read_text())
    assert written["layout"] == "shared"
    assert written["loss_type"] == "plackett_luce"
    assert written["attention_used"] == {"implementation": "sdpa", "kind": "split"}
    assert written["vision_encodes_shared_with_reference"] is True
    assert set(Options._fields) <= written.keys()
    assert (written["beta"], written["chunk_size"]) == (0.1, Options().chunk_size)


def test_shared_trains_like_rows(shared_run, studies, student_dir, tmp_path):
    (logs, _), _ = shared_run
    rows, _ = train(student_dir, studies[0], tmp_path / "rows", model_kwargs={"apo_layout": "rows"}, max_steps=STEPS)
    assert_same_run(logs, rows)
    for key in ("rewards/chosen", "rewards/rejected_hardest", "rewards/margins", "effective_negatives", "logps/chosen"):
        assert column(logs, key) == pytest.approx(column(rows, key), abs=5e-4), key


@pytest.mark.parametrize("tuner", ["lora", "full"])
@pytest.mark.parametrize("vision", ["true", "false"])
def test_accumulation_layout_and_frozen_vision(studies, student_dir, tmp_path, tuner, vision):
    common = {"tuner_type": tuner, "freeze_vit": vision, "max_steps": 6, "learning_rate": 1e-4, "rpo_alpha": 0.5}
    one, _ = train(student_dir, studies[0], tmp_path / "one", model_kwargs={"apo_layout": "shared"}, **common)
    two, _ = train(
        student_dir,
        studies[0],
        tmp_path / "two",
        model_kwargs={"apo_layout": "rows", "apo_one_look": "false", "apo_chunk_size": 7},
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        **common,
    )
    assert_same_run(one, two)
    assert column(one, "nll_loss") == pytest.approx(column(two, "nll_loss"), abs=1e-5)


def test_the_likelihood_of_the_consensus_is_added_and_labels_are_smoothed(studies, student_dir, tmp_path):
    """At the first step policy and reference are equal, so that the loss of N negatives is log(N + 1)."""
    rows = write_rows(tmp_path / "rows.jsonl", studies[1][:1])
    common = {"max_steps": 3, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "per_device_train_batch_size": 1}
    logs, _ = train(student_dir, rows, tmp_path / "nll", rpo_alpha=0.5, **common)
    assert logs[0]["loss"] == pytest.approx(math.log(8) + 0.5 * logs[0]["nll_loss"], abs=1e-5)
    tokens = -logs[0]["logps/chosen"] / logs[0]["nll_loss"]
    assert tokens > 5 and tokens == pytest.approx(round(tokens), abs=1e-3), "nats a token"
    assert logs[-1]["nll_loss"] < logs[0]["nll_loss"]
    plain, _ = train(student_dir, rows, tmp_path / "plain", **common)
    smoothed, _ = train(student_dir, rows, tmp_path / "smoothed", label_smoothing=0.2, **common)
    assert plain[0]["loss"] == pytest.approx(smoothed[0]["loss"], abs=1e-6)
    assert smoothed[-1]["loss"] > plain[-1]["loss"] + 1e-3


def test_a_last_micro_batch_that_is_not_full_gives_its_studies_no_more_weight(studies, student_dir, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", studies[1][:7])
    common = {"learning_rate": 1e-4, "rpo_alpha": 0.5}
    pairs = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    ours, _ = train(student_dir, rows, tmp_path / "pairs", **pairs, **common)
    single = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    theirs, _ = train(student_dir, rows, tmp_path / "single", **single, **common)
    assert_same_run(ours, theirs)


@pytest.mark.parametrize("reentrant", ["true", "false"])
def test_gradient_checkpointing_changes_nothing(shared_run, studies, student_dir, tmp_path, reentrant):
    (logs, _), _ = shared_run
    kwargs = {"gradient_checkpointing": "true", "gradient_checkpointing_kwargs": f'{{"use_reentrant": {reentrant}}}'}
    other, _ = train(student_dir, studies[0], tmp_path / "gc", max_steps=6, lr_scheduler_type="constant", **kwargs)
    plain, _ = train(
        student_dir,
        studies[0],
        tmp_path / "plain",
        max_steps=6,
        lr_scheduler_type="constant",
        gradient_checkpointing="false",
    )
    assert_same_run(other, plain)


def test_order_of_negatives_does_not_matter(shared_run, studies, student_dir, tmp_path):
    (logs, _), _ = shared_run
    turned = [{**row, "negative_messages": row["negative_messages"][::-1]} for row in studies[1]]
    path = write_rows(tmp_path / "rows.jsonl", turned)
    other, _ = train(student_dir, path, tmp_path / "out", max_steps=STEPS)
    assert_same_run(logs, other)


def counted_looks(monkeypatch):
    """A list that grows with every run of a vision tower of a trainer that is made from now on."""
    calls = []
    original = APOTrainer._settle_vision

    def counting(self):
        for model in self._models():
            model.visual.patch_embed.register_forward_hook(lambda *_: calls.append(1))
        original(self)

    monkeypatch.setattr(APOTrainer, "_settle_vision", counting)
    return calls


@pytest.mark.parametrize(
    ("flags", "looks"),
    [
        ({"freeze_vit": "true"}, 4),
        ({"freeze_vit": "false"}, 8),
        # the reference is a model of its own, with equal vision weights
        ({"freeze_vit": "true", "tuner_type": "full", "learning_rate": 1e-4}, 4),
        ({"freeze_vit": "false", "tuner_type": "full", "learning_rate": 1e-4}, 8),
    ],
)
def test_vision_tower_runs_once_for_policy_and_reference_when_frozen(
    studies, student_dir, tmp_path, monkeypatch, flags, looks
):
    calls = counted_looks(monkeypatch)
    train(student_dir, studies[0], tmp_path / "out", max_steps=4, per_device_train_batch_size=1, **flags)
    assert len(calls) == looks


@pytest.mark.parametrize(("freeze", "looks"), [("true", 4), ("false", 8)])
def test_an_adapter_as_the_reference_shares_the_look_where_it_leaves_the_tower_alone(
    studies, student_dir, tmp_path, monkeypatch, freeze, looks
):
    flags = {"max_steps": 4, "per_device_train_batch_size": 1, "freeze_vit": freeze, "learning_rate": 1e-2}
    train(student_dir, studies[0], tmp_path / "first", **flags | {"seed": 1})
    adapter = tmp_path / "first/checkpoint-4"
    flags |= {"adapters": adapter, "ref_adapters": adapter}
    plain, _ = train(student_dir, studies[0], tmp_path / "b", model_kwargs={"apo_one_look": "false"}, **flags)
    calls = counted_looks(monkeypatch)
    shared, _ = train(student_dir, studies[0], tmp_path / "a", **flags)
    assert len(calls) == looks
    assert_same_run(shared, plain)
    assert shared[0]["rewards/chosen"] == pytest.approx(0, abs=1e-5) and shared[3]["rewards/chosen"] != 0


def test_metrics_are_means_over_studies(studies, student_dir, tmp_path):
    """Whatever micro-batch or rank a study came in, the last of which are not full."""
    rows = write_rows(tmp_path / "five.jsonl", studies[1][:5])
    flags = {"val_dataset": rows, "eval_strategy": "steps", "eval_steps": 3, "max_steps": 3, "learning_rate": 1e-2}
    flags |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "logging_steps": 3}
    (*_, whole), (expected,) = train(student_dir, studies[0], tmp_path / "one", per_device_eval_batch_size=1, **flags)
    flags |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    (*_, halves), (pairs,) = train(student_dir, studies[0], tmp_path / "two", per_device_eval_batch_size=2, **flags)
    flags |= {"per_device_train_batch_size": 1}
    (*_, shared), (ranks,) = train_on_ranks(
        2, student_dir, studies[0], tmp_path / "ranks", per_device_eval_batch_size=2, **flags
    )
    names = [name for name in expected if name.startswith(("eval_rewards", "eval_logps", "eval_effective"))]
    assert len(names) > 8
    for found in (pairs, ranks):
        assert found["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-4)
    for name in names:
        assert pairs[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name
        assert ranks[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name
        train_name = name.removeprefix("eval_")
        assert halves[train_name] == pytest.approx(whole[train_name], rel=1e-3, abs=1e-4), train_name
        assert shared[train_name] == pytest.approx(whole[train_name], rel=1e-3, abs=1e-4), train_name
    # of all negatives alike, not of each study's mean
    assert whole["logps/rejected"] != pytest.approx(whole["rewards/rejected"], abs=1)


def test_evaluation_with_lora_on_the_vision_tower(studies, student_dir, tmp_path):
    flags = {
        "val_dataset": studies[0],
        "eval_strategy": "steps",
        "eval_steps": 3,
        "max_steps": 3,
        "freeze_vit": "false",
    }
    flags |= {"per_device_eval_batch_size": 2, "learning_rate": 1e-2}
    shared, shared_eval = train(student_dir, studies[0], tmp_path / "a", **flags)
    plain = {"apo_layout": "rows", "apo_one_look": "false"}
    rows, rows_eval = train(student_dir, studies[0], tmp_path / "b", model_kwargs=plain, **flags)
    assert_same_run(shared, rows)
    assert len(shared_eval) == 1
    assert shared_eval[0]["eval_loss"] == pytest.approx(rows_eval[0]["eval_loss"], abs=1e-5)
    assert 0 <= shared_eval[0]["eval_rewards/accuracies"] <= 1
    assert shared_eval[0]["eval_loss"] != pytest.approx(sum(map(math.log, (8, 2, 4, 10))) / 4, abs=1e-4)


def test_resume_continues_to_the_same_losses(shared_run, studies, student_dir, tmp_path):
    (logs, _), out = shared_run
    resumed, _ = train(
        student_dir,
        studies[0],
        tmp_path / "resumed",
        model_kwargs={"apo_layout": "shared"},
        max_steps=STEPS,
        resume_from_checkpoint=out / "checkpoint-10",
    )
    assert column(resumed[-10:], "loss") == column(logs[-10:], "loss")


def test_one_negative_equals_stock_dpo(student_dir, tmp_path, monkeypatch):
    """The same pairs through the stock trainer and loss, under the template that knows this vocabulary's ids."""
    rows = make_many_rows(tmp_path, 4, studies=2, negatives=(1, 1), films=(1, 2))
    pairs = [
        {
            "messages": row["messages"],
            "images": row["images"],
            "rejected_response": row["negative_messages"][0][0]["content"],
        }
        for row in rows
    ]
    gradients = {}
    original = torch.optim.AdamW.step

    def recording(name):
        def step(self, *args, **kwargs):
            gradients.setdefault(
                name, [p.grad.clone() for g in self.param_groups for p in g["params"] if p.grad is not None]
            )
            return original(self, *args, **kwargs)

        return step

    monkeypatch.setattr(torch.optim.AdamW, "step", recording("ours"))
    ours, _ = train(student_dir, write_rows(tmp_path / "groups.jsonl", rows), tmp_path / "ours", max_steps=8)
    monkeypatch.setattr(torch.optim.AdamW, "step", recording("stock"))
    stock, _ = train(
        student_dir, write_rows(tmp_path / "pairs.jsonl", pairs), tmp_path / "stock", max_steps=8, loss_type="sigmoid"
    )
    assert ours[0]["loss"] == pytest.approx(stock[0]["loss"], abs=1e-6)
    assert column(ours, "loss") == pytest.approx(column(stock, "loss"), abs=1e-5)
    assert column(ours, "rewards/margins") == pytest.approx(column(stock, "rewards/margins"), abs=1e-4)
    assert len(gradients["ours"]) == len(gradients["stock"]) > 0
    for got, wanted in zip(gradients["ours"], gradients["stock"], strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"loss_type": ["plackett_luce", "sigmoid"]}, "stands alone"),
        ({"loss_type": "sigmoid"}, "trained by --loss_type plackett_luce"),
        ({"beta": "-1"}, "beta must be positive"),
        ({"label_smoothing": "0.6"}, "label_smoothing must be in"),
        ({"rpo_alpha": "-1"}, "rpo_alpha must not be negative"),
        ({"loss_weights": "0.5"}, "loss_weights has no meaning"),
        ({"truncation_strategy": "right"}, "would cut what all responses share"),
        ({"model_kwargs": {"apo_layuot": "rows"}}, "did you mean apo_layout"),
        ({"model_kwargs": {"apo_chunk_size": "0"}}, "expected a positive number"),
    ],
)
def test_refuses_before_the_first_step(studies, student_dir, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        train(student_dir, studies[0], tmp_path / "out", max_steps=1, **flags)


def test_refuses_pairs_without_negative_messages(studies, student_dir, tmp_path):
    row = {key: value for key, value in studies[1][0].items() if key != "negative_messages"}
    path = write_rows(tmp_path / "rows.jsonl", [{**row, "rejected_response": "no edema"}] * 2)
    with pytest.raises(ValueError, match="rows with negative_messages"):
        train(student_dir, path, tmp_path / "out", max_steps=1)


def test_a_row_that_cannot_be_encoded_stops_the_run(studies, student_dir, tmp_path):
    """ms-swift would otherwise replace it by a random other row (--strict false)."""
    path = write_rows(tmp_path / "rows.jsonl", [{**studies[1][0], "images": [str(tmp_path / "missing.png")]}] * 2)
    # ms-swift takes a path that is no file for base64, and whether that decodes depends on the path's length
    with pytest.raises(Exception, match=r"missing\.png|cannot identify image file|padding|base64"):
        train(student_dir, path, tmp_path / "out", max_steps=1)
