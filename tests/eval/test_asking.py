import json

import pytest
from PIL import Image

from data.errors import UserError
from eval import asking
from eval.items import Benchmark, Item

META = {"checkpoint": "abc", "items": "d"}


def make(tmp_path, count=7, kind="generate", films=True):
    """A benchmark of `count` items; yes/no items ask two questions a film."""
    items = []
    for i in range(count):
        film = tmp_path / f"film-{i // 2 if kind == 'yesno' else i}.png"
        Image.new("L", (32, 32), i).save(film)
        images = (str(film),) if films else ()
        items.append(Item(f"i{i}", f"p{i}", "", images, f"Film <image>, question {i % 2}?", {}))
    return Benchmark("b", kind, tuple(items), {}, {}, ())


class Ask:
    """Answers with the batch it was asked in, so that a changed batch changes the answer; breaks down at `until`."""

    def __init__(self, kind="generate", until=None):
        self.kind, self.until, self.batches = kind, until, []

    def __call__(self, prompts):
        names = [images[0].rpartition("/")[2] for _, images in prompts]
        if self.until in names:
            raise KeyboardInterrupt
        self.batches.append(names)
        if self.kind == "yesno":
            return [{"p_yes": (len(names) + len(prompt)) / 100, "mass": 1.0} for prompt, _ in prompts]
        return [{"text": f"{name} beside {'+'.join(names)}", "finish_reason": "stop"} for name in names]


def ask(benchmark, folder, one, shard=(1, 1), batch_size=2, meta=META, **more):
    rows = asking.rows_of(benchmark)
    common = {"kind": benchmark.kind, "batch_size": batch_size, "shard": shard, "problems": []}
    return asking.ask_all(rows, one, folder, "predictions", meta, **common | more)


@pytest.mark.parametrize("kind", ["generate", "yesno"])
def test_shards_join_to_the_file_of_a_whole_run(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(asking, "BLOCK", 3)
    benchmark = make(tmp_path, 11, kind)
    whole = ask(benchmark, tmp_path / "whole", Ask(kind))
    assert [row["id"] for row in whole] == [item.id for item in benchmark.items]
    students = [Ask(kind) for _ in range(3)]
    assert ask(benchmark, tmp_path / "parts", students[1], (2, 3)) is None
    assert ask(benchmark, tmp_path / "parts", students[2], (3, 3)) is None
    assert ask(benchmark, tmp_path / "parts", students[0], (1, 3)) == whole
    assert sum(len(batch) for one in students for batch in one.batches) == 11, "each question is asked once"
    for name in ("predictions.jsonl", "predictions.jsonl.meta.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    idle = Ask(kind)
    assert ask(benchmark, tmp_path / "parts", idle, (2, 3)) == whole and not idle.batches
    assert ask(benchmark, tmp_path / "parts", idle) == whole and not idle.batches, "nor as one run"


def test_more_shards_than_blocks(tmp_path):
    benchmark = make(tmp_path, 3)
    assert ask(benchmark, tmp_path / "x", Ask(), (2, 2)) is None, "the first shard has the only block"
    assert len(ask(benchmark, tmp_path / "x", Ask(), (1, 2))) == 3


def test_an_interrupted_run_ends_in_the_same_file(tmp_path):
    benchmark = make(tmp_path)
    whole = ask(benchmark, tmp_path / "whole", Ask())
    with pytest.raises(KeyboardInterrupt):
        ask(benchmark, tmp_path / "parts", Ask(until="film-4.png"))
    second = Ask()
    assert ask(benchmark, tmp_path / "parts", second) == whole
    assert second.batches == [["film-4.png", "film-5.png"], ["film-6.png"]]


def test_questions_about_a_film_stay_together(tmp_path):
    benchmark = make(tmp_path, 6, "yesno")
    order = (0, 2, 4, 1, 3, 5)
    mixed = Benchmark("b", "yesno", tuple(benchmark.items[i] for i in order), {}, {}, ())
    one = Ask("yesno")
    answers = ask(mixed, tmp_path / "x", one)
    assert one.batches == [["film-0.png"] * 2 + ["film-1.png"] * 2, ["film-2.png"] * 2]
    assert [row["id"] for row in answers] == [item.id for item in mixed.items]


def test_answers_of_another_checkpoint_are_refused(tmp_path):
    benchmark = make(tmp_path)
    ask(benchmark, tmp_path / "x", Ask())
    with pytest.raises(UserError, match="was made with other checkpoint"):
        ask(benchmark, tmp_path / "x", Ask(), meta=META | {"checkpoint": "new"})
    with pytest.raises(UserError, match="was made with other checkpoint"):
        ask(benchmark, tmp_path / "x", Ask(), (1, 2), meta=META | {"checkpoint": "new"})
    asking.clear(tmp_path / "x", "predictions")
    assert ask(benchmark, tmp_path / "x", Ask(), meta=META | {"checkpoint": "new"})


def test_clearing_a_shard_takes_the_joined_answers_with_it_and_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "BLOCK", 2)
    benchmark = make(tmp_path)
    for shard in ((1, 2), (2, 2)):
        ask(benchmark, tmp_path / "x", Ask(), shard)
    asking.clear(tmp_path / "x", "predictions", (1, 2))
    left = ("predictions.2-of-2.jsonl", "predictions.2-of-2.jsonl.meta.json")
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == sorted(left)
    again = Ask()
    assert len(ask(benchmark, tmp_path / "x", again, (1, 2))) == 7
    assert again.batches == [["film-0.png", "film-1.png"], ["film-4.png", "film-5.png"]]


def test_a_stale_shard_is_not_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "BLOCK", 2)
    benchmark = make(tmp_path)
    ask(benchmark, tmp_path / "x", Ask(), (2, 2), meta=META | {"checkpoint": "old"})
    problems = []
    assert ask(benchmark, tmp_path / "x", Ask(), (1, 2), problems=problems) is None
    (problem,) = problems
    assert "predictions.2-of-2.jsonl: was made with other checkpoint; answers are never mixed" in problem


def test_missing_films(tmp_path):
    benchmark = make(tmp_path)
    assert asking.with_films(benchmark) is benchmark
    (tmp_path / "film-3.png").unlink()
    (tmp_path / "film-5.png").write_bytes(b"")
    with pytest.raises(UserError, match="(?s)2 problems.*film-3.png: film is missing or empty.*film-5.png"):
        asking.with_films(benchmark)
    less = asking.with_films(benchmark, drop=True)
    assert [item.id for item in less.items] == ["i0", "i1", "i2", "i4", "i6"]
    assert less.notes == ("2 of 7 items left out: 2 films are missing",)
    for film in tmp_path.glob("*.png"):
        film.unlink()
    with pytest.raises(UserError, match="not one item has its films"):
        asking.with_films(benchmark, drop=True)


def test_a_film_that_would_turn_white_stops_the_run(tmp_path):
    benchmark = make(tmp_path)
    Image.new("I;16", (32, 32), 3000).save(tmp_path / "film-2.png")
    with pytest.raises(UserError, match="film-2.png: film has more than 8 bits a pixel"):
        ask(benchmark, tmp_path / "x", Ask())


def test_the_digest_follows_prompt_and_film(tmp_path):
    before = asking.digest_of(make(tmp_path))
    assert asking.digest_of(make(tmp_path)) == before != asking.digest_of(make(tmp_path, 6))
    benchmark = make(tmp_path)
    (tmp_path / "film-1.png").write_bytes((tmp_path / "film-1.png").read_bytes() + b"\0")
    assert asking.digest_of(benchmark) != before


def test_the_different_questions_without_films(tmp_path):
    rows = asking.rows_of(make(tmp_path), image=False)
    assert [row["prompt"] for row in rows] == ["Film, question 0?", "Film, question 1?"]
    assert all(row["images"] == () for row in rows) and len({row["id"] for row in rows}) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no prediction in it"),
        ([{"id": "i0", "text": "a"}], "6 of 7 items have no answer .first: i1."),
        ([{"id": "x", "text": "a"}], ":1: id x is not among the scored items; score it with the benchmark"),
        ([{"id": "i0", "text": "a"}, {"id": "i0", "text": "b"}], ":2: id i0 stands here twice"),
        ([{"id": "i0", "p_yes": 1, "mass": 1}], ':1: a prediction needs a string "id" and a string "text"'),
    ],
)
def test_given_predictions_must_be_those_of_the_benchmark(tmp_path, rows, message):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=message):
        asking.read_given(path, make(tmp_path))


def test_given_scores_lie_between_0_and_1(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "i0", "p_yes": 1.5, "mass": 1}\n')
    with pytest.raises(UserError, match='"p_yes" and "mass" from 0 to 1'):
        asking.read_given(path, make(tmp_path, 1, "yesno"))
