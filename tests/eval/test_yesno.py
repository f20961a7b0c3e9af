"""P(yes) of a tiny random student, against a plain transformers forward pass of every prompt on its own."""

import json

import numpy as np
import pytest
from PIL import Image

from data.errors import UserError
from eval import compare as comparison
from eval import run, yesno
from tests.eval.cases import study

QUESTIONS = [f"Does this chest X-ray show {finding}? Answer yes or no." for finding in ("edema", "a large mass", "air")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from data.phantom.qwen_tokenizer import CHAT_WORDS
    from data.phantom.student import Shape, build_student

    out = tmp_path_factory.mktemp("yesno") / "student"
    shape = Shape(hidden=64, layers=2, vision_hidden=32, vision_depth=2, vocab=600)
    build_student(out, seed=4, texts=[CHAT_WORDS, *QUESTIONS] * 3, shape=shape)
    return out


@pytest.fixture(scope="module")
def student(checkpoint):
    from apo.student_engine import Student
    from data import checkpoints

    return Student(checkpoints.describe(checkpoint))


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("films"), np.random.default_rng(0)
    paths = []
    for number, size in enumerate(((84, 112), (112, 84), (140, 140))):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    return paths


@pytest.fixture(scope="module")
def plain(checkpoint):
    """P(yes) and mass from transformers alone: processor, chat template, softmax of the last position."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)

    def score(question, images, prefix=""):
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        opened = [Image.open(path).convert("RGB") for path in images] or None
        inputs = processor(text=[text + prefix], images=opened, return_tensors="pt")
        with torch.no_grad():
            chances = model(**inputs).logits[0, -1].double().softmax(-1)
        total = {}
        for word in ("yes", "no"):
            forms = {word, word.upper(), word.title()}
            total[word] = sum(
                float(chances[i])
                for i in range(len(processor.tokenizer))
                if processor.tokenizer.decode([i]) in forms | {f" {form}" for form in forms}
            )
        mass = total["yes"] + total["no"]
        return total["yes"] / mass, mass

    return score


def compare(found, expected, tolerance):
    assert [a["p_yes"] for a in found] == pytest.approx([p for p, _ in expected], abs=tolerance)
    assert [a["mass"] for a in found] == pytest.approx([mass for _, mass in expected], abs=tolerance)


def test_p_yes_is_that_of_a_plain_forward_pass(student, plain, films):
    prompts = [(question, [film]) for film in films for question in QUESTIONS]
    found = yesno.p_yes(student, prompts)
    compare(found, [plain(*prompt) for prompt in prompts], 1e-5)
    assert len({round(a["p_yes"], 6) for a in found}) == len(prompts), "films and questions change the score"


def test_batched_is_single(student, films):
    prompts = [(question, [film]) for film in films for question in QUESTIONS]
    together = yesno.p_yes(student, prompts)
    alone = [yesno.p_yes(student, [prompt])[0] for prompt in prompts]
    compare(together, [(a["p_yes"], a["mass"]) for a in alone], 1e-4)
    mixed = yesno.p_yes(student, prompts[::-1])[::-1]
    compare(mixed, [(a["p_yes"], a["mass"]) for a in together], 1e-5)


def test_two_films_no_film_and_a_prefix(student, plain, films):
    for images in (films[:2], []):
        compare(yesno.p_yes(student, [(q, images) for q in QUESTIONS]), [plain(q, images) for q in QUESTIONS], 1e-5)
    prefix = "Answer: "
    found = yesno.p_yes(student, [(q, films[:1]) for q in QUESTIONS], prefix=prefix)
    compare(found, [plain(q, films[:1], prefix) for q in QUESTIONS], 1e-5)
    assert found != yesno.p_yes(student, [(q, films[:1]) for q in QUESTIONS])


def test_many_questions_take_several_passes_and_change_nothing(student, films, monkeypatch):
    prompts = [(question, films[:1]) for question in QUESTIONS]
    whole = yesno.p_yes(student, prompts)
    monkeypatch.setattr(yesno, "TAIL_TOKENS", 5)
    compare(yesno.p_yes(student, prompts), [(a["p_yes"], a["mass"]) for a in whole], 1e-6)


def test_the_engine_answers_as_before(student, films):
    ask = [(QUESTIONS[0], films[:1])]
    before = student.answer(ask, max_new_tokens=4, temperature=0.0, seed=0)
    yesno.p_yes(student, ask)
    assert student.answer(ask, max_new_tokens=4, temperature=0.0, seed=0) == before


class Words:
    """A tokenizer that knows the given forms as one token each and spells everything else."""

    def __init__(self, *known):
        self.known = known

    def encode(self, text, add_special_tokens):
        return [self.known.index(text)] if text in self.known else [99] * len(text)


def test_variants_are_single_tokens_by_id():
    assert yesno.variant_ids(Words("Yes", "no", " yes", "YES", " No", "yesterday")) == ([0, 2, 3], [1, 4])
    with pytest.raises(UserError, match="no single token for 'no'"):
        yesno.variant_ids(Words("Yes"))


def test_low_mass_is_reported():
    answers = [{"p_yes": 0.5, "mass": 0.2}, {"p_yes": 0.5, "mass": 0.25}]
    assert yesno.low_mass_note(answers).startswith("1 of 2 answers put less than 0.25")
    assert yesno.low_mass_note(answers[1:]) is None


def test_an_engine_without_probabilities_is_refused():
    class Other:
        class engine:
            template = None

    with pytest.raises(UserError, match="--backend transformers"):
        yesno.p_yes(Other, [])


def evaluate(checkpoint, root, out, *words):
    fixed = ["--benchmark", "phantom-zeroshot", "--data-root", str(root), "--device", "cpu", "--resamples", "20"]
    return run.main([str(checkpoint), *fixed, "--out", str(out), "--batch-size", "2", *words])


def test_a_zero_shot_run_whole_sharded_and_taken_up_again(checkpoint, make_file, tmp_path, capsys):
    studies = [study(i, {"Edema": None} if i % 2 else {"Pneumothorax": "left"}) for i in range(5)]
    root = make_file(studies).parent
    for number, one in enumerate(studies):
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 255, (84, 84), dtype=np.uint8)).save(root / one["images"][0])
    whole = tmp_path / "whole"
    evaluate(checkpoint, root, whole, "--name", "tiny")
    predictions = (whole / "phantom-zeroshot" / "predictions.jsonl").read_bytes()
    metrics = {row["name"]: row["metrics"] for row in results_of(whole)["rows"]}
    assert set(metrics) == {"tiny", "tiny, no image"}
    assert metrics["tiny"]["AUC/Edema"]["n"] == metrics["tiny"]["AUC/macro"]["n"] == 5
    assert metrics["tiny, no image"]["AUC/macro"]["value"] == 0.5
    assert any("3 of 5 labels have one class only" in note for note in results_of(whole)["notes"])

    parts = tmp_path / "parts"
    evaluate(checkpoint, root, parts, "--name", "tiny", "--shard", "2/2")
    evaluate(checkpoint, root, parts, "--name", "tiny", "--shard", "1/2")
    assert (parts / "phantom-zeroshot" / "predictions.jsonl").read_bytes() == predictions
    assert (parts / "results.json").read_bytes() == (whole / "results.json").read_bytes()

    again = tmp_path / "again"
    evaluate(checkpoint, root, again, "--name", "tiny")
    file = again / "phantom-zeroshot" / "predictions.jsonl"
    file.write_bytes(b"".join(predictions.splitlines(keepends=True)[:7]) + b'{"id": "test-1#Ed')
    evaluate(checkpoint, root, again, "--name", "tiny")
    assert file.read_bytes() == predictions
    assert (again / "results.json").read_bytes() == (whole / "results.json").read_bytes()

    capsys.readouterr()
    comparison.main([str(whole / "results.json"), str(again / "results.json"), "--out", str(tmp_path / "c.html")])
    assert "| AUC | n | A: tiny | B: tiny |" in capsys.readouterr().out


def results_of(out):
    return json.loads((out / "results.json").read_text())["benchmarks"]["phantom-zeroshot"]
