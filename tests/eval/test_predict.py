import json

import pytest

from data.errors import UserError
from eval import predict
from tests.eval.cases import study

META = {"checkpoint": "abc", "max_new_tokens": 160}


def studies(count=5):
    return [study(i, {}) for i in range(count)]


class Student:
    """Answers with the id and remembers whom it was asked about; breaks down at study `until`."""

    def __init__(self, until=None):
        self.asked, self.until = [], until

    def __call__(self, batch):
        ids = [s["id"] for s in batch]
        if self.until in ids:
            raise KeyboardInterrupt
        self.asked += ids
        return [{"text": f"answer to {i}", "finish_reason": "stop"} for i in ids]


def test_every_study_once_in_order(tmp_path):
    out, student = tmp_path / "p.jsonl", Student()
    assert predict.predict(studies(), student, out, META, batch_size=2) == 5
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0] == {"id": "test-0", "text": "answer to test-0", "finish_reason": "stop"}
    assert [r["id"] for r in rows] == student.asked == [s["id"] for s in studies()]


def test_an_interrupted_run_goes_on_and_ends_in_the_same_file(tmp_path):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    predict.predict(studies(), Student(), whole, META, batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        predict.predict(studies(), Student(until="test-3"), parts, META, batch_size=2)
    with open(parts, "a") as file:
        file.write('{"id": "test-2", "te')  # torn by the interruption
    second = Student()
    assert predict.predict(studies(), second, parts, META, batch_size=2) == 3
    assert second.asked == ["test-2", "test-3", "test-4"]
    assert parts.read_bytes() == whole.read_bytes()


def test_what_shares_a_batch_does_not_depend_on_interruptions(tmp_path):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    predict.predict(studies(), Student(), whole, META, batch_size=2)
    predict.predict(studies()[:3], Student(), parts, META, batch_size=2)  # test-2 answered, its neighbour not
    second = Student()
    assert predict.predict(studies(), second, parts, META, batch_size=2) == 2
    assert second.asked == ["test-2", "test-3", "test-4"], "asked again with its neighbour, kept once"
    assert parts.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("row", [{"p_yes": 0.5}, {"p_yes": 2, "mass": 1}, {"p_yes": True, "mass": 1}, {"text": "yes"}])
def test_a_row_that_is_no_score(row):
    assert not predict.is_score(row)
    assert predict.is_score({"p_yes": 0, "mass": 1.0})


def test_a_finished_run_asks_nobody(tmp_path):
    out = tmp_path / "p.jsonl"
    predict.predict(studies(), Student(), out, META)
    student = Student()
    assert predict.predict(studies(), student, out, META) == 0 and not student.asked


def test_stale_answers_are_refused_and_named(tmp_path):
    out = tmp_path / "p.jsonl"
    predict.predict(studies(), Student(), out, META)
    before = out.read_bytes()
    with pytest.raises(UserError, match="other checkpoint, max_new_tokens.*--overwrite"):
        predict.predict(studies(), Student(), out, {"checkpoint": "new", "max_new_tokens": 80})
    assert out.read_bytes() == before
    assert predict.predict(studies(), Student(), out, META | {"checkpoint": "new"}, overwrite=True) == 5


def test_answers_of_unknown_origin_are_refused(tmp_path):
    out = tmp_path / "p.jsonl"
    out.write_text('{"id": "test-0", "text": "x"}\n')
    with pytest.raises(UserError, match="what made it is unknown"):
        predict.predict(studies(), Student(), out, META)


def test_the_digest_follows_prompt_and_film_not_limit(make_file, tmp_path):
    path = make_file(studies(3))
    some, _, digest = predict.select(path, "test", None, 2)
    everything, _, same = predict.select(path, "test", None, None)
    assert (len(some), len(everything)) == (2, 3) and digest == same
    (tmp_path / "films/test-2.png").write_bytes((tmp_path / "films/test-1.png").read_bytes())
    assert predict.select(path, "test", None, None)[2] != digest


def test_a_missing_film_is_named_before_any_model_is_loaded(make_file, tmp_path):
    path = make_file(studies(2))
    (tmp_path / "films/test-1.png").unlink()
    with pytest.raises(UserError, match="test-1.*test-1.png"):
        predict.select(path, "test", None, None)


def test_a_path_that_is_no_checkpoint(make_file, tmp_path):
    path = make_file(studies(2))
    with pytest.raises(UserError, match="no such checkpoint"):
        predict.main([str(tmp_path / "nothing"), "--studies", str(path), "--out", str(tmp_path / "p.jsonl")])
