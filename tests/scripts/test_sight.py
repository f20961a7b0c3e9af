import json

import numpy as np
import pytest
from PIL import Image

from data.errors import UserError
from data.phantom.cohort import plan
from data.records import write_studies
from data.row_checks import check_row
from scripts.sight import answer, borders, main, squares


def write_films(folder, studies):
    (folder / "films").mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for study in studies:
        film = rng.integers(0, 256, (224, 224), dtype=np.uint8)
        Image.fromarray(film).save(folder / study["images"][0])


def test_squares_are_those_of_the_patches(tmp_path):
    film = np.zeros((112, 112), np.uint8)
    film[14:28, 98:112] = 200  # second row from above, last column
    film[98:112, :14:2] = 100  # last row, first column: stripes
    Image.fromarray(film).save(tmp_path / "film.png")
    mean, deviation = squares(str(tmp_path / "film.png"))
    assert mean[1, 7] == 200 and deviation[1, 7] == 0
    assert mean[7, 0] == 50 and deviation[7, 0] == 50
    assert mean.sum() == 250 and deviation.sum() == 50


def test_an_answer_has_a_digit_for_each_square():
    films = np.random.default_rng(0).random((50, 2, 8, 8))
    limits = borders(films)
    texts = [answer(film, limits) for film in films]
    words = texts[0].split()
    assert (words[0], words[9]) == ("light", "grain")
    assert all(len(word) == 8 and word.isdigit() for word in words[1:9] + words[10:]) and len(words) == 18
    digits = np.array([list(word) for text in texts for word in text.split() if word.isdigit()]).astype(int)
    assert np.bincount(digits.ravel(), minlength=10).tolist() == pytest.approx([640] * 10, abs=20), "tenths"
    top, left = films[0, 0, 0, 0], int(words[1][0])
    assert (left == 0 or limits[0, left - 1] < top) and (left == 9 or top <= limits[0, left])


def test_command_line_sees_training_films_and_nothing_else(tmp_path, capsys):
    train, test = (plan(split, 3, seed=0, world="balanced") for split in ("train", "test"))
    write_films(tmp_path, train + test)
    path, out = tmp_path / "studies.jsonl", tmp_path / "rows.jsonl"
    write_studies(path, train + test)
    main([str(path), "--out", str(out)])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["images"] for row in rows] == [[str(tmp_path / study["images"][0])] for study in train]
    for row in rows:
        check_row(row, "sft")
    first = out.read_bytes()
    silent = [{**study, "findings": None, "trajectories": [], "report": None} for study in train]
    write_studies(path, silent)
    main([str(path), "--out", str(out)])
    assert out.read_bytes() == first, "neither truth nor teachers are in a lesson"


def test_refusals(tmp_path):
    path = tmp_path / "studies.jsonl"
    write_studies(path, plan("test", 2, seed=0, world="balanced"))
    with pytest.raises(UserError, match="no study of split train"):
        main([str(path), "--out", str(tmp_path / "rows.jsonl")])
    write_studies(path, plan("train", 2, seed=0, world="balanced"))
    with pytest.raises(UserError, match="films/"):
        main([str(path), "--out", str(tmp_path / "rows.jsonl")])
    assert not (tmp_path / "rows.jsonl").exists()
