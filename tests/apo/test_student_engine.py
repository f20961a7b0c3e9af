"""The student as it generates, with ms-swift's engine."""

import pytest
from PIL import Image

from apo.student_engine import Student
from data import checkpoints

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def speaker(student_dir):
    return Student(checkpoints.describe(str(student_dir)), batch_size=2)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    paths = [tmp_path_factory.mktemp("films") / f"s{n}.png" for n in range(2)]
    for n, path in enumerate(paths):
        Image.effect_noise((56, 56), 40 + n).convert("L").save(path)
    return list(map(str, paths))


def test_what_is_drawn_depends_on_seed_and_batch_and_not_on_what_came_before(speaker, films):
    def draw(film, seed=0):
        prompts = [("<image>Findings?", [film]), ("Findings?", [])]
        return speaker.answer(prompts, max_new_tokens=8, temperature=1.0, seed=seed)

    first, second = draw(films[0]), draw(films[1])
    assert draw(films[1]) == second and draw(films[0]) == first
    assert first != second and draw(films[0], seed=1) != first


def test_a_film_counts_whatever_the_engine_and_a_prompt_beyond_the_model_is_too_long(speaker, films, monkeypatch):
    template = speaker.engine.template
    plain, whole = speaker.length("Findings?", []), speaker.length("<image>Findings?", films[:1])
    assert whole >= plain + 4
    mode = template.mode
    template.set_mode("vllm")
    assert speaker.length("<image>Findings?", films[:1]) == whole and template.mode == "vllm"
    monkeypatch.setattr(template, "max_length", whole - 1)
    assert speaker.length("<image>Findings?", films[:1]) == speaker.max_length + 1 and template.mode == "vllm"
    template.set_mode(mode)
