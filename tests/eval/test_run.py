"""python -m eval.run: results file, rows, overlap, refusals. The engine is replaced except in the last test."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apo import student_engine
from data import checkpoints
from data.errors import UserError
from data.files import sha256_file
from data.phantom import cohort
from data.records import read_studies, write_studies
from eval import asking, benchmarks, phantom, run, run_options, yesno
from tests.data import mimic_tree
from tests.eval import ms_cxr_t_tree as tree
from tests.eval.cases import finding, report, study, tables_of, trajectory

ROOT = Path(__file__).parents[2]


class FakeStudent:
    """Says edema where a film is asked about and option (B) where two are; remembers what it was asked."""

    asked: list = []
    stop_after = None

    def __init__(self, info, *, backend, device, batch_size):
        pass

    def answer(self, prompts, *, max_new_tokens, temperature, seed):
        assert temperature == 0
        out = []
        for prompt, images in prompts:
            FakeStudent.asked.append((prompt, list(images)))
            if FakeStudent.stop_after is not None and len(FakeStudent.asked) > FakeStudent.stop_after:
                raise KeyboardInterrupt
            text = "I cannot see." if not images else report(Edema="present") if len(images) == 1 else "(B)"
            out.append((text, "stop"))
        return out


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    info = {"path": "c", "kind": "full", "model": "c", "model_type": "qwen2_5_vl", "template": "t", "stage": "learn"}
    monkeypatch.setattr(student_engine, "Student", FakeStudent)
    monkeypatch.setattr(checkpoints, "describe", lambda path, base=None: info)
    monkeypatch.setattr(checkpoints, "fingerprint", lambda path, base=None: "f" * 64)
    FakeStudent.asked, FakeStudent.stop_after = [], None


@pytest.fixture
def films(make_file, tmp_path):
    """Six test films of three patients, edema on two; the second film of each patient has the first as prior."""
    studies = [study(i, {"Edema": None} if i < 2 else {}) for i in range(6)]
    for i in (1, 3, 5):
        studies[i]["prior"] = studies[i - 1]["id"]
        studies[i]["findings"]["Edema"] = finding(studies[i]["findings"]["Edema"]["state"]) | {"progression": "stable"}
    return make_file([*studies, study(0, {}, split="train")]).parent


def call(root, out, *words, names=("phantom-presence",)):
    words = [*words, "--data-root", str(root), "--out", str(out), "--resamples", "50"]
    for name in names:
        words += ["--benchmark", name]
    return run.main([*map(str, words), "--device", "cpu"])


def results_of(out):
    return json.loads((out / "results.json").read_text())


def rows_of(out, name="phantom-presence"):
    return {row["name"]: row["metrics"] for row in results_of(out)["benchmarks"][name]["rows"]}


def test_one_command_gives_results_table_page_and_items(films, tmp_path, capsys):
    out = tmp_path / "out"
    names = ("phantom-presence", "phantom-progression")
    assert call(films, out, "ckpt", "--name", "ours", names=names) == 0
    results = results_of(out)
    assert list(results["benchmarks"]) == list(names) and results["schema"] == run.SCHEMA
    assert results["checkpoint"]["fingerprint"] == "f" * 64 and results["versions"]["python"]
    for name, n in zip(names, (6, 3), strict=True):
        one = results["benchmarks"][name]
        assert one["n"] == n and one["patients"] == 3 and one["decoding"]["method"] == "greedy"
        assert [row["name"] for row in one["rows"]] == ["ours", "ours, no image", "majority class"]
        for row in one["rows"]:
            for cell in row["metrics"].values():
                assert set(cell) == {"value", "n", "low", "high", "skipped_resamples"}
                assert cell["value"] is None or cell["low"] is None or cell["low"] <= cell["value"] <= cell["high"]
        items = [json.loads(line) for line in (out / one["per_item_file"]).read_text().splitlines()]
        answers = [json.loads(line) for line in (out / name / "predictions.jsonl").read_text().splitlines()]
        assert [row["id"] for row in items] == [row["id"] for row in answers] and len(items) == n
        assert all(row["patient"].startswith("test-patient-") for row in items)
    rows = rows_of(out)
    assert rows["ours"]["accuracy/Edema"]["value"] == pytest.approx(2 / 6)
    assert rows["ours, no image"]["malformed answers"]["value"] == 1
    assert rows["majority class"]["accuracy/Edema"]["value"] == pytest.approx(4 / 6)
    assert str(tmp_path) not in (out / "results.json").read_text(), "results name no path of the machine"
    table = (out / "table.md").read_text()
    assert "| accuracy | Consolidation (n=6) |" in table and table in capsys.readouterr().out
    assert "3 of 3 answers name no one option" in table, "said of the answers without films"


def test_films_reach_the_student_and_questions_without_films_are_asked_once(films, tmp_path):
    call(films, tmp_path / "out", "ckpt", names=("phantom-progression", "phantom-presence"))
    two = [images for _, images in FakeStudent.asked if len(images) == 2]
    assert two[0] == [str(films / "films/test-0.png"), str(films / "films/test-1.png")]
    blind = [prompt for prompt, images in FakeStudent.asked if not images]
    assert len(blind) == len(set(blind)) and not any("<image>" in prompt for prompt in blind)
    assert blind.count("This is a patient's chest DR image. Please describe it.") == 1


def test_an_interrupted_run_ends_in_the_same_results(films, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    names = ("phantom-presence", "phantom-progression")
    call(films, whole, "ckpt", "--batch-size", "2", names=names)
    FakeStudent.asked, FakeStudent.stop_after = [], 3
    with pytest.raises(KeyboardInterrupt):
        call(films, parts, "ckpt", "--batch-size", "2", names=names)
    assert len((parts / "phantom-presence/predictions.jsonl").read_text().splitlines()) == 2
    FakeStudent.asked, FakeStudent.stop_after = [], None
    call(films, parts, "ckpt", "--batch-size", "2", names=names)
    assert [images[0][-10:] for _, images in FakeStudent.asked[:2]] == ["test-2.png", "test-3.png"]
    for name in ("results.json", "table.md", "report.html", "phantom-presence/per_item.jsonl"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()


def test_results_of_another_benchmark_are_added_to_and_never_replaced(films, tmp_path):
    out, names = tmp_path / "out", ("phantom-presence", "phantom-progression")
    call(films, out, "ckpt")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    FakeStudent.asked = []
    for more in ([], ["--overwrite"]):
        with pytest.raises(UserError, match="results.json: holds phantom-presence, .* name every --benchmark"):
            call(films, out, "ckpt", *more, names=names[1:])
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before and not FakeStudent.asked
    call(films, out, "ckpt", names=names)
    assert not any(len(images) == 1 for _, images in FakeStudent.asked), "kept and not asked again"
    assert list(results_of(out)["benchmarks"]) == list(names)
    (out / "results.json").write_text('{"schema": 1, "rows": []}')
    with pytest.raises(UserError, match="results.json: is not of eval.run and would be replaced; choose another --out"):
        call(films, out, "ckpt", names=names)


def test_items_are_listed_without_a_model_or_films(films, tmp_path, capsys):
    (films / "films").rename(films / "elsewhere")
    assert call(films, tmp_path / "out", "--list-items", names=("phantom-progression", "phantom-zeroshot")) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["id"] for row in rows if row["benchmark"] == "phantom-progression"]
    for row in rows:
        two = row["benchmark"] == "phantom-progression"
        assert row["images"] == (2 if two else 1) and row["prompt"].count("<image>") in (0, row["images"])
        assert row["answer"] == ('a string "text"' if two else '"p_yes" and "mass" from 0 to 1')
    assert not (tmp_path / "out").exists() and not FakeStudent.asked


def test_shards_end_in_the_same_results(films, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(asking, "BLOCK", 2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    call(films, whole, "ckpt")
    assert call(films, parts, "ckpt", "--shard", "2/2") == 0
    assert "shard 2/2 is finished" in capsys.readouterr().out and not (parts / "results.json").exists()
    call(films, parts, "ckpt", "--shard", "1/2")
    assert (parts / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    assert (parts / "phantom-presence/predictions.jsonl.meta.json").exists()


def test_the_last_shard_scores_what_others_finished_meanwhile(films, tmp_path, monkeypatch):
    """Shard 2 finishes the first benchmark after shard 1 has left it, and the second before shard 1."""
    monkeypatch.setattr(asking, "BLOCK", 1)
    names, parts = ("phantom-presence", "phantom-progression"), tmp_path / "parts"
    call(films, tmp_path / "whole", "ckpt", names=names)
    real, nested = FakeStudent.answer, []

    def answer(self, prompts, **options):
        if len(prompts[0][1]) == 2 and not nested:
            nested.append(True)
            call(films, parts, "ckpt", "--shard", "2/2", names=names)
            assert not (parts / "results.json").exists()
        return real(self, prompts, **options)

    monkeypatch.setattr(FakeStudent, "answer", answer)
    call(films, parts, "ckpt", "--shard", "1/2", names=names)
    assert nested and (parts / "results.json").read_bytes() == (tmp_path / "whole/results.json").read_bytes()


def test_shards_take_the_place_of_another_checkpoints_answers(films, tmp_path, monkeypatch, capsys):
    """None of what the new run has asked is lost: not to the old joined answers, nor to an interruption."""
    monkeypatch.setattr(asking, "BLOCK", 2)
    names, out = ("phantom-presence", "phantom-progression"), tmp_path / "out"
    for i in (1, 2):
        call(films, out, "old", "--shard", f"{i}/2", names=names)
    monkeypatch.setattr(checkpoints, "fingerprint", lambda path, base=None: "n" * 64)
    with pytest.raises(UserError, match="other checkpoint"):
        call(films, out, "new", "--shard", "1/2", names=names)
    assert call(films, out, "new", "--shard", "1/2", "--overwrite", names=names) == 0
    said = capsys.readouterr()
    assert "shard 1/2 is finished" in said.out and "leave out --overwrite" in said.err
    notes = re.findall(r"of another shard that do not count: \S+/(.*): was made with other (.*); answers", said.err)
    assert notes == [("predictions.2-of-2.jsonl", "checkpoint") for _ in names]
    assert results_of(out)["checkpoint"]["fingerprint"] == "f" * 64, "nothing scored yet"
    FakeStudent.asked, FakeStudent.stop_after = [], 0
    with pytest.raises(KeyboardInterrupt):
        call(films, out, "new", "--shard", "2/2", "--overwrite", names=names)
    FakeStudent.asked, FakeStudent.stop_after = [], None
    call(films, out, "new", "--shard", "2/2", names=names)
    assert len(FakeStudent.asked) == 3, "one block of presence, one question of progression: shard 2's alone"
    call(films, tmp_path / "whole", "new", names=names)
    for name in ("results.json", *(f"{name}/predictions.jsonl" for name in names)):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_answers_that_begin_again_go_on_after_an_interruption(films, tmp_path, monkeypatch):
    """Interrupted in its first benchmark, the run does not meet the old answers of its second."""
    names, out = ("phantom-presence", "phantom-progression"), tmp_path / "out"
    call(films, out, "old", names=names)
    monkeypatch.setattr(checkpoints, "fingerprint", lambda path, base=None: "n" * 64)
    FakeStudent.asked, FakeStudent.stop_after = [], 3
    with pytest.raises(KeyboardInterrupt):
        call(films, out, "new", "--overwrite", "--batch-size", "2", names=names)
    FakeStudent.asked, FakeStudent.stop_after = [], None
    call(films, out, "new", "--batch-size", "2", names=names)
    assert results_of(out)["checkpoint"]["fingerprint"] == "n" * 64
    assert [images[0][-10:] for _, images in FakeStudent.asked[:2]] == ["test-2.png", "test-3.png"]


def test_the_no_image_answers_stay_where_they_are_not_asked_for(films, tmp_path):
    call(films, tmp_path / "out", "ckpt")
    FakeStudent.asked = []
    call(films, tmp_path / "out", "ckpt", "--overwrite", "--skip-no-image")
    assert len(FakeStudent.asked) == 6 and (tmp_path / "out/phantom-presence/no_image.jsonl").exists()


def given(path, texts):
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in texts.items()))
    return path


def test_answers_of_any_model_are_scored_without_it(films, tmp_path):
    texts = {f"test-{i}": report(Edema="present") if i < 2 else report() for i in range(6)}
    answers = given(tmp_path / "teacher.jsonl", dict(reversed(texts.items())))
    for film in films.glob("films/*.png"):
        film.unlink()
    out = tmp_path / "out"
    call(films, out, "--predictions", answers, "--name", "a teacher")
    assert not FakeStudent.asked
    rows, one = rows_of(out), results_of(out)["benchmarks"]["phantom-presence"]
    assert rows["a teacher"]["accuracy/mean of five"]["value"] == 1 and "a teacher, no image" not in rows
    assert any("no no-image row" in note for note in one["notes"])
    assert one["decoding"] == {"predictions": "teacher.jsonl", "sha256": sha256_file(answers)}
    blind = given(tmp_path / "blind.jsonl", dict.fromkeys(texts, "I cannot."))
    call(films, out, "--predictions", answers, "--no-image-predictions", blind)
    assert rows_of(out)["checkpoint, no image"]["malformed answers"]["value"] == 1


def test_saved_answers_to_the_questions_alone_are_scored_again(films, tmp_path):
    call(films, tmp_path / "asked", "ckpt")
    (blind,) = (tmp_path / "asked").rglob("no_image.jsonl")
    (answers,) = (tmp_path / "asked").rglob("predictions.jsonl")
    assert len(blind.read_text().splitlines()) < len(answers.read_text().splitlines())
    again = tmp_path / "again"
    call(films, again, "--predictions", answers, "--no-image-predictions", blind)
    assert rows_of(again)["checkpoint, no image"] == rows_of(tmp_path / "asked")["checkpoint, no image"]


def test_scores_of_other_answers_are_not_replaced_unasked(films, tmp_path):
    texts = {f"test-{i}": report() for i in range(6)}
    one, other = (given(tmp_path / name, texts | {"test-0": name}) for name in ("one.jsonl", "other.jsonl"))
    out = tmp_path / "out"
    for words in ([one], [one, "--name", "a teacher"]):
        call(films, out, "--predictions", *words)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"results.json: .* scores of other answers \(one.jsonl, sha256 \w{16}\); "):
        call(films, out, "--predictions", other)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    call(films, out, "--predictions", other, "--overwrite")
    assert results_of(out)["benchmarks"]["phantom-presence"]["decoding"]["predictions"] == "other.jsonl"
    call(films, out, "--predictions", other, "--no-image-predictions", one)
    with pytest.raises(UserError, match="scores of other answers"):  # it would lose the row without images
        call(films, out, "--predictions", other)
    call(films, tmp_path / "asked", "ckpt")
    with pytest.raises(UserError, match=r"other answers \(of ckpt\); choose another --out, or replace them"):
        call(films, tmp_path / "asked", "--predictions", one)


@pytest.mark.parametrize("stop", [0, 2], ids=["without-a-film", "with-films"])
def test_a_checkpoint_does_not_replace_the_scores_of_given_answers_unasked(films, tmp_path, stop):
    given_ = given(tmp_path / "one.jsonl", {f"test-{i}": report() for i in range(6)})
    out = tmp_path / "out"
    call(films, out, "--predictions", given_)
    before = (out / "results.json").read_bytes()
    with pytest.raises(UserError, match=r"results.json: .* other answers \(one.jsonl, .* with --overwrite"):
        call(films, out, "ckpt")
    assert (out / "results.json").read_bytes() == before and not FakeStudent.asked
    FakeStudent.stop_after = stop
    with pytest.raises(KeyboardInterrupt):
        call(films, out, "ckpt", "--overwrite", "--batch-size", "1")
    assert (out / "results.json").read_bytes() == before
    FakeStudent.asked, FakeStudent.stop_after = [], None
    call(films, out, "ckpt", "--batch-size", "1")
    assert results_of(out)["checkpoint"]["folder"] == "ckpt" and len(FakeStudent.asked) == 7 - stop


def test_overlap_with_the_training_studies(films, tmp_path):
    seen = [one | {"split": "train"} for one in read_studies(films / "studies.jsonl") if one["id"] == "test-2"]
    train = tmp_path / "train.jsonl"
    write_studies(train, seen)
    out = tmp_path / "out"
    call(films, out, "ckpt", "--train", train)
    one = results_of(out)["benchmarks"]["phantom-presence"]
    assert one["n"] == 6 and one["fingerprint"]["overlap_with_training"]["overlapping_items"] == 2
    assert any("2 of 6 items" in note for note in one["notes"])
    FakeStudent.asked = []
    call(films, out, "ckpt", "--train", train, "--exclude-overlap")
    less = results_of(out)["benchmarks"]["phantom-presence"]
    assert less["n"] == 4 and not FakeStudent.asked, "the same answers serve"
    assert len((out / "phantom-presence/per_item.jsonl").read_text().splitlines()) == 4


def test_the_training_set_is_known_from_the_launch(films, tmp_path):
    studies = films / "studies.jsonl"
    folder = tmp_path / "run"
    (folder / "checkpoint-9").mkdir(parents=True)
    entry = {"path": str(studies), "sha256": sha256_file(studies)}
    (folder / "launch.json").write_text(json.dumps({"datasets": [entry]}))
    out = tmp_path / "out"
    call(films, out, folder / "checkpoint-9")
    notes = results_of(out)["benchmarks"]["phantom-presence"]["notes"]
    assert any("overlap with 1 training studies (studies.jsonl)" in note for note in notes)
    entry["sha256"] = "0" * 64
    (folder / "launch.json").write_text(json.dumps({"datasets": [entry]}))
    call(films, out, folder / "checkpoint-9")
    notes = results_of(out)["benchmarks"]["phantom-presence"]["notes"]
    assert any("studies.jsonl was not checked: it has changed since" in note for note in notes)
    with pytest.raises(UserError, match="--exclude-overlap: the training studies are not known"):
        call(films, out, folder / "checkpoint-9", "--exclude-overlap")


def test_a_run_with_a_validation_file_of_its_own_is_evaluated(films, tmp_path):
    entries = []
    for name, split in (("train", "train"), ("val", "validate")):
        file = tmp_path / f"{name}.jsonl"
        write_studies(file, [study(0 if split == "train" else 9, {}, split=split)])
        entries.append({"path": str(file), "sha256": sha256_file(file)})
    folder = tmp_path / "run"
    (folder / "checkpoint-9").mkdir(parents=True)
    (folder / "launch.json").write_text(json.dumps({"datasets": entries}))
    call(films, tmp_path / "out", folder / "checkpoint-9", "--exclude-overlap")
    notes = results_of(tmp_path / "out")["benchmarks"]["phantom-presence"]["notes"]
    assert any("overlap with 1 training studies (train.jsonl)," in note for note in notes)
    assert any("overlap with 1 training studies (val.jsonl, 1 of them for validation)," in note for note in notes)
    call(films, tmp_path / "out", "ckpt", "--train", tmp_path / "val.jsonl")
    write_studies(tmp_path / "test.jsonl", [study(0, {})])
    with pytest.raises(UserError, match="test.jsonl: no study of split train or validate; name the file"):
        call(films, tmp_path / "out", "ckpt", "--train", tmp_path / "test.jsonl")


def test_the_films_of_the_training_set_are_found_by_the_image_root_of_the_launch(films, tmp_path):
    compared = tmp_path / "compared" / "studies.jsonl"  # as apo.compare writes it, away from its films
    compared.parent.mkdir()
    compared.write_bytes((films / "studies.jsonl").read_bytes())
    folder = tmp_path / "run"
    (folder / "checkpoint-9").mkdir(parents=True)
    launched = {"datasets": [{"path": str(compared), "sha256": sha256_file(compared)}]}
    for root, missed in ((None, True), (str(films), False)):
        (folder / "launch.json").write_text(json.dumps(launched | {"image_root": root}))
        call(films, tmp_path / "out", folder / "checkpoint-9")
        notes = results_of(tmp_path / "out")["benchmarks"]["phantom-presence"]["notes"]
        assert any("overlap with 1 training studies (studies.jsonl)" in note for note in notes)
        assert any("were not compared by their contents" in note for note in notes) is missed


def test_missing_films_are_an_error_or_counted(films, tmp_path):
    (films / "films/test-4.png").unlink()
    with pytest.raises(UserError, match="test-4.png: film is missing"):
        call(films, tmp_path / "out", "ckpt")
    call(films, tmp_path / "out", "ckpt", "--missing-films", "drop")
    one = results_of(tmp_path / "out")["benchmarks"]["phantom-presence"]
    assert one["n"] == 5 and "1 of 6 items left out: 1 films are missing" in one["notes"]


def test_ms_cxr_t_with_options_for_each_benchmark(tmp_path):
    root = tree.make(tmp_path / "mimic")
    names = ("ms-cxr-t-progression", "ms-cxr-t-presence")
    scoped = ("--set", "ms-cxr-t-presence:truth=progression")
    call(root, tmp_path / "out", "ckpt", *scoped, names=names)
    found = results_of(tmp_path / "out")["benchmarks"]
    assert found["ms-cxr-t-presence"]["protocol"]["truth"] == "progression"
    assert (found["ms-cxr-t-progression"]["n"], found["ms-cxr-t-presence"]["n"]) == (5, 3)
    assert mimic_tree.dicom(2) in (tmp_path / "out/ms-cxr-t-presence/per_item.jsonl").read_text()
    with pytest.raises(UserError, match="ms-cxr-t-progression has no such option"):
        call(root, tmp_path / "out", "ckpt", "--set", "truth=progression", names=names)


def test_scores_of_sentence_pairs(tmp_path):
    root = tree.make(tmp_path / "mimic")
    path = tmp_path / "scores.jsonl"
    path.write_text("".join(f'{{"id": "pair-{i}", "p_yes": 0.{i}, "mass": 1}}\n' for i in (2, 3, 4, 5)))
    call(root, tmp_path / "out", "--predictions", path, names=("ms-cxr-t-similarity",))
    one = results_of(tmp_path / "out")["benchmarks"]["ms-cxr-t-similarity"]
    assert one["kind"] == "yesno" and any("the questions have no films" in note for note in one["notes"])
    assert {row["name"] for row in one["rows"]} == {"checkpoint", "majority class"}
    with pytest.raises(UserError, match="the name majority class is"):
        call(root, tmp_path / "n", "--predictions", path, "--name", "majority class", names=("ms-cxr-t-similarity",))
    assert "effusion" not in "".join(p.read_text() for p in (tmp_path / "out").rglob("*.json*")).lower()


def test_names_of_other_rows_are_known_before_they_are_made_and_refused(films, tmp_path):
    names = ("phantom-presence", "phantom-progression", "phantom-reports", "phantom-held-out")
    file = films / "studies.jsonl"
    more = {"report": "FINDINGS: The lungs are clear.", "trajectories": [trajectory("A", "No edema is seen.")]}
    write_studies(file, [one | more for one in read_studies(file)])
    call(films, tmp_path / "out", "ckpt", *("--set", "phantom-reports:meteor=no"), names=names)
    made = results_of(tmp_path / "out")["benchmarks"]
    FakeStudent.asked = []
    for name in names:
        benchmark = benchmarks.module_of(name).load(name, films, seed=0, limit=None, options={})
        rows = [row["name"] for row in made[name]["rows"] if row.get("baseline")]
        assert rows and set(rows) <= set(benchmark.others)
        with pytest.raises(UserError, match=f"^the name {rows[-1].upper()} is that of a teacher or another row"):
            call(films, tmp_path / "new", "ckpt", "--name", rows[-1].upper(), names=(name,))
    assert not FakeStudent.asked and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ckpt", "--benchmark", "phantom-presense"], "did you mean 'phantom-presence'"),
        ([], "either a checkpoint to ask or --predictions"),
        (["ckpt", "--predictions", "p"], "either a checkpoint to ask or --predictions"),
        (["--predictions", "p", "--benchmark", "phantom-progression"], "answers to one benchmark"),
        (["--predictions", "p", "--shard", "1/2"], "--shard: existing predictions"),
        (["ckpt", "--no-image-predictions", "p"], "only with --predictions"),
        (["ckpt", "--shard", "3/2"], "--shard 3/2"),
        (["ckpt", "--limit", "0"], "--limit 0: must be at least 1"),
        (["ckpt", "--seed", "-1"], "--seed -1: must be at least 0"),
        (["ckpt", "--set", "split"], "--set split: write KEY=VALUE"),
        (["ckpt", "--set", "ms-cxr-t-presence:truth=report"], "is not among the benchmarks of this run"),
        (["ckpt", "--set", "split=train", "--set", "split=test"], "split is given twice"),
        (["ckpt", "--set", "splt=train"], "did you mean 'split'"),
        (["ckpt", "--data-root", "x"], "two folders for all benchmarks"),
        (["ckpt", "--list-items"], "either a checkpoint to ask or --predictions FILE to score .or --list-items alone"),
        (["ckpt", "--name", ""], "--name '': must be one line and not empty"),
        (["ckpt", "--name", "a\nb"], r"--name 'a\\nb': must be one line and not empty"),
        (["ckpt", "--set", "split=validate"], 'no study of split "validate"'),
        (["--predictions", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
    ],
)
def test_refusals(films, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        call(films, tmp_path / "out", *words)
    assert not FakeStudent.asked


def test_a_benchmark_without_a_data_root():
    with pytest.raises(UserError, match="phantom-presence: no --data-root"):
        run.main(["ckpt", "--benchmark", "phantom-presence", "--device", "cpu"])


def test_each_benchmark_may_have_its_own_data_root():
    roots = run_options.data_roots(["x=y", "b=two"], ["a", "b"])
    assert roots == {"a": Path("x=y"), "b": Path("two")}


def test_a_repeated_id_is_refused(films):
    from eval import presence_films

    one = presence_films.load("phantom-presence", films, options={})
    twice = type(one)(one.name, one.kind, (*one.items, one.items[0]), {}, {}, ())
    with pytest.raises(UserError, match="id test-0 comes twice"):
        run.check_items(twice)
    with pytest.raises(UserError, match="no item to score"):
        run.check_items(type(one)(one.name, one.kind, (), {}, {}, ()))


def test_the_page_is_self_contained_and_escaped(films, tmp_path):
    call(films, tmp_path / "out", "ckpt", "--name", "<script>alert(1)</script>")
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "http://" not in page and "https://" not in page and "url(" not in page
    assert "Research use only" in page and "<svg" in page and "balanced accuracy" in page
    assert tables_of(page) == len(re.findall("<h3>", page)) - 1, "one a group, and how it was made"


def shell(*words, **more):
    env = os.environ | {"VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1"}
    call = ["bash", ROOT / "scripts/evaluate.sh", *map(str, words)]
    return subprocess.run(call, capture_output=True, text=True, env=env, **more)


def test_evaluate_passes_benchmarks_on(films, tmp_path):
    answers = given(tmp_path / "p.jsonl", {f"test-{i}": report() for i in range(6)})
    words = ["--predictions", answers, "--data-root", films, "--out", tmp_path / "out", "--resamples", "20"]
    done = shell(*words, "--benchmark", "phantom-presence")
    assert done.returncode == 0, done.stderr
    assert results_of(tmp_path / "out")["benchmarks"]["phantom-presence"]["n"] == 6
    bad = shell(*words, "--benchmark=phantom-presence", "--gpus", "2")
    assert bad.returncode == 2 and "--gpus and --predictions" in bad.stderr
    bad = shell(*words, "--benchmark=phantom-presence", "--gpus", "two")
    assert bad.returncode == 2 and "--gpus two: must be a whole number" in bad.stderr


# Lists two GPUs as the driver's own does.
NVIDIA_SMI = """#!/usr/bin/env bash
printf '%s, GPU-%s, NVIDIA H100, 81559, 81000\\n' 0 a 1 b
"""


def test_evaluate_counts_the_gpus(films, tmp_path):
    driver = tmp_path / "bin/nvidia-smi"
    driver.parent.mkdir()
    driver.write_text(NVIDIA_SMI)
    driver.chmod(0o755)
    env = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    env |= {"VIRTUAL_ENV": sys.prefix, "PATH": f"{driver.parent}:{os.environ['PATH']}"}
    words = ["--benchmark", "phantom-presence", "--data-root", films, "--out", tmp_path / "out"]
    call = ["bash", ROOT / "scripts/evaluate.sh", tmp_path / "ckpt", *words, "--gpus", "4"]
    done = subprocess.run(list(map(str, call)), capture_output=True, text=True, env=env)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr == "error: --gpus 4: this machine shows 2 GPUs; use at most as many\n", "said once"


@pytest.mark.parametrize("device", [["--device", "cpu"], ["--device=cpu"]])
def test_evaluate_needs_no_gpu_for_processes_on_the_cpu(films, tmp_path, device):
    words = ["--benchmark", "phantom-presence", "--data-root", films, "--out", tmp_path / "out", "--gpus", "2", *device]
    call = ["bash", ROOT / "scripts/evaluate.sh", tmp_path / "ckpt", *words]
    env = os.environ | {"VIRTUAL_ENV": sys.prefix, "CUDA_VISIBLE_DEVICES": "0"}  # one, as a queue sets it
    done = subprocess.run(list(map(str, call)), capture_output=True, text=True, env=env)
    assert done.returncode == 2 and "ckpt: no such checkpoint" in done.stderr and "--gpus" not in done.stderr


@pytest.mark.parametrize(
    ("found", "default", "words", "message"),
    [
        (2, "cuda", [], None),
        (1, "cuda", [], "--gpus 2: this machine shows 1 GPUs; use at most as many"),
        (1, "cuda", ["--device", "cpu"], None),
        (0, "cpu", [], "--gpus 2: this machine shows no GPU; leave it out, or add --device cpu"),
        (0, "cpu", ["--device", "cpu"], None),
        (0, "cuda", [], None),  # the driver lists no MIG device: what torch sees cannot be counted
    ],
)
def test_gpus_that_are_not_there(tmp_path, monkeypatch, found, default, words, message):
    monkeypatch.setattr(run_options.machine, "gpus", lambda: [{}] * found)
    monkeypatch.setattr(run_options.machine, "default_device", lambda: default)
    fixed = ["ckpt", "--benchmark", "phantom-presence", "--out", str(tmp_path / "out"), "--check-gpus", "2"]
    with pytest.raises(UserError, match=f"^{message}") if message else contextlib.nullcontext():
        assert run.main([*fixed, *words]) == 0
    assert not FakeStudent.asked and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_real_student_whole_interrupted_and_in_shards(tmp_path, monkeypatch):
    """A tiny checkpoint on phantom films: answers and P(yes) are the same to the bit, however the run is cut."""
    from data.phantom.qwen_tokenizer import CHAT_WORDS
    from data.phantom.student import Shape, build_student

    monkeypatch.undo()
    where = phantom.environment()  # asked once: someone may commit while this test runs
    monkeypatch.setattr(phantom, "environment", lambda: where | {"made": str(time.time_ns())})
    films = tmp_path / "cohort"
    cohort.build(films, seed=3, train=0, validate=0, test=6, size=112)
    texts = [CHAT_WORDS, *(one["report"] for one in read_studies(films / "studies.jsonl"))] * 3
    shape = Shape(hidden=64, layers=2, vision_hidden=32, vision_depth=2, vocab=600)
    build_student(tmp_path / "student", seed=0, texts=texts, shape=shape)
    engine = student_engine.Student(checkpoints.describe(tmp_path / "student"))
    calls, stop_after = [], [None]

    def breaks(ask):
        def counted(*args, **options):
            calls.append(len(args[-1]))
            if stop_after[0] is not None and len(calls) > stop_after[0]:
                raise KeyboardInterrupt
            return ask(*args, **options)

        return counted

    monkeypatch.setattr(student_engine, "Student", lambda *_, **__: engine)
    monkeypatch.setattr(engine, "answer", breaks(engine.answer))
    monkeypatch.setattr(yesno, "p_yes", breaks(yesno.p_yes))
    monkeypatch.setattr(asking, "BLOCK", 4)
    names = ("phantom-presence", "phantom-progression", "phantom-zeroshot")
    words = [tmp_path / "student", "--max-new-tokens", "8", "--batch-size", "3"]
    call(films, tmp_path / "whole", *words, names=names)
    every = len(calls)
    prefixed = tmp_path / "prefixed"
    call(films, prefixed, *words, "--set", r"prefix=Answer:\n", names=names[-1:])
    one = results_of(prefixed)["benchmarks"][names[-1]]
    assert one["protocol"]["answer_prefix"] == "Answer:\n"
    mass = [json.loads(line)["mass"] for line in (prefixed / names[-1] / "per_item.jsonl").read_text().splitlines()]
    plain = [
        json.loads(line)["mass"]
        for line in (tmp_path / "whole" / names[-1] / "per_item.jsonl").read_text().splitlines()
    ]
    assert mass != plain, "the words before the answer are heard"
    with pytest.raises(UserError, match="was made with other answer_prefix; answers are never mixed"):
        call(films, prefixed, *words, names=names[-1:])
    for cut in (every // 2, every - 1):
        parts = tmp_path / f"parts-{cut}"
        calls.clear()
        stop_after[0] = cut
        with pytest.raises(KeyboardInterrupt):
            call(films, parts, *words, names=names)
        stop_after[0] = None
        call(films, parts, *words, names=names)
        assert len(calls) == every + 1, "only the question that was interrupted is asked again"
        assert (parts / "results.json").read_bytes() == (tmp_path / "whole/results.json").read_bytes()
    for i in (2, 1):
        call(films, tmp_path / "shards", *words, "--shard", f"{i}/2", names=names)
    for name in ("results.json", "table.md", *(f"{name}/predictions.jsonl" for name in names)):
        assert (tmp_path / "shards" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
