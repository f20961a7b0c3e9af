"""The planner's formulas against counting: FLOPs by torch's counter on the real shapes, memory by what autograd saves.

Nothing here holds weights: models are on the meta device. There, attention is made of plain matrix products, so that
the counter sees all L x L pairs of a row whatever its mask; the formula is then asked for the same pairs.
"""

import contextlib
import json
import re
import types
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLForConditionalGeneration

from apo import attention, flops, memory, shapes
from apo.attention import row_segments, shared_mask
from apo.flops import Setup, Study
from apo.head import selected_logps
from apo.plan import figure_panels, main
from data.errors import UserError
from scripts.settings import stage_of

ROOT = Path(__file__).parents[2]
STUDY = Study(prompt=616, film=576, response=200, trajectories=7)
RESPONSES = STUDY.trajectories + 1
LAYERS = 2
TOLERANCE = 0.001  # 0.05 is asked for
ALL_LINEAR = r".*language_model\.layers\..*_proj"


def seven_b(layers=LAYERS, vision_layers=1):
    """The real widths of 7B with few layers, which are all alike: its configuration and shape."""
    config = shapes.released_config("7B")
    config.text_config.num_hidden_layers = layers
    config.text_config.layer_types = config.text_config.layer_types[:layers]
    config.vision_config.depth = vision_layers
    return config, shapes.shape_of(config)


def language_model(config, tuner, implementation="sdpa"):
    """Decoder and head on the meta device: frozen but for LoRA, or trained in full."""
    model = shapes.build(config).to(torch.bfloat16)
    if tuner == "lora":
        import peft

        lora = peft.LoraConfig(r=8, target_modules=ALL_LINEAR)
        model = peft.get_peft_model(model, lora, low_cpu_mem_usage=True).get_base_model()
    model.model.language_model.config._attn_implementation = implementation
    return model.train()


def states(model, batch, tokens, **kwargs):
    hidden = model.config.text_config.hidden_size
    # as with embeddings whose inputs require gradients, which ms-swift sees to
    embeddings = torch.empty(batch, tokens, hidden, device="meta", dtype=torch.bfloat16, requires_grad=True)
    positions = torch.zeros(3, batch, tokens, dtype=torch.long, device="meta")
    model = model.model.language_model
    return model(inputs_embeds=embeddings, position_ids=positions, use_cache=False, **kwargs).last_hidden_state


def counted_step(model, layout, **kwargs):
    """FLOPs of forward and backward through decoder and head, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        hidden = states(model, layout.rows, layout.tokens // layout.rows, **kwargs)
        index = torch.zeros(layout.targets, dtype=torch.long, device="meta")
        selected_logps(model.get_output_embeddings(), hidden, index, index, 256).sum().backward()
    return counter.get_total_flops()


def formula_step(shape, layout, setup):
    return sum(flops.policy(shape, layout, STUDY, setup)._replace(vision=0))


@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "non-reentrant"])
@pytest.mark.parametrize("tuner", ["lora", "full"])
@pytest.mark.parametrize("name", ["shared", "plain rows", "stock pairs"])
def test_flops_of_a_step_as_counted(name, tuner, checkpointing):
    config, shape = seven_b()
    model = language_model(config, tuner)
    if checkpointing != "none":
        kind = {"use_reentrant": checkpointing == "reentrant"}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kind)
    setup = Setup(full=tuner == "full", checkpointing=checkpointing != "none")
    layout = flops.dense(next(w.layout for w in flops.critique_ways(shape, STUDY, setup) if w.name == name))
    kwargs = {}
    if name == "shared":
        kwargs["attention_mask"] = torch.ones(1, 1, layout.tokens, layout.tokens, dtype=torch.bool, device="meta")
    counted = counted_step(model, layout, **kwargs)
    formula = formula_step(shape, layout, setup)
    if tuner == "full" and checkpointing == "non-reentrant":
        # torch stops recomputing at the last tensor that is needed: before a layer's last product
        formula -= 2 * LAYERS * shape.hidden * shape.intermediate * layout.tokens
    assert formula == pytest.approx(counted, rel=TOLERANCE)


def test_flops_of_the_reference_as_counted():
    config, shape = seven_b()
    model = language_model(config, "full")
    layout = flops.dense(flops.shared(STUDY, RESPONSES))
    mask = torch.ones(1, 1, layout.tokens, layout.tokens, dtype=torch.bool, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        hidden = states(model, 1, layout.tokens, attention_mask=mask)
        index = torch.zeros(layout.targets, dtype=torch.long, device="meta")
        selected_logps(model.get_output_embeddings(), hidden, index, index, 256)
    assert sum(flops.reference(shape, layout, STUDY, 0)) == pytest.approx(counter.get_total_flops(), rel=TOLERANCE)


def test_flops_of_split_attention_as_counted(monkeypatch):
    """Prefix against prefix and each response against prefix and itself: whole rectangles of pairs, causal or not."""

    def mask_without_values(*size):
        # torch's own lazy one is a tensor subclass that cannot be made under a counter
        return torch.ones(size, dtype=torch.bool, device="meta")

    monkeypatch.setattr(attention, "causal_lower_right", mask_without_values)
    config, shape = seven_b()
    model = language_model(config, "lora", attention.NAME)
    needed = flops.shared(STUDY, RESPONSES)
    counted = counted_step(model, needed, **{attention.SHAPES_KEY: ((STUDY.prompt, *[STUDY.response] * RESPONSES),)})
    rectangles = STUDY.prompt**2 + RESPONSES * STUDY.response * (STUDY.prompt + STUDY.response)
    setup = Setup(checkpointing=False)
    assert formula_step(shape, needed._replace(pairs=rectangles), setup) == pytest.approx(counted, rel=TOLERANCE)
    # The whole step, with causal halves counted whole, is within 5 % of what is needed.
    assert formula_step(shape, needed, setup) == pytest.approx(counted, rel=0.05)


def test_pairs_are_those_of_the_mask():
    small = Study(prompt=37, film=20, response=11, trajectories=4)
    layout = flops.shared(small, 5)
    segments = row_segments(((small.prompt, *[small.response] * 5),), layout.tokens, torch.device("cpu"))
    assert layout.pairs == int(shared_mask(segments, None).sum())
    plain = flops.rows(small, 5)
    row = torch.ones(small.prompt + small.response, small.prompt + small.response).tril()
    assert plain.pairs == 5 * int(row.sum())
    assert flops.dense(plain).pairs == 5 * row.numel()


@pytest.mark.parametrize("trains", [False, True])
def test_flops_of_the_vision_tower_as_counted(trains):
    config, _ = seven_b(vision_layers=3)
    config.vision_config.fullatt_block_indexes = [1]
    shape = shapes.shape_of(config)
    tower = shapes.build(config).model.visual
    height, width = 24, 32
    pixels = torch.empty(height * width, shape.patch, device="meta")
    positions = torch.zeros(height * width, 2, dtype=torch.long, device="meta")
    grad = contextlib.nullcontext() if trains else torch.no_grad()
    with grad, FlopCounterMode(display=False) as counter:
        out = tower(pixels, torch.tensor([[1, height, width]]), position_ids=positions).pooler_output
        if trains:
            out.sum().backward()
    film = height * width // shapes.PATCHES_A_TOKEN
    assert len(out) == film
    study = STUDY._replace(film=film)
    setup = Setup(full=True, checkpointing=False, freeze_vit=not trains, freeze_aligner=not trains)
    formula = flops.policy(shape, flops.shared(study, 1), study, setup).vision
    assert formula == pytest.approx(counter.get_total_flops(), rel=TOLERANCE)


def test_sharing_saves_what_the_tokens_say():
    """Linear layers: rows / shared = (N + 1)(P + R) / (P + (N + 1) R)."""
    _, shape = seven_b()
    ways = {way.name: way for way in flops.critique_ways(shape, STUDY, Setup())}
    n, p, r = RESPONSES, STUDY.prompt, STUDY.response
    ratio = ways["plain rows"].policy.linear / ways["shared"].policy.linear
    assert ratio == pytest.approx(n * (p + r) / (p + n * r))
    assert [ways[name].films for name in ("shared", "plain rows", "stock pairs")] == [1, 8, 28]


def test_vision_that_trains_is_seen_twice():
    _, shape = seven_b()
    films = {way.name: way.films for way in flops.critique_ways(shape, STUDY, Setup(freeze_vit=False))}
    assert (films["shared"], films["plain rows"], films["stock pairs"]) == (2, 16, 28)


def test_cache_saves_nothing_in_its_first_epoch():
    _, shape = seven_b()
    way = flops.critique_ways(shape, STUDY, Setup())[0]
    assert flops.training(way, 10, 1, cache=True) == flops.training(way, 10, 1) == pytest.approx(10 * way.total)
    saved = flops.training(way, 10, 3) - flops.training(way, 10, 3, cache=True)
    assert saved == pytest.approx(20 * sum(way.reference))


# Parameters of the released checkpoints: total_size of their model.safetensors.index.json over two bytes.
RELEASED = {"3B": 3_754_622_976, "7B": 8_292_166_656, "32B": 33_452_718_336, "72B": 73_410_777_344}


@pytest.mark.parametrize("size", RELEASED)
def test_parameters_are_those_of_the_released_models(size):
    config = shapes.released_config(size)
    counts, shape = shapes.count(shapes.build(config), 8), shapes.shape_of(config)
    assert counts.total == RELEASED[size]
    assert counts.tied == (size == "3B")
    assert counts.adapter == shape.layers * flops.layer_adapter(shape, 8)
    assert set(counts.targets.values()) == {shape.layers}


@pytest.mark.parametrize(("freeze_vit", "freeze_aligner"), [(True, True), (False, True), (False, False), (True, False)])
def test_lora_targets_are_those_of_ms_swift(freeze_vit, freeze_aligner):
    from swift.model.model_arch import get_model_arch
    from swift.utils.transformers_utils import get_multimodal_target_regex

    config, _ = seven_b()
    model = shapes.build(config)
    model.model_meta = types.SimpleNamespace(model_arch=get_model_arch("qwen2_vl"), is_multimodal=True)
    frozen = {"freeze_vit": freeze_vit, "freeze_aligner": freeze_aligner}
    wanted = re.compile(get_multimodal_target_regex(model, **frozen))
    assert shapes.lora_targets(model, **frozen) == [name for name, _ in model.named_modules() if wanted.fullmatch(name)]


SMALL = Study(prompt=100, film=80, response=40, trajectories=7)


def saved_bytes(tuner, implementation, layers):
    """Bytes that autograd keeps for a small bfloat16 decoder on the CPU, each storage once, parameters apart."""
    config = shapes.released_config("7B")
    text = config.text_config
    text.hidden_size, text.num_attention_heads, text.num_key_value_heads, text.intermediate_size = 256, 2, 1, 512
    text.vocab_size, text.num_hidden_layers, text.layer_types = 50, layers, ["full_attention"] * layers
    config.vision_config.depth = 0
    model = Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16)
    if tuner == "lora":
        import peft

        model = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=ALL_LINEAR)).get_base_model()
    model.model.language_model.config._attn_implementation = implementation
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage
        return tensor

    layout = flops.shared(SMALL, RESPONSES)
    shape = {attention.SHAPES_KEY: ((SMALL.prompt, *[SMALL.response] * RESPONSES),)}
    # as ms-swift trains LoRA: float32 adapters under autocast
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=tuner == "lora")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        embeddings = torch.randn(1, layout.tokens, 256, dtype=torch.bfloat16, requires_grad=True)
        model.model.language_model(
            inputs_embeds=embeddings,
            position_ids=torch.zeros(3, 1, layout.tokens, dtype=torch.long),
            use_cache=False,
            **(shape if implementation == attention.NAME else {}),
        )
    return sum(storage.nbytes() for storage in kept.values()), shapes.shape_of(config), layout


@pytest.mark.parametrize("implementation", ["sdpa", attention.NAME])
@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_a_layer_keeps_what_autograd_saves(tuner, implementation):
    (one, shape, layout), (two, *_) = (saved_bytes(tuner, implementation, layers) for layers in (1, 2))
    setup = Setup(full=tuner == "full")
    formula = memory.layer_saved(shape, setup) * layout.tokens
    if implementation == attention.NAME:
        formula += memory.attention_copies(shape, layout, SMALL, setup, dense=False)
    assert formula == pytest.approx(two - one, rel=0.05)


def test_checkpointing_keeps_layer_boundaries_only():
    _, shape = seven_b(layers=28)
    layout = flops.shared(STUDY, RESPONSES)
    on, off = (memory.activations(shape, layout, STUDY, Setup(checkpointing=value)) for value in (True, False))
    boundaries = 28 * layout.tokens * shape.hidden * 2
    everything = 28 * layout.tokens * memory.layer_saved(shape, Setup())
    assert boundaries < on.kept < 1.5 * boundaries
    assert everything < off.kept < 1.5 * everything
    dense = memory.activations(shape, layout, STUDY, Setup(), dense=True)
    assert dense.mask == 3 * layout.tokens**2 and on.mask == 0


def test_zero_divides_optimizer_then_gradients_then_weights():
    counts = shapes.count(shapes.build(seven_b()[0]), 8)
    full = {zero: memory.states(counts, Setup(full=True, zero=zero, gpus=4), critique=True) for zero in range(4)}
    trained = counts.language + counts.head
    assert full[0][:4] == (2 * counts.total, 2 * trained, 12 * trained, 2 * counts.total)
    assert full[1][:4] == (2 * counts.total, 2 * trained, 3 * trained, 2 * counts.total)
    assert full[2][:4] == (2 * counts.total, trained / 2, 3 * trained, 2 * counts.total)
    assert full[3][:4] == (counts.total / 2, trained / 2, 3 * trained, counts.total / 2)
    assert memory.states(counts, Setup(full=True), critique=False).reference == 0
    assert memory.states(counts, Setup(), critique=True).reference == 0


def planned(capsys, tmp_path, *argv):
    out = tmp_path / "plan.json"
    main([*map(str, argv), "--json", str(out)])
    return json.loads(out.read_text(encoding="utf-8")), capsys.readouterr().out


def test_the_largest_micro_batch_is_the_largest():
    config = shapes.released_config("7B")
    counts, shape = shapes.count(shapes.build(config), 8), shapes.shape_of(config)
    study, setup = Study(1340, 1280, 256, 7), Setup()
    layout = flops.shared(study, 8)
    most = memory.largest(counts, shape, layout, study, setup, 80, critique=True)
    fits, over = (memory.needed(counts, shape, layout, study, setup, n, critique=True) for n in (most, most + 1))
    assert 1 < most < memory.MOST_STUDIES
    assert fits <= memory.usable(80) < over


def test_published_setting_reaches_the_goal(capsys, tmp_path):
    plan, text = planned(capsys, tmp_path, "configs/apo_qwen2_5_vl_7b.yaml")
    assert plan["flops"]["ratio"]["together"] >= 4
    shared = plan["flops"]["ways"]["critique: shared"]
    # within 5 % of: prefix once, responses once, one vision encode, one reference pass
    assert shared["decoder_tokens"] == 1340 + 8 * 256 and shared["vision_encodes"] == 1
    assert plan["setup"] == {**Setup()._asdict(), "gpus": 2}
    seconds = plan["flops"]["hours"]["learn"] * 3600
    assert seconds * 2 * 0.4 * 989e12 == pytest.approx(plan["flops"]["exaflop"]["learn"] * 1e18)
    assert plan["flops"]["exaflop"]["learn"] * 1e6 == pytest.approx(
        24426 * plan["flops"]["ways"]["learn: shared"]["tflop_a_study"]
    )
    assert max(map(len, text.splitlines())) <= 100
    for size in ("3B", "32B"):
        assert max(map(len, planned(capsys, tmp_path, "--model-size", size)[1].splitlines())) <= 100


def test_a_study_that_does_not_fit_is_said_with_a_remedy(capsys, tmp_path):
    plan, text = planned(capsys, tmp_path, "--model-size", "72B", "--gpus", 2)
    assert "Critique DOES NOT FIT" in text and "Learn DOES NOT FIT" in text
    remedy = plan["memory"]["does_not_fit"]["critique"]["remedies"][0]
    gpus = int(re.fullmatch(r"(\d+) GPUs with deepspeed: zero3", remedy)[1])
    config = tmp_path / "more.yaml"
    config.write_text("num_train_epochs: 1\ndeepspeed: zero3\n", encoding="utf-8")
    enough, _ = planned(capsys, tmp_path, config, "--model-size", "72B", "--gpus", gpus)
    assert not enough["memory"]["does_not_fit"]
    half, _ = planned(capsys, tmp_path, config, "--model-size", "72B", "--gpus", gpus // 2)
    assert half["memory"]["does_not_fit"]


def test_a_smaller_film_is_a_remedy_that_helps(capsys, tmp_path):
    arguments = ("--model-size", "7B", "--gpus", 1, "--gpu-memory", 20)
    plan, _ = planned(capsys, tmp_path, *arguments, "--response-tokens", 64, "--gpu-memory", 19.5)
    remedies = plan["memory"]["does_not_fit"]["critique"]["remedies"]
    pixels = next(re.match(r"max_pixels: (\d+) ", text)[1] for text in remedies if text.startswith("max_pixels"))
    config = tmp_path / "small.yaml"
    config.write_text(f"max_pixels: {pixels}\ndeepspeed: zero0\n", encoding="utf-8")
    small, _ = planned(capsys, tmp_path, config, *arguments, "--response-tokens", 64, "--gpu-memory", 19.5)
    assert "critique" not in small["memory"]["does_not_fit"]


def test_changes_that_help_only_together_are_named(capsys, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("tuner_type: full\ngradient_checkpointing: false\n", encoding="utf-8")
    arguments = ("--model-size", "3B", "--gpus", 1, "--gpu-memory", 24)
    refused = planned(capsys, tmp_path, config, *arguments)[0]["memory"]["does_not_fit"]
    *together, lora, bigger = refused["critique"]["remedies"]
    gpus = [int(re.match(r"(\d+) GPU", text)[1]) for text in [*together, lora]]
    assert gpus == sorted(gpus, reverse=True) and gpus[-1] == 1
    assert lora == "1 GPU and gradient_checkpointing: true and tuner_type: lora"
    config.write_text("tuner_type: lora\ndeepspeed: zero3\ngradient_checkpointing: true\n", encoding="utf-8")
    assert not planned(capsys, tmp_path, config, *arguments)[0]["memory"]["does_not_fit"]
    config.write_text("tuner_type: full\ndeepspeed: zero3\ngradient_checkpointing: true\n", encoding="utf-8")
    for n, fits in ((gpus[-2], True), (gpus[-2] // 2, False)):
        plan, _ = planned(capsys, tmp_path, config, *arguments, "--gpus", n)
        assert ("critique" not in plan["memory"]["does_not_fit"]) is fits
    config.write_text("tuner_type: full\ngradient_checkpointing: false\n", encoding="utf-8")
    gib = int(re.fullmatch(r"a GPU of (\d+) GiB", bigger)[1])
    for size, fits in ((gib, True), (gib - 2, False)):
        plan, _ = planned(capsys, tmp_path, config, *arguments, "--gpu-memory", size)
        assert ("critique" not in plan["memory"]["does_not_fit"]) is fits


def test_settings_come_from_the_configuration(capsys, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: Qwen/Qwen2.5-VL-3B-Instruct\ntuner_type: full\nfreeze_vit: false\ngradient_checkpointing: false\n"
        "deepspeed: zero3\nnum_train_epochs: 2\nmax_pixels: 200704\nmax_length: 400\neffective_batch_size: 64\n"
        "model_kwargs:\n  apo_chunk_size: 64\n  apo_one_look: false\n",
        encoding="utf-8",
    )
    plan, text = planned(capsys, tmp_path, config, "--gpus", 8)
    expected = Setup(
        full=True, zero=3, gpus=8, checkpointing=False, freeze_vit=False, one_look=False, chunk=64, epochs=2, batch=64
    )
    assert plan["setup"] == expected._asdict()
    assert plan["study"] == {"prompt": 316, "film": 256, "response": 256, "trajectories": 7}
    assert "over max_length 400" in text
    assert plan["parameters"]["trained"] == plan["parameters"]["language"] + plan["parameters"]["vision"]
    assert plan["flops"]["hours"]["critique_cached"] < plan["flops"]["hours"]["critique"]


TRAINING = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if stage_of(path) != "collect"]


@pytest.mark.parametrize("config", TRAINING, ids=lambda path: path.stem)
def test_every_shipped_training_configuration_is_planned(capsys, tmp_path, config):
    plan, _ = planned(capsys, tmp_path, config, "--model-size", "3B")
    assert plan["flops"]["hours"]["learn"] > 0


def test_a_configuration_of_collect_is_no_training():
    with pytest.raises(UserError, match="asks teachers and trains nothing"):
        main([str(ROOT / "configs/collect_example.yaml")])


def test_a_row_of_learn_that_is_a_study_counts_as_one(capsys, tmp_path):
    def a_step(line):
        config = tmp_path / "run.yaml"
        config.write_text(f"model: Qwen/Qwen2.5-VL-3B-Instruct\neffective_batch_size: 28\n{line}\n", encoding="utf-8")
        ways = planned(capsys, tmp_path, config)[0]["flops"]["ways"]
        return {name: ways[name]["pflop_a_step"] for name in ("learn: shared", "critique: shared")}

    rows, studies = a_step(""), a_step("share_prefix: true")
    assert studies["learn: shared"] == pytest.approx(7 * rows["learn: shared"])
    assert studies["critique: shared"] == rows["critique: shared"]


@pytest.mark.parametrize(("setting", "what"), [("", "4 trajectories (Learn) or"), ("share_prefix: true", "4 studies.")])
def test_what_a_step_holds_is_told(capsys, tmp_path, setting, what):
    config = tmp_path / "sft_run.yaml"
    config.write_text(f"model: Qwen/Qwen2.5-VL-3B-Instruct\neffective_batch_size: 4\n{setting}\n", encoding="utf-8")
    main([str(config)])
    assert f"PFLOP of {what}" in " ".join(capsys.readouterr().out.split())


def test_steps_given_take_the_place_of_epochs(capsys, tmp_path):
    config = tmp_path / "run.yaml"
    text = "model: Qwen/Qwen2.5-VL-3B-Instruct\neffective_batch_size: 4\nrlhf_type: dpo\n"
    config.write_text(text + "num_train_epochs: 3\nmax_steps: 30\n", encoding="utf-8")
    plan, said = planned(capsys, tmp_path, config, "--studies", 1000)
    assert plan["setup"]["epochs"] == pytest.approx(0.12) and "max_steps 30: 0.12 epochs of 1,000 rows" in said
    config.write_text(text + "num_train_epochs: 0.12\n", encoding="utf-8")
    assert planned(capsys, tmp_path, config, "--studies", 1000)[0]["flops"]["hours"] == plan["flops"]["hours"]


@pytest.mark.parametrize("steps", ["1e3", "100.0", "abc"])
def test_steps_that_are_no_number(tmp_path, steps):
    config = tmp_path / "sft_run.yaml"
    config.write_text(f"model: Qwen/Qwen2.5-VL-3B-Instruct\nmax_steps: {steps}\n", encoding="utf-8")
    with pytest.raises(UserError, match="max_steps .*: must be a whole number"):
        main([str(config)])


def test_a_checkpoint_folder_is_read(capsys, tmp_path, student_dir):
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {student_dir}\n", encoding="utf-8")
    plan, _ = planned(capsys, tmp_path, config)
    from safetensors import safe_open

    with safe_open(student_dir / "model.safetensors", "pt") as weights:
        total = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    assert plan["parameters"]["total"] == total


def test_the_released_layout_of_config_json_is_read(tmp_path):
    """Released checkpoints keep the language model's sizes at the top, not under text_config."""
    released = {
        "model_type": "qwen2_5_vl",
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
        "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
    }
    (tmp_path / "config.json").write_text(json.dumps(released), encoding="utf-8")
    config = shapes.folder_config(tmp_path)
    assert shapes.shape_of(config) == shapes.shape_of(shapes.released_config("7B"))
    assert shapes.count(shapes.build(config), 8).total == RELEASED["7B"]
    for more, message in (
        ({"num_attention_heads": 0}, "num_attention_heads is 0, must be at least 1"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"vision_config": {"num_heads": 0}}, "num_heads of vision_config is 0"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(released | more), encoding="utf-8")
        with pytest.raises(UserError, match=f"config.json: {message}"):
            shapes.folder_config(tmp_path)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "no model: pass a CONFIG.yaml or --model-size"),
        (["--model-size", "8B"], "--model-size 8B: unknown"),
        (["--model-size", "7B", "--gpus", "0"], "--gpus 0: must be a whole number of at least 1"),
        (["--model-size", "7B", "--gpus", "1.5"], "--gpus 1.5"),
        (["--model-size", "7B", "--gpu-memory", "-80"], "--gpu-memory -80: must be a positive number"),
        (["--model-size", "7B", "--gpu-memory", "nan"], "--gpu-memory nan"),
        (["--model-size", "7B", "--utilisation", "40"], "--utilisation 40: .* at most 1"),
        (["--model-size", "7B", "--peak-tflops", "inf"], "--peak-tflops inf"),
        (["--model-size", "7B", "--prompt-tokens", "61"], "--prompt-tokens 61: must leave room for a film"),
        (["absent.yaml"], "absent.yaml: cannot be read"),
    ],
)
def test_bad_flags_are_refused(argv, complaint):
    with pytest.raises(UserError, match=complaint):
        main(argv)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("lora_rank: 8", "no model; write it there or pass --model-size"),
        ("model: somewhere/student", "is not on disk and names no released size"),
        ("model: Qwen/Qwen2.5-VL-8B", "is not on disk and names no released size"),
        ("model: FOLDER", "holds no config.json"),
        ("modle: x", "did you mean model"),
        ("model: Qwen/Qwen2.5-VL-7B\ntuner_type: adalora", "tuner_type adalora"),
        ("model: Qwen/Qwen2.5-VL-7B\nlora_rank: 0", "lora_rank 0"),
        ("model: Qwen/Qwen2.5-VL-7B\nnum_train_epochs: -1", "num_train_epochs -1"),
        ("model: Qwen/Qwen2.5-VL-7B\nmax_pixels: 700", "max_pixels: under 4 film tokens"),
        ("model: Qwen/Qwen2.5-VL-7B\ndeepspeed: zero2_offload", "deepspeed zero2_offload"),
        ("model: Qwen/Qwen2.5-VL-7B\nfreeze_llm: true", "freeze_llm"),
        ("model: Qwen/Qwen2.5-VL-7B\nmodel_kwargs: {apo_chunksize: 1}", "did you mean apo_chunk_size"),
    ],
)
def test_bad_configurations_are_refused(tmp_path, lines, complaint):
    config = tmp_path / "run.yaml"
    config.write_text(lines.replace("FOLDER", str(tmp_path)) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=complaint):
        main([str(config)])


def test_json_takes_the_place_of_nothing_that_is_read(tmp_path):
    config, model = tmp_path / "run.yaml", tmp_path / "model"
    model.mkdir()
    config.write_text(f"model: {model}\ndeepspeed: {tmp_path}/zero.json\n", encoding="utf-8")
    for path in (config, model / "config.json", tmp_path / "zero.json"):
        with pytest.raises(UserError, match=f"--json {path}: is the input file; choose another"):
            main([str(config), "--json", str(path)])


def test_the_figure_has_the_ratios_of_the_plan(tmp_path):
    config = shapes.released_config("7B")
    shape, study, setup = shapes.shape_of(config), Study(600, 500, 200, 7), Setup()
    panels = {panel.label: panel for panel in figure_panels(shape, study, setup)}
    over_prompt = panels["tokens of prompt with film"]
    ways = {way.name: way.total for way in flops.critique_ways(shape, study._replace(film=500), setup)}
    at = over_prompt.values.index(600)
    assert over_prompt.lines["stock_pairs"][0][at] == pytest.approx(ways["stock pairs"] / ways["shared"])
    n = panels["N, trajectories a study"]
    assert n.lines["learn_rows"][0][n.values.index(1)] == pytest.approx(1, rel=1e-3)  # one trajectory shares nothing
    assert over_prompt.lines["plain_rows"][0] == sorted(over_prompt.lines["plain_rows"][0])
    main(["--model-size", "7B", "--figure", str(tmp_path / "ratios.svg")])
    assert b"<svg" in (tmp_path / "ratios.svg").read_bytes()
    with pytest.raises(UserError, match=r"--figure ratios.pdf: must end in .png or .svg"):
        main(["--model-size", "7B", "--figure", "ratios.pdf"])


def test_one_look_needs_all_of_it_frozen_and_the_option():
    _, shape = seven_b()
    for setup in (Setup(freeze_aligner=False), Setup(one_look=False), Setup(freeze_vit=False)):
        films = {way.name: way.films for way in flops.critique_ways(shape, STUDY, setup)}
        assert (films["shared"], films["plain rows"]) == (2, 16)
    ways = {way.name: way for way in flops.critique_ways(shape, STUDY, Setup())}
    assert ways["plain rows"].policy.vision == pytest.approx(8 * ways["shared"].policy.vision)
    assert ways["stock pairs"].reference.vision == pytest.approx(14 * ways["shared"].policy.vision)


def test_half_an_epoch_reads_half_of_the_reference():
    _, shape = seven_b()
    way = flops.critique_ways(shape, STUDY, Setup())[0]
    assert flops.training(way, 10, 0.5, cache=True) == pytest.approx(5 * way.total)


def test_a_frozen_merger_behind_a_tower_that_trains_has_no_gradient_of_its_weights():
    _, shape = seven_b()
    cost = {
        frozen: flops.policy(
            shape, flops.shared(STUDY, 1), STUDY, Setup(full=True, freeze_vit=False, freeze_aligner=frozen)
        ).vision
        for frozen in (True, False)
    }
    assert cost[False] - cost[True] == pytest.approx(flops.vision_forward(shape, STUDY.film)[3])


def test_peak_and_what_zero_and_float32_add_by_hand():
    assert [memory.Activations(5, *three, 1).peak for three in ((3, 7, 2), (7, 3, 2), (2, 3, 7))] == [13, 13, 13]
    counts = shapes.count(shapes.build(seven_b()[0]), 8)
    trained = counts.language + counts.head

    def states(**changes):
        return memory.states(counts, Setup(**{"full": True, "zero": 2, "gpus": 4, **changes}), critique=True)

    assert states().buffers == states(zero=1).buffers == 4 * min(memory.BUCKET, trained)
    assert states(zero=3).buffers == 2 * min(memory.LIVE_PARAMETERS, counts.total)
    assert states(zero=0).buffers == states(zero=3, gpus=1).buffers == 0
    exact = states(element_bytes=4, zero=0)
    assert exact[:4] == (4 * counts.total, 4 * trained, 8 * trained, 4 * counts.total)


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("freeze_vit", [True, False])
def test_activations_grow_with_studies_films_and_rows(checkpointing, freeze_vit):
    _, shape = seven_b()
    setup = Setup(checkpointing=checkpointing, freeze_vit=freeze_vit)
    shared, rows = flops.shared(STUDY, RESPONSES), flops.rows(STUDY, RESPONSES)
    for layout, dense in ((shared, False), (shared, True), (rows, True)):
        one, three = (memory.activations(shape, layout, STUDY, setup, dense=dense, studies=n) for n in (1, 3))
        for part in ("kept", "layer", "vision", "mask"):
            assert getattr(three, part) == pytest.approx(3 * getattr(one, part)), part
    assert memory.activations(shape, rows, STUDY, setup, dense=True).mask == 3 * RESPONSES * (616 + 200) ** 2
    many, once = (memory.activations(shape, layout, STUDY, setup).vision for layout in (rows, shared))
    assert many == RESPONSES * once


def test_a_tower_that_trains_keeps_its_blocks_or_their_borders():
    _, shape = seven_b(vision_layers=3)
    pixels = 64 * 4 * 4 * shape.patch
    (frozen, block), (borders, twice), (whole, _) = (
        memory.vision_activations(shape, 64, Setup(freeze_vit=frozen, checkpointing=checkpointing))
        for frozen, checkpointing in ((True, True), (False, True), (False, False))
    )
    assert (frozen, twice) == (pixels, 2 * block)
    assert borders - pixels == 3 * 2 * shape.vision_hidden * 64 * 4 and whole - pixels == 3 * block
