"""Files between the stages: predictions, results, sidecars of outputs; damaged, mixed, of another run."""

import json
import zipfile

import pytest

from data import manifest
from data.errors import UserError
from tests.bad_input.cases import SECRET, refused, run, study


def write(path, *rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


ANSWER = {"id": "s0", "text": f"No edema. {SECRET}", "finish_reason": "stop"}
PREDICTIONS = {
    "missing file": (None, "cannot be read"),
    "no rows": ([], "no |holds"),
    "not JSON": (["{\n"], r":1: not JSON"),
    "a list": ([[1]], ":1: "),
    "no id": ([{"text": "x"}], ":1: "),
    "no text": ([{"id": "s0", "text": None}], ":1: "),
    "twice": ([ANSWER, ANSWER], ":2: "),
    "of another study": ([ANSWER | {"id": "zz"}], "zz"),
    "one is missing": ([ANSWER], "s1|2 "),
}


@pytest.mark.parametrize("name", PREDICTIONS)
def test_predictions_to_be_scored(name, world, monkeypatch):
    rows, message = PREDICTIONS[name]
    path = world.folder / "mine.jsonl"
    if rows is not None:
        write(path, *rows)
    words = ["score", "--studies", world.studies, "--split", "train", "--predictions", f"x={path}"]
    refused(world, monkeypatch, [*words, "--out", world.folder / "results.json"], message)


@pytest.mark.parametrize(
    ("sidecar", "message"),
    [
        (None, "predictions.jsonl.meta.json is missing or damaged"),
        ("{", "predictions.jsonl.meta.json is missing or damaged"),
        ("[]", "was made with other checkpoint|missing or damaged"),
        ('{"checkpoint": "another"}', "was made with other checkpoint.*answers are never mixed"),
    ],
)
def test_predictions_of_another_run_are_not_continued(sidecar, message, world, monkeypatch):
    out = write(world.folder / "predictions.jsonl", ANSWER)
    if sidecar is not None:
        manifest.sidecar(out).write_text(sidecar)
    words = ["predict", world.student, "--studies", world.studies, "--split", "train", "--device", "cpu", "--out", out]
    refused(world, monkeypatch, words, message)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": -1}', '{"schema": NaN}'])
def test_results_that_are_none(text, world, monkeypatch):
    (world.folder / "mine.json").write_text(text)
    words = ["report", "--results", world.folder / "mine.json", "--studies", world.studies]
    refused(world, monkeypatch, [*words, "--out", world.folder / "report.html"], "mine.json: not ")


def consensus(world, monkeypatch):
    """A file that Compare has made, with its manifest."""
    (world.folder / "out.jsonl").unlink()
    out = world.folder / "out.jsonl"
    assert run(["compare", "-", world.studies, "--out", out, "--strategy", "vote"], monkeypatch)[0] in (0, None)
    return out


def test_a_manifest_says_what_a_file_was_made_from(world, monkeypatch):
    out = consensus(world, monkeypatch)
    made = json.loads(manifest.sidecar(out).read_text())["manifest"]
    assert made["inputs"]["studies"] == manifest.entry(world.studies)
    assert made["output"] == manifest.entry(out)["sha256"]
    assert made["settings"]["strategy"] == "vote"
    assert made["code"] == manifest.code() and len(made["code"]["sha256"]) == 64
    assert manifest.stale(out) == []
    assert run(["manifest", out], monkeypatch) == (0, f"{out}: as its manifest says\n")


def test_stale_and_mixed_outputs_are_recognised(world, monkeypatch):
    out = consensus(world, monkeypatch)
    world.write([study(n, report="new") for n in range(3)])
    refused(world, monkeypatch, ["manifest", out], "its input .*studies.jsonl has changed since; make .*out.jsonl anew")
    out.write_text(out.read_text() + "\n")
    refused(world, monkeypatch, ["manifest", out], "is not the file that out.jsonl.meta.json describes")
    _, told = run(["doctor", world.config(dataset=str(out), on_identical="drop-negative")], monkeypatch)
    assert "note: " in told and "is not the file that out.jsonl.meta.json describes" in told
    world.studies.unlink()
    refused(world, monkeypatch, ["manifest", out], "studies.jsonl is not there any more")
    for text in ("{", "{}", '{"manifest": {}}'):
        manifest.sidecar(out).write_text(text)
        refused(world, monkeypatch, ["manifest", out], "meta.json: damaged")
    manifest.sidecar(out).unlink()
    refused(world, monkeypatch, ["manifest", out], "has no manifest")


def test_a_run_is_not_resumed_on_other_data(world, monkeypatch):
    from scripts import launch

    def train(plan, lock):
        folder = plan.output_dir / "checkpoint-4"
        folder.mkdir(exist_ok=True)
        for path in world.student.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / "trainer_state.json").write_text("{}")
        zipfile.ZipFile(folder / "optimizer.pt", "w").close()
        return 0

    monkeypatch.setattr(launch, "execute", train)
    words = ["train", "apo", world.config()]
    assert run(words, monkeypatch)[0] == 0
    assert run(["manifest", "run"], monkeypatch)[0] == 0
    resume = [*words, "--resume_from_checkpoint", "run/checkpoint-4"]
    assert run(resume, monkeypatch)[0] == 0
    note = (world.folder / "run/launch.json").read_bytes()
    world.write([study(n, view="AP") for n in range(3)])
    status, told = run(resume, monkeypatch)
    assert status == 2 and "its run was begun on other data" in told
    assert (world.folder / "run/launch.json").read_bytes() == note
    status, told = run(["manifest", "run"], monkeypatch)
    assert status == 2 and "its input" in told


def test_an_output_never_takes_the_place_of_an_input(world, monkeypatch):
    studies = world.write([study(n) for n in range(2)])
    before = studies.read_bytes()
    other = world.folder / "other.jsonl"
    other.write_bytes(before)
    answers = world.folder / "answers.jsonl"
    answers.write_text("{}\n")
    from eval import leaks, phantom, predict
    from scripts import aggregation, sight

    for main, words in (
        (phantom.main, ["--studies", studies, "--out", studies]),
        (phantom.main, ["--studies", studies, "--predictions", f"a={answers}", "--out", answers]),
        (phantom.main, ["--studies", studies, "--out", world.folder / "r.json", "--table", studies]),
        (predict.main, ["checkpoint", "--studies", studies, "--out", studies, "--overwrite"]),
        (aggregation.main, [studies, "--out", studies]),
        (sight.main, [studies, "--out", studies]),
        (leaks.main, [studies, other, "--out", other]),
        (leaks.main, [studies, other, "--out", studies]),
    ):
        with pytest.raises(UserError, match="is the input file; choose another"):
            main([str(word) for word in words])
    assert studies.read_bytes() == before and answers.read_text() == "{}\n"
