"""What would cut, move or weigh the responses of a study: refused with the reason and the flag, never trained on."""

import types

import pytest

from apo.forward import check_template
from apo.loss import LOSSES
from apo.options import Options
from apo.refusals import (
    READ_IN_SHARED_LEARN,
    STUDY_LOSSES,
    refuse_critique_settings,
    refuse_moving_reference,
    refuse_settings,
    refuse_shared_learn_settings,
    refuse_sliding_config,
    refuse_unread_options,
)
from tests.apo.cases import make_rows, train, write_rows

FLAGS = [
    ("packing", True, "cuts studies apart; set it to false"),
    ("padding_free", True, "cuts studies apart; set it to false"),
    ("sequence_parallel_size", 2, "set it to 1"),
    ("use_liger_kernel", True, "replaces the head .* set it to false"),
    ("padding_side", "left", "set it to right"),
    ("truncation_strategy", "left", "would cut what all responses share; use delete"),
    ("truncation_strategy", "right", "would cut what all responses share; use delete"),
    ("truncation_strategy", "split", "would cut what all responses share; use delete"),
    ("loss_scale", "react", "use last_round"),
    ("loss_scale", "all", "use last_round"),
    ("loss_scale", "last_round+ignore_empty_think", "use last_round"),
]


@pytest.mark.parametrize(("flag", "value", "why"), FLAGS)
def test_each_flag_is_refused_as_word_and_as_value(flag, value, why):
    for given in (value, str(value)):
        with pytest.raises(ValueError, match=f"^--{flag} .*{why}"):
            refuse_settings({flag: given})


UNREAD_IN_LEARN = [
    ("predict_with_generate", True),
    ("enable_dft_loss", True),
    ("enable_channel_loss", True),
    ("label_smoothing_factor", 0.1),
    ("loss_type", "cross_entropy"),
]


@pytest.mark.parametrize(("flag", "value"), UNREAD_IN_LEARN)
def test_what_learning_whole_studies_does_not_read_is_refused(flag, value):
    for given in (value, str(value)):
        with pytest.raises(ValueError, match=f"^--{flag} .* leave it out"):
            refuse_shared_learn_settings({flag: given})
    refuse_shared_learn_settings({"predict_with_generate": False, "label_smoothing_factor": 0.0, "loss_type": None})


MOVING = [
    ("tuner_type", "adapter", "use lora or full"),
    ("tuner_type", "lora_llm", "use lora or full"),
    ("lora_bias", "all", "set it to none"),
    ("init_weights", "pissa", "use true, false or gaussian"),
    ("neftune_noise_alpha", 5.0, "leave it out"),
    ("label_smoothing_factor", 0.1, "--label_smoothing$"),
    ("sync_ref_model", True, "stays frozen"),
]


@pytest.mark.parametrize(("flag", "value", "why"), MOVING)
def test_what_would_move_the_reference_is_refused(flag, value, why):
    for given in (value, str(value)):
        with pytest.raises(ValueError, match=f"^--{flag} .*{why}"):
            refuse_critique_settings({flag: given})
    refuse_settings({flag: value})  # Learn has no reference


def test_a_reference_of_its_own_is_for_full_tuning_alone():
    """As in ms-swift, whose error names no flag."""
    refuse_critique_settings({"tuner_type": "full", "ref_model": "other"})
    for tuner in ({}, {"tuner_type": "lora"}, {"tuner_type": "lora_llm"}):
        with pytest.raises(ValueError, match="^--ref_model: .*--tuner_type full alone, and this is lora"):
            refuse_critique_settings({**tuner, "ref_model": "other"}, reference_free=True)
    refuse_critique_settings(
        {"tuner_type": "lora", "init_weights": True, "lora_bias": "none", "neftune_noise_alpha": None}
    )


@pytest.mark.parametrize("name", ["cache_dir", "cache_only", "length_normalised", "reference_free", "one_look"])
def test_options_that_nothing_would_read_are_refused(name):
    given = Options(**{"layout": "rows", name: "other"})
    with pytest.raises(ValueError, match=f"^apo_{name}: not read by this kind of training; leave out$"):
        refuse_unread_options(given, READ_IN_SHARED_LEARN)
    with pytest.raises(ValueError, match=f"^apo_layout, apo_{name}: "):
        refuse_unread_options(given)
    refuse_unread_options(Options())


def test_only_an_adapter_may_be_trained_on_a_shared_base():
    refuse_moving_reference(
        ["model.q.lora_A.default.weight", "lm_head.modules_to_save.default.weight", "q.lora_magnitude_vector.d.weight"],
        is_adapter=True,
    )
    with pytest.raises(ValueError, match=r"model\.q\.base_layer\.bias is trained \(1 such\)"):
        refuse_moving_reference(["model.q.lora_A.default.weight", "model.q.base_layer.bias"], is_adapter=True)
    with pytest.raises(ValueError, match="its own reference"):
        refuse_moving_reference([], is_adapter=False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tuner_type": "adapter"}, "no adapter to turn off"),
        ({"tuner_type": "lora_llm"}, "is trained"),
        ({"lora_bias": "all"}, "bias is trained"),
        ({"init_weights": "pissa"}, "init_weights pissa"),
        ({"neftune_noise_alpha": "5"}, "neftune_noise_alpha 5"),
        ({"label_smoothing_factor": "0.1"}, "label_smoothing_factor 0.1"),
    ],
)
def test_a_moving_reference_stops_the_run_without_our_launcher(student_dir, tmp_path, flags, message):
    rows = write_rows(tmp_path / "rows.jsonl", make_rows(tmp_path, studies=2, negatives=(2, 1), films=(1, 1)))
    with pytest.raises(ValueError, match=message):
        train(student_dir, rows, tmp_path / "out", max_steps=1, **flags)


@pytest.mark.parametrize("flags", [{"use_dora": "true"}, {"modules_to_save": "lm_head"}])
def test_what_turning_the_adapter_off_undoes_is_trained(student_dir, tmp_path, flags):
    rows = write_rows(tmp_path / "rows.jsonl", make_rows(tmp_path, studies=2, negatives=(2, 1), films=(1, 1)))
    logs, _ = train(student_dir, rows, tmp_path / "out", max_steps=2, num_train_epochs=2, learning_rate=1e-2, **flags)
    assert logs[0]["rewards/chosen"] == pytest.approx(0, abs=1e-5) and logs[1]["rewards/chosen"] != 0


def test_defaults_pass():
    refuse_settings({})
    refuse_settings({"packing": "false", "padding_free": None, "sequence_parallel_size": "1", "padding_side": "right"})
    refuse_settings({"truncation_strategy": "raise", "loss_scale": "default", "learning_rate": "1e-4"})


@pytest.mark.parametrize(("flag", "value", "why"), FLAGS)
def test_the_template_is_asked_too(student, flag, value, why):
    """For runs without our launcher: what ms-swift made of the flags."""
    _, template = student
    names = ("padding_free", "packing", "sequence_parallel_size", "padding_side", "truncation_strategy", "_loss_scale")
    seen = types.SimpleNamespace(**{name: getattr(template, name) for name in names})
    args = types.SimpleNamespace(use_liger_kernel=False)
    check_template(seen, args)
    setattr(args if flag == "use_liger_kernel" else seen, "_loss_scale" if flag == "loss_scale" else flag, value)
    with pytest.raises(ValueError, match=f"^--{flag} .*{why}"):
        check_template(seen, args)


@pytest.mark.parametrize("stage", ["critique", "learn"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"padding_side": "left"}, "--padding_side left"),
        ({"loss_scale": "all"}, "--loss_scale all"),
        ({"loss_scale": "react"}, "--loss_scale react"),
        ({"truncation_strategy": "split"}, "truncation_strategy|split"),
        ({"packing": "true"}, "packing"),
        ({"padding_free": "true"}, "padding_free"),
    ],
)
def test_training_stops_before_the_first_step(student_dir, tmp_path, monkeypatch, stage, flags, message):
    rows = make_rows(tmp_path, studies=2, negatives=(2, 1), films=(1, 1))
    if stage == "learn":
        rows = [{"positive_messages": row.pop("negative_messages"), **row} for row in rows]
    monkeypatch.setattr("apo.head.selected_logps", lambda *_: pytest.fail("a forward pass was made"))
    with pytest.raises(ValueError, match=message):
        train(
            student_dir, write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out", stage=stage, max_steps=1, **flags
        )


def test_sliding_layers_are_counted():
    released = {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 28, "num_hidden_layers": 28}
    refuse_sliding_config(released)
    refuse_sliding_config({**released, "use_sliding_window": True})
    refuse_sliding_config({"text_config": {"layer_types": ["full_attention"] * 2, "num_hidden_layers": 2}})
    with pytest.raises(ValueError, match="7 of its 28 layers .*apo_layout"):
        refuse_sliding_config({**released, "use_sliding_window": True, "max_window_layers": 21})


def test_a_sliding_layer_stops_the_run(student_dir, tmp_path):
    import json
    import shutil

    other = tmp_path / "sliding"
    shutil.copytree(student_dir, other)
    config = json.loads((other / "config.json").read_text())
    changed = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    changed["layer_types"] = ["full_attention", "sliding_attention"]
    config["text_config"] |= changed
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="1 of its 2 layers"):
        refuse_sliding_config(config)
    rows = write_rows(tmp_path / "rows.jsonl", make_rows(tmp_path, studies=2, negatives=(2, 1), films=(1, 1)))
    with pytest.raises(ValueError, match="sliding_attention layers.*apo_layout"):
        train(other, rows, tmp_path / "out", max_steps=1)
    logs, _ = train(other, rows, tmp_path / "rows", model_kwargs={"apo_layout": "rows"}, max_steps=1)
    assert len(logs) == 1


def test_the_launcher_knows_every_loss_over_studies():
    assert set(STUDY_LOSSES) == set(LOSSES)


def test_sliding_layers_are_told_by_their_kinds_or_else_by_the_old_fields():
    old = {"use_sliding_window": True, "sliding_window": 8, "num_hidden_layers": 4}
    refuse_sliding_config(old)  # without max_window_layers no layer is named
    refuse_sliding_config(old | {"max_window_layers": 1, "sliding_window": None})
    refuse_sliding_config(old | {"max_window_layers": 1, "layer_types": ["full_attention"] * 4})
    for config in (old | {"max_window_layers": 1}, {"text_config": old | {"max_window_layers": 1}}):
        with pytest.raises(ValueError, match="3 of its 4 layers"):
            refuse_sliding_config(config)
    with pytest.raises(ValueError, match="1 of its 2 layers"):
        refuse_sliding_config({"layer_types": ["full_attention", "chunked_attention"], "num_hidden_layers": 2})
