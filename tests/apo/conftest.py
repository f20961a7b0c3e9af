"""A tiny random student, shared by the tests of this room."""

import numpy as np
import pytest

from tests.apo.cases import PROMPT, load, sentence


@pytest.fixture(scope="session")
def student_dir(tmp_path_factory):
    from data.phantom.student import Shape, build_student

    out = tmp_path_factory.mktemp("student") / "student"
    texts = [PROMPT, *(sentence(np.random.default_rng(i), 5, 30) for i in range(50))]
    build_student(
        out, seed=0, texts=texts, shape=Shape(hidden=64, layers=2, vision_hidden=32, vision_depth=2, vocab=600)
    )
    return out


@pytest.fixture(scope="session")
def student(student_dir):
    return load(student_dir)
