"""What would cut, move or weigh the responses of a study: refused with the reason and the flag, never trained on."""

import types

import pytest

from apo.forward import check_template
from apo.loss import LOSSES
from apo.refusals import STUDY_LOSSES, refuse_settings, refuse_sliding_config
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
