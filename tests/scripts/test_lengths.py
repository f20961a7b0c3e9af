"""Token lengths counted without torch are those of ms-swift's own encoding."""

import json
import os
import random
from pathlib import Path

import pytest
from PIL import Image

from data.errors import UserError
from data.phantom.student import SHAPES, build_student
from scripts.lengths import FilmLimits, check_lengths, film_limits, film_tokens, keep_fitting

ANSWERS = ["There is a small left pleural effusion.", "No pneumothorax.\n\n- **Edema:** none", "Clear."]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student") / "tiny"
    build_student(folder, seed=0, texts=ANSWERS * 3, shape=SHAPES["tiny"])
    return folder


@pytest.fixture
def rows(tmp_path):
    made = []
    for number, (width, height) in enumerate([(112, 112), (300, 90), (640, 512)]):
        Image.new("L", (width, height)).save(tmp_path / f"{number}.png")
        images = [str(tmp_path / f"{number}.png")] * (1 + number % 2)
        prompt = "What does this film show? " + "<image>" * len(images)
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": ANSWERS[number]}]
        made.append({"messages": messages, "images": images})
    return made


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


KWARGS = [{}, {"max_pixels": 401_408}, {"MIN_PIXELS": "200000"}, {"image_max_token_num": 50, "max_pixels": 784_000}]


@pytest.mark.parametrize("given", KWARGS, ids=str)
@pytest.mark.parametrize("max_pixels", [None, 30_000, 1_003_520])
def test_film_tokens_are_those_of_qwen(max_pixels, given, monkeypatch):
    from qwen_vl_utils.vision_process import smart_resize
    from swift.model.models.qwen import compat_qwen_vl_utils
    from swift.template.vision_utils import rescale_image

    for name in ("IMAGE_MAX_TOKEN_NUM", "IMAGE_MIN_TOKEN_NUM", "MAX_PIXELS", "MIN_PIXELS"):
        monkeypatch.setenv(name, "")  # so that what ms-swift adds goes when the test ends
    for name, value in given.items():
        monkeypatch.setenv(name.upper(), str(value))
    compat_qwen_vl_utils(image_patch_size=14)
    ends = (os.environ[f"IMAGE_{end}_TOKEN_NUM"] or default for end, default in (("MIN", 4), ("MAX", 16384)))
    fewest, most = (int(end) * 28**2 for end in ends)
    limits = film_limits(max_pixels, given)
    draw = random.Random(0)
    for _ in range(60):
        width, height = draw.randrange(20, 3000), draw.randrange(20, 3000)
        film = rescale_image(Image.new("L", (width, height)), max_pixels)
        rows, columns = smart_resize(film.height, film.width, 28, fewest, most)
        assert film_tokens(width, height, limits) == rows * columns // 28**2, (width, height)


@pytest.mark.parametrize("max_pixels", [None, 40_000])
def test_lengths_are_those_of_ms_swift(max_pixels, student, rows, tmp_path):
    from swift.model import get_model_processor
    from swift.template import get_template

    import apo.plugin  # noqa: F401  registers the template that reads the small vocabulary's placeholder ids

    _, processor = get_model_processor(str(student), model_type="qwen2_5_vl", load_model=False)
    template = get_template(processor, template_type="qwen2_5_vl", max_pixels=max_pixels)
    template.set_mode("train")
    for row in rows:
        path = save(tmp_path / "one.jsonl", [row])
        longest = check_lengths(path, student / "tokenizer.json", 100_000, FilmLimits(max_pixels))
        assert longest == len(template.encode(row)["input_ids"])


def test_the_longest_answer_counts_alone(student, rows, tmp_path):
    tokenizer = student / "tokenizer.json"
    row = rows[0]
    short = check_lengths(save(tmp_path / "a.jsonl", [row]), tokenizer, 10_000)
    negatives = [[{"role": "assistant", "content": text}] for text in ("Clear.", "effusion " * 50, "Clear.")]
    grown = check_lengths(save(tmp_path / "b.jsonl", [row | {"negative_messages": negatives}]), tokenizer, 10_000)
    turns = [row["messages"][0], {"role": "assistant", "content": "effusion " * 50}]
    alone = check_lengths(save(tmp_path / "c.jsonl", [row | {"messages": turns}]), tokenizer, 10_000)
    assert short < grown == alone


def test_long_rows_are_named(student, rows, tmp_path):
    path = save(tmp_path / "rows.jsonl", rows)
    longest = check_lengths(path, student / "tokenizer.json", 10_000)
    assert check_lengths(path, student / "tokenizer.json", longest) == longest
    with pytest.raises(UserError, match=rf"rows.jsonl:3: {longest} tokens .* over max_length {longest - 1}; raise"):
        check_lengths(Path(path), student / "tokenizer.json", longest - 1)


def test_rows_that_fit_are_kept_and_the_others_named(student, rows, tmp_path):
    tokenizer = student / "tokenizer.json"
    lengths = [check_lengths(save(tmp_path / f"{n}.jsonl", [row]), tokenizer, 10_000) for n, row in enumerate(rows)]
    path, target = save(tmp_path / "rows.jsonl", rows * 5), tmp_path / "fitting.jsonl"
    limit = sorted(lengths)[1]
    kept = keep_fitting(path, target, tokenizer, limit)
    assert (kept.rows, kept.longest, kept.dropped.count) == (10, limit, 5)
    longest = lengths.index(max(lengths))
    wanted = [row for row in rows * 5 if row != rows[longest]]
    assert [json.loads(line) for line in target.read_text().splitlines()] == wanted
    assert kept.dropped.first == [f"line {longest + 1 + 3 * n}: {max(lengths)} tokens" for n in range(5)]
    target.unlink()
    assert keep_fitting(path, target, tokenizer, max(lengths)).dropped.count == 0
    assert not target.exists(), "a file that fits is used as it is"
    with pytest.raises(UserError, match=r"every one of its 15 rows is over max_length 3; raise"):
        keep_fitting(path, target, tokenizer, 3)
