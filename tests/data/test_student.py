"""The tiny student is an ordinary Qwen2.5-VL checkpoint, and the published tokenizer is rebuilt to the last id."""

import filecmp
import importlib.util
import json
import random
import subprocess
import sys
import unicodedata
from dataclasses import replace

import pytest

from data.errors import UserError
from data.phantom import qwen_tokenizer
from data.phantom.student import SHAPES, build_student

TEXTS = [
    "This is a patient's chest DR image <image>. Please help me determine the patient's disease.",
    "**Findings:** there is a small left pleural effusion.\n\n1. No pneumothorax, consolidation or edema is seen.",
    "FINDINGS: The heart is enlarged. IMPRESSION: cardiomegaly; the lungs are clear.",
] * 5

needs_dashscope = pytest.mark.skipif(
    importlib.util.find_spec("dashscope") is None,
    reason="dashscope (its qwen.tiktoken) is not installed: bash scripts/setup.sh --test",
)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student") / "tiny"
    build_student(folder, seed=3, texts=TEXTS)
    return folder


@pytest.fixture(scope="module")
def loaded(student):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoModelForImageTextToText.from_pretrained(student).eval(), AutoProcessor.from_pretrained(student)


@pytest.fixture(scope="module")
def published():
    return qwen_tokenizer.published_bpe()


def encode(processor, film, question="What is seen?"):
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor(text=[text], images=[film], return_tensors="pt")


def film(value=90, side=112):
    from PIL import Image

    return Image.new("RGB", (side, side), (value, value, value))


def test_auto_classes_load_qwen(loaded):
    model, processor = loaded
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert type(processor.tokenizer).__name__ == "Qwen2Tokenizer"
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_sizes(loaded, student):
    model, processor = loaded
    # At the full vocabulary of 2,048 the embedding is larger than with these few texts: count it as if it were full.
    missing = (SHAPES["tiny"].vocab - model.config.text_config.vocab_size) * SHAPES["tiny"].hidden
    assert 1_000_000 <= model.num_parameters() + missing <= 2_000_000
    assert len(processor.tokenizer) <= model.config.text_config.vocab_size
    assert json.loads((student / "student.json").read_text())["parameters"] == model.num_parameters()


def test_ids_agree_between_model_processor_and_generation(loaded):
    model, processor = loaded
    token_id = processor.tokenizer.convert_tokens_to_ids
    assert model.config.image_token_id == processor.image_token_id == token_id("<|image_pad|>")
    assert model.config.video_token_id == processor.video_token_id == token_id("<|video_pad|>")
    assert model.config.vision_start_token_id == token_id("<|vision_start|>")
    assert model.generation_config.eos_token_id == [token_id("<|im_end|>"), token_id("<|endoftext|>")]
    assert model.generation_config.do_sample is False
    assert processor.tokenizer.eos_token == "<|im_end|>"
    assert processor.tokenizer.pad_token == "<|endoftext|>"


def test_film_becomes_placeholders_and_changes_the_answer(loaded):
    import torch

    model, processor = loaded
    dark, bright = encode(processor, film(10)), encode(processor, film(240))
    assert (dark["input_ids"] == processor.image_token_id).sum() == (112 // 28) ** 2
    with torch.no_grad():
        a, b = model(**dark).logits, model(**bright).logits
    assert a.shape == (1, dark["input_ids"].shape[1], model.config.text_config.vocab_size)
    assert torch.isfinite(a).all()
    assert not torch.equal(a[:, -1], b[:, -1])


def test_generates_greedily(loaded):
    model, processor = loaded
    inputs = encode(processor, film(side=168))
    first = model.generate(**inputs, max_new_tokens=4)
    assert first.tolist() == model.generate(**inputs, max_new_tokens=4).tolist()


def test_chat_template_is_qwens(loaded):
    _, processor = loaded
    user = {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Compare."}]}
    film_block = "<|vision_start|><|image_pad|><|vision_end|>"
    asked = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{film_block}{film_block}Compare.<|im_end|>\n"
    )
    assert processor.apply_chat_template([user], add_generation_prompt=True) == asked + "<|im_start|>assistant\n"
    answered = processor.apply_chat_template([user, {"role": "assistant", "content": "Stable."}])
    assert answered == asked + "<|im_start|>assistant\nStable.<|im_end|>\n"
    system = processor.apply_chat_template([{"role": "system", "content": "Be brief."}, user])
    assert system.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


def test_added_tokens_keep_qwens_order(loaded):
    _, processor = loaded
    ids = processor.tokenizer.convert_tokens_to_ids(list(qwen_tokenizer.ADDED_TOKENS))
    assert ids == list(range(ids[0], ids[0] + 22))
    assert len(processor.tokenizer) == ids[-1] + 1


def test_any_text_survives_the_small_vocabulary(loaded):
    _, processor = loaded
    text = "Größe 12,5 cm – 左肺 \n\t<tool_call> 😀 effusion"
    ids = processor.tokenizer(text)["input_ids"]
    assert processor.tokenizer.decode(ids) == text
    assert len(processor.tokenizer(" effusion")["input_ids"]) < len(" effusion")


def test_same_seed_same_bytes(student, tmp_path):
    build_student(tmp_path / "again", seed=3, texts=TEXTS)
    names = sorted(path.name for path in student.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert filecmp.cmpfiles(student, tmp_path / "again", names, shallow=False) == (names, [], [])
    build_student(tmp_path / "other", seed=4, texts=TEXTS)
    _, changed, _ = filecmp.cmpfiles(student, tmp_path / "other", names, shallow=False)
    assert changed == ["model.safetensors", "student.json"]


def test_building_leaves_the_global_random_state_alone(tmp_path):
    import torch

    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    build_student(tmp_path / "s", seed=9, texts=TEXTS)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"texts": ["  "]}, "no text"),
        ({"texts": TEXTS, "shape": replace(SHAPES["tiny"], hidden=130)}, "--hidden 130"),
        ({"texts": TEXTS, "shape": replace(SHAPES["tiny"], heads=8, kv_heads=3)}, "--kv-heads"),
        ({"texts": TEXTS, "shape": replace(SHAPES["tiny"], layers=0)}, "--layers 0"),
        ({"texts": TEXTS, "shape": replace(SHAPES["tiny"], vocab=200)}, "at least 278"),
        ({"tokenizer": "llama"}, "llama"),
        ({"texts": TEXTS, "seed": 2**63}, "--seed 9223372036854775808"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(kwargs, message, tmp_path):
    with pytest.raises(UserError, match=message):
        build_student(tmp_path / "s", **{"seed": 0, **kwargs})
    assert list(tmp_path.iterdir()) == []


def test_a_used_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        build_student(tmp_path, seed=0, texts=TEXTS)
    with pytest.raises(UserError, match=r"--out .*notes.txt is not a folder"):
        build_student(tmp_path / "notes.txt" / "student", seed=0, texts=TEXTS)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_command_line_names_what_is_missing(tmp_path):
    command = [sys.executable, "-m", "data.phantom.student", "--out", str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--texts" in done.stderr
    done = subprocess.run([*command, "--texts", str(tmp_path / "none.jsonl")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "none.jsonl" in done.stderr
    assert "Traceback" not in done.stderr


@needs_dashscope
def test_published_ids(published):
    assert published.encode("Hello, world!").ids == [9707, 11, 1879, 0]
    assert published.get_vocab_size() == 151665
    names = {151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>", 151652: "<|vision_start|>"}
    names |= {151653: "<|vision_end|>", 151655: "<|image_pad|>", 151656: "<|video_pad|>", 151657: "<tool_call>"}
    names |= {151664: "<|file_sep|>"}
    assert {number: published.id_to_token(number) for number in names} == names


@needs_dashscope
def test_published_ids_equal_tiktokens_everywhere(published):
    """The merge list rebuilt from ranks must do what tiktoken does with the ranks themselves, on any characters."""
    import tiktoken

    reference = tiktoken.Encoding(
        "qwen",
        pat_str=qwen_tokenizer.SPLIT,
        mergeable_ranks=qwen_tokenizer._read_ranks(qwen_tokenizer.tiktoken_file()),
        special_tokens={},
    )
    draw = random.Random(0)
    ranges = [(32, 127), (32, 127), (0xA0, 0x500), (0x4E00, 0x9FFF), (9, 14), (32, 33)]
    samples = ["".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(80)) for _ in range(200)]
    samples += TEXTS[:3]
    samples += ["cardiomediastinal silhouette; costophrenic angle; 12 x 14 mm   \n\n  pneumothoraces' IT'S"]
    for sample in samples:
        sample = unicodedata.normalize("NFC", sample)
        assert published.encode(sample).ids == reference.encode(sample)


@needs_dashscope
def test_student_at_the_published_vocabulary(tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    narrow = replace(SHAPES["tiny"], hidden=32, layers=1, intermediate=32, vision_hidden=32, vision_depth=1)
    build_student(tmp_path / "s", seed=0, tokenizer="qwen", shape=narrow)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "s")
    processor = AutoProcessor.from_pretrained(tmp_path / "s")
    assert processor.tokenizer("Hello, world!")["input_ids"] == [9707, 11, 1879, 0]
    assert model.config.image_token_id == processor.image_token_id == 151655
    assert model.get_output_embeddings().weight.shape[0] == 151936
    assert model(**encode(processor, film())).logits.shape[-1] == 151936
