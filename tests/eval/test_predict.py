import contextlib
import json
import re
from pathlib import Path

import pytest

from apo import student_engine
from data.errors import UserError
from eval import predict
from scripts import side_by_side
from tests.eval.cases import study

META = {"checkpoint": "abc", "max_new_tokens": 160}


def studies(count=5):
    return [study(i, {}) for i in range(count)]


def answer(asked, student, out, meta, *, batch_size=32, **options):
    return predict.answer_batches(list(predict.batches(asked, batch_size)), student, out, meta, **options)


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


def test_every_study_once_in_order(tmp_path, monkeypatch):
    out, student, real, written = tmp_path / "p.jsonl", Student(), predict.append_jsonl, []
    monkeypatch.setattr(predict, "append_jsonl", lambda path, *rows: written.append(len(rows)) or real(path, *rows))
    assert answer(studies(), student, out, META, batch_size=2) == 5
    assert written == [2, 2, 1], "a batch goes to the disk at once"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0] == {"id": "test-0", "text": "answer to test-0", "finish_reason": "stop"}
    assert [r["id"] for r in rows] == student.asked == [s["id"] for s in studies()]


def test_an_interrupted_run_goes_on_and_ends_in_the_same_file(tmp_path):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    answer(studies(), Student(), whole, META, batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        answer(studies(), Student(until="test-3"), parts, META, batch_size=2)
    with open(parts, "a") as file:
        file.write('{"id": "test-2", "te')  # torn by the interruption
    second = Student()
    assert answer(studies(), second, parts, META, batch_size=2) == 3
    assert second.asked == ["test-2", "test-3", "test-4"]
    assert parts.read_bytes() == whole.read_bytes()


def test_what_shares_a_batch_does_not_depend_on_interruptions(tmp_path):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    answer(studies(), Student(), whole, META, batch_size=2)
    answer(studies()[:3], Student(), parts, META, batch_size=2)  # test-2 answered, its neighbour not
    second = Student()
    assert answer(studies(), second, parts, META, batch_size=2) == 2
    assert second.asked == ["test-2", "test-3", "test-4"], "asked again with its neighbour, kept once"
    assert parts.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("row", [{"p_yes": 0.5}, {"p_yes": 2, "mass": 1}, {"p_yes": True, "mass": 1}, {"text": "yes"}])
def test_a_row_that_is_no_score(row):
    assert not predict.is_score(row)
    assert predict.is_score({"p_yes": 0, "mass": 1.0})


def test_a_finished_run_asks_nobody(tmp_path):
    out = tmp_path / "p.jsonl"
    answer(studies(), Student(), out, META)
    student = Student()
    assert answer(studies(), student, out, META) == 0 and not student.asked


def test_stale_answers_are_refused_and_named(tmp_path):
    out = tmp_path / "p.jsonl"
    answer(studies(), Student(), out, META)
    before = out.read_bytes()
    with pytest.raises(UserError, match="other checkpoint, max_new_tokens.*--overwrite"):
        answer(studies(), Student(), out, {"checkpoint": "new", "max_new_tokens": 80})
    assert out.read_bytes() == before
    assert predict.open_predictions(out, META | {"checkpoint": "new"}, studies(), overwrite=True) == set()
    assert answer(studies(), Student(), out, META | {"checkpoint": "new"}) == 5


def test_answers_of_unknown_origin_are_refused(tmp_path):
    out = tmp_path / "p.jsonl"
    out.write_text('{"id": "test-0", "text": "x"}\n')
    with pytest.raises(UserError, match="what made it is unknown"):
        answer(studies(), Student(), out, META)


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


class Fake:
    """Stands for the student: answers with the film's name and what shared the batch; breaks down at film `until`."""

    until: str | None = None
    asked: list[str] = []
    words: set[str] = set()

    def __init__(self, *_, **__):
        pass

    def answer(self, prompts, **_):
        films = [Path(images[0]).stem for _, images in prompts]
        if self.until in films:
            raise KeyboardInterrupt
        self.asked += films
        self.words.update(prompt for prompt, _ in prompts)
        return [(f"{film} of {','.join(films)}", "stop") for film in films]


@pytest.fixture
def studies_file(make_file):
    return make_file([*studies(3), *(study(i, {}, split="train") for i in range(4))])


@pytest.fixture
def run(studies_file, tmp_path, monkeypatch):
    """`run(out, *words)`: eval.predict with a stand-in for the student, its processes one after the other."""
    path = studies_file
    monkeypatch.setattr(predict.checkpoints, "describe", lambda *_: {})
    monkeypatch.setattr(predict.checkpoints, "fingerprint", lambda *_: "abc")
    monkeypatch.setattr("apo.student_engine.Student", Fake)
    monkeypatch.setattr(Fake, "asked", [])
    monkeypatch.setattr(Fake, "words", set())

    def one_after_the_other(module, argv, out, shard, processes, device):
        assert module == "eval.predict"
        for number in range(1, processes + 1):
            i, n = side_by_side.shard_of(shard, number, processes)
            part = side_by_side.part_of(out, number)
            predict.main([*argv, "--processes", "1", "--shard", f"{i}/{n}", "--out", str(part)])
            assert part.exists()

    monkeypatch.setattr(side_by_side, "run", one_after_the_other)

    def run(out, *words):
        fixed = ["student", "--studies", str(path), "--split", "all", "--batch-size", "2", "--device", "cpu"]
        predict.main([*fixed, "--out", str(tmp_path / out), *words])
        return (tmp_path / out).read_bytes()

    return run


def test_several_processes_give_the_file_of_one(run, tmp_path):
    whole = run("whole.jsonl")
    assert Fake.asked == [*(f"test-{i}" for i in range(3)), *(f"train-{i}" for i in range(4))]
    for processes in ("2", "3", "9"):
        assert run(f"by-{processes}.jsonl", "--processes", processes) == whole
    shards = b"".join(run(f"shard-{i}.jsonl", "--shard", f"{i}/3") for i in (1, 2, 3))
    assert sorted(shards.splitlines()) == sorted(whole.splitlines()) and shards != whole
    assert not list(tmp_path.glob("[!.]*.part-*"))


def test_the_same_films_in_other_words(run, studies_file):
    own = {json.loads(line)["prompt"] for line in studies_file.read_text().splitlines()}
    run("own.jsonl")
    assert Fake.words == own
    Fake.words.clear()
    run("other.jsonl", "--prompt", "<image> What is there?", "--processes", "2")
    assert Fake.words == {"<image> What is there?"}
    with pytest.raises(UserError, match="own.jsonl: was made with other studies"):
        run("own.jsonl", "--prompt", "<image> What is there?")
    with pytest.raises(UserError, match="--prompt: study 'test-0': .*0 <image>"):
        run("third.jsonl", "--prompt", "What is there?")


@pytest.mark.parametrize("then", ["1", "2", "3"])
def test_interrupted_processes_go_on_with_as_many_as_are_wanted(run, tmp_path, monkeypatch, then):
    whole = run("whole.jsonl")
    monkeypatch.setattr(Fake, "until", "train-1")  # its batch is the third of four, the second of process 1
    with pytest.raises(KeyboardInterrupt):
        run("p.jsonl", "--processes", "2")
    assert [path.name for path in tmp_path.glob("*.part-*.jsonl")] == ["p.jsonl.part-1.jsonl"]
    monkeypatch.setattr(Fake, "until", None)
    Fake.asked.clear()
    assert run("p.jsonl", "--processes", then) == whole
    assert sorted(Fake.asked) == ["test-2", "train-0", "train-1", "train-2", "train-3"], "what was paid for is kept"
    assert not list(tmp_path.glob("[!.]*.part-*"))


def test_answers_that_a_broken_process_left_out_are_no_success(run, tmp_path, monkeypatch):
    """An uncaught error ends a process with the status 1 that Compare gives where texts failed."""
    together = side_by_side.run

    def run_all(*words):
        with contextlib.suppress(KeyboardInterrupt):
            together(*words)
        return 1

    monkeypatch.setattr(side_by_side, "run", run_all)
    monkeypatch.setattr(Fake, "until", "train-1")
    with pytest.raises(UserError, match=r"p.jsonl: 5 of 7 answers are missing, a process failed .* goes on"):
        run("p.jsonl", "--processes", "2")
    monkeypatch.setattr(Fake, "until", None)
    Fake.asked.clear()
    assert run("p.jsonl") == run("whole.jsonl"), "what was paid for is kept"


def test_parts_of_other_settings_are_refused_or_begun_again(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Fake, "until", "train-1")
    with pytest.raises(KeyboardInterrupt):
        run("p.jsonl", "--processes", "2")
    monkeypatch.setattr(Fake, "until", None)
    with pytest.raises(UserError, match="p.jsonl.*was made with other max_new_tokens"):
        run("p.jsonl", "--processes", "2", "--max-new-tokens", "9")
    assert len(list(tmp_path.glob("*.part-1.jsonl"))) == 1, "nothing is deleted"
    whole = run("whole.jsonl")
    Fake.asked.clear()
    assert run("p.jsonl", "--processes", "2", "--max-new-tokens", "9", "--overwrite") == whole
    assert len(Fake.asked) == 7


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_vllm_that_is_not_there_names_the_file_that_installs_it(monkeypatch, device):
    monkeypatch.setattr(student_engine.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs a GPU and vllm \(requirements-vllm.txt\)") as error:
        student_engine.Student({}, backend="vllm", device=device)
    named = re.search(r"\((\S+)\)", str(error.value))[1]
    assert "vllm" in (Path(__file__).parents[2] / named).read_text()
