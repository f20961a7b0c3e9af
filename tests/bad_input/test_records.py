"""Study records and rows: what is no JSON, no record, no text; each as its own reader and the launcher meet it."""

import json

import pytest

from tests.bad_input.cases import SECRET, dump, refused, run, said, study

LONG = "effusion " * 12_000  # over 100,000 characters

# name: (lines of the file, message)
FILES = {
    "empty file": ([], "holds no study"),
    "only blank lines": (["", "  "], "holds no study"),
    "not JSON": (["{'id': 1}"], r"studies.jsonl:1: not JSON at column 2"),
    "a JSON array": (["[", dump(study()) + b"]"], "one indented JSON document"),
    "a list on a line": (["[1]"], "a list where a study record must be a JSON object"),
    "a number on a line": (["5"], "a number where a study record"),
    "null on a line": (["null"], "null where a study record"),
    "cut off": ([dump(study())[:-20]], "not JSON at column"),
    "Latin-1": ([dump(study()).replace(b"Clear", b"Cl\xe9ar")], "is not UTF-8; save the file as UTF-8"),
    "NaN": (['{"id": NaN}'], "NaN is not JSON"),
    "Infinity": (['{"id": -Infinity}'], "-Infinity is not JSON"),
    "1e999": (['{"id": 1e999}'], "too large for a float"),
    "a key twice": (['{"id": "a", "id": "b"}'], "key 'id' stands twice"),
    "nested a million deep": (["[" * 100_000], "nested too deeply|not JSON"),
    "an id twice": ([study(), study()], "study 's0' stands in line 1 already"),
    "misspelt field": ([study(trajectorys=[])], "unknown field 'trajectorys'; did you mean 'trajectories'"),
    "missing field": ([study(prompt=None)], r"field\(s\) missing: prompt"),
    "numeric id": ([study(id=5)], r"id is a number; write a string \(write it in quotes"),
    "empty id": ([study(id="")], "id is empty"),
    "id with line break": ([study(id="a\nb")], "id is empty, has blanks around it or control characters"),
    "split": ([study(split="training")], "split is 'training'; did you mean 'train'"),
    "absolute image": ([study(images=["/etc/passwd"])], "must be relative to the image root"),
    "climbing image": ([study(images=["films/../../x.png"])], r"leaves the image root by '\.\.'"),
    "image address": ([study(images=["https://example.org/a.png"])], "holds an address, not a file"),
    "embedded image": ([study(images=["data:image/png;base64,AAAA"])], "holds an address, not a file"),
    "image path with NUL": ([study(images=["a\0.png"])], "holds a NUL character"),
    "no image": ([study(images=[])], "images is an empty list"),
    "no tag": ([study(prompt=f"Nothing {SECRET}")], r"prompt has 0 <image> tag\(s\) for 1 image"),
    "too many tags": ([study(prompt="<image><image>")], r"prompt has 2 <image> tag\(s\) for 1 image"),
    "placeholder in prompt": (
        [study(prompt="<image> <|image_pad|>")],
        r"prompt holds the special token <\|image_pad\|>",
    ),
    "placeholder in text": ([study(trajectories=said(f"{SECRET} <|image_pad|>"))], r"special token <\|image_pad\|>"),
    "<image> in text": ([study(trajectories=said(f"{SECRET} <image>"))], "text holds the special token <image>"),
    "end of turn in text": ([study(trajectories=said(f"{SECRET} <|im_end|>"))], r"special token <\|im_end\|>"),
    "empty text": ([study(trajectories=said(""))], "text is empty; set its status to 'empty'"),
    "white space": ([study(trajectories=said(" \n\t "))], "text is empty; set its status to 'empty'"),
    "NUL in text": ([study(trajectories=said(f"{SECRET}\0"))], r"text holds a NUL character"),
    "surrogate in text": ([study(trajectories=said(f"{SECRET} \ud800"))], "half a surrogate pair"),
    "teacher twice": ([study(trajectories=said("x y") * 2)], "comes twice; keep one a teacher"),
    "status": ([study(trajectories=said("x", "okay"))], "status is 'okay'; did you mean 'ok'"),
    "consensus as text": ([study(consensus="text")], "consensus: is a string; write an object"),
    "empty consensus": ([study(consensus={"text": " ", "strategy": "s"})], "consensus: text is empty"),
    "finding": ([study(findings={"Oedema": {"state": "present"}})], "did you mean 'Edema'"),
    "state": ([study(findings={"Edema": {"state": "yes"}})], "state is 'yes'"),
    "its own prior": ([study(prior="s0")], "prior names the study itself"),
}


@pytest.mark.parametrize("name", FILES)
def test_records(name, world, monkeypatch):
    lines, message = FILES[name]
    refused(world, monkeypatch, ["records", world.write(lines)], message)


# The same file at every door: each command refuses it before it writes or computes.
DOORS = {
    "rows": lambda w: ["rows", "apo", w.studies, "--split", "train", "--out", w.folder / "rows.jsonl"],
    "splits": lambda w: ["splits", w.studies, "--out", w.folder / "out.jsonl"],
    "train": lambda w: ["train", "apo", w.config()],
    "doctor": lambda w: ["doctor", w.config()],
    "compare": lambda w: ["compare", w.student, w.studies, "--out", w.folder / "out.jsonl"],
    "predict": lambda w: [
        *("predict", w.student, "--studies", w.studies, "--out", w.folder / "predictions.jsonl"),
        *("--split", "train", "--device", "cpu", "--overwrite"),
    ],
    "collect": lambda w: ["collect", w.collect()],
}
AT_DOORS = ("not JSON", "misspelt field", "placeholder in text", "NUL in text", "climbing image", "Latin-1")


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", AT_DOORS)
def test_records_at_every_door(name, door, world, monkeypatch):
    lines, message = FILES[name]
    good = [study(1, trajectories=[]), study(2, trajectories=[])] if door == "collect" else [study(1), study(2)]
    world.write([*good, *lines])
    if name == "not JSON":
        message = r"studies.jsonl:3: not JSON"
    refused(world, monkeypatch, DOORS[door](world), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trajectories": said(LONG)}, r"studies.jsonl:2: \d+ tokens .* over max_length 1024; raise --max_length"),
        ({"prompt": f"<image> {LONG}"}, r"studies.jsonl:2: \d+ tokens .* over max_length 1024"),
        ({"consensus": None}, "study 's1': has no consensus"),
        ({"trajectories": []}, "study 's1': has no ok trajectory"),
        ({"trajectories": said("", "empty")}, "study 's1': has no ok trajectory"),
        ({"consensus": {"text": f"No  pneumothorax. {SECRET}", "strategy": "s"}}, "equals the trajectory of 'a'"),
    ],
)
def test_what_cannot_be_trained_on(change, message, world, monkeypatch):
    world.write([study(0), study(1, **change), study(2)])
    refused(world, monkeypatch, ["train", "apo", world.config()], message)


def turn(role, text):
    return {"role": role, "content": text}


def row(**changes):
    whole = {
        "messages": [turn("user", f"{SECRET} <image>"), turn("assistant", f"Clear. {SECRET}")],
        "negative_messages": [[turn("assistant", f"Effusion. {SECRET}")]],
        "images": ["films/0.png"],
    }
    return {key: value for key, value in (whole | changes).items() if value is not None}


ROWS = {
    "no file": (None, "cannot be read"),
    "nothing": ([], "holds no row"),
    "a list": (["[]"], "a row must be a JSON object"),
    "no messages": ([row(messages=None)], "row has no messages"),
    "a record": ([study()], "this is a study record: make rows of it with python -m data.rows"),
    "no negative": ([row(negative_messages=None)], "row has no negative"),
    "negatives as one list": ([row(negative_messages=[turn("assistant", "x")])], "must be a list of lists"),
    "rejected list": (
        [row(negative_messages=None, rejected_response=["x"])],
        "rejected_response is a list, which ms-swift reads as ONE answer",
    ),
    "misspelt column": (
        [row(negative_message=[])],
        "unknown column 'negative_message'; did you mean 'negative_messages'",
    ),
    "equal answers": (
        [row(negative_messages=[[turn("assistant", f"Clear.  {SECRET}")]])],
        "equals the positive answer",
    ),
    "another prompt": (
        [row(negative_messages=[[turn("user", "Other?"), turn("assistant", "No.")]])],
        "its prompt is not that of messages",
    ),
    "placeholder": (
        [row(messages=[turn("user", "<image>"), turn("assistant", f"{SECRET} <image>")])],
        "a turn of assistant holds the special token <image>",
    ),
    "empty answer": ([row(messages=[turn("user", "<image>"), turn("assistant", " ")])], "assistant's answer is empty"),
    "role": ([row(messages=[turn("doctor", "<image>"), turn("assistant", "x")])], "unknown role"),
    "content": ([row(messages=[turn("user", ["<image>"]), turn("assistant", "x")])], "content must be a string"),
    "missing image": ([row(images=["films/none.png"])], "missing or unreadable"),
    "image as number": ([row(images=[5])], "images must be paths of files"),
    "tags": ([row(images=[])], r"prompt has 1 <image> tag\(s\) for 0 image"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows(name, world, monkeypatch):
    lines, message = ROWS[name]
    path = world.folder / "mine.jsonl" if lines is None else world.write(lines, "mine.jsonl")
    refused(world, monkeypatch, ["rows", "check", "apo", path], message)


def test_rows_may_not_leave_the_image_root(world, monkeypatch):
    path = world.write([row(images=["/etc/hostname"])], "mine.jsonl")
    words = ["train", "apo", world.config(dataset=str(path), image_root=str(world.folder / "films"))]
    refused(world, monkeypatch, words, "image /etc/hostname lies outside the image root .*--allow-outside")


def test_the_good_world_is_good(world, monkeypatch):
    """Otherwise every refusal above might be for another reason."""
    for words in (["records", world.studies, "--check-images"], ["doctor", world.config()]):
        status, told = run(words, monkeypatch)
        assert status == 0, told
    world.write([row()], "mine.jsonl")
    assert run(["rows", "check", "apo", world.folder / "mine.jsonl", "--check-images"], monkeypatch)[0] == 0
    with pytest.raises(pytest.fail.Exception, match="computing has started"):
        run(["train", "apo", world.config()], monkeypatch)
    assert json.loads((world.folder / "run/launch.json").read_text())["datasets"]
