import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.errors import UserError
from data.records import write_studies
from data.rows import apo_row, check_rows, describe, file_kind, main, sft_rows, write_rows

PROMPT = "Chest film <image>. Describe it."


def study(id="s1", texts=("Left effusion.", "Right effusion.", "Clear."), consensus="Left effusion, small.", **more):
    record = {
        "id": id,
        "patient": f"p-{id}",
        "source": "phantom",
        "split": "train",
        "images": ["films/a.png"],
        "prompt": PROMPT,
        "trajectories": [{"teacher": f"t{n}", "text": text, "status": "ok"} for n, text in enumerate(texts, 1)],
    }
    if consensus is not None:
        record["consensus"] = {"text": consensus, "strategy": "vote"}
    return record | more


def refused_one():
    return {"teacher": "shy", "text": "I cannot help.", "status": "refused"}


@pytest.fixture
def cohort(tmp_path):
    (tmp_path / "films").mkdir()
    Image.new("L", (40, 30), 90).save(tmp_path / "films" / "a.png")

    def write(*studies):
        write_studies(tmp_path / "studies.jsonl", studies)
        return tmp_path / "studies.jsonl"

    return write


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def refusal(call, *arguments, **options):
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def test_sft_rows_are_one_for_each_ok_trajectory():
    one = study(texts=("A.", "B."))
    one["trajectories"].insert(1, refused_one())
    assert sft_rows(one, "/store") == [
        {
            "messages": [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": text}],
            "images": ["/store/films/a.png"],
        }
        for text in ("A.", "B.")
    ]
    assert sft_rows(study(texts=()), "/store") == []


def test_apo_row_has_the_consensus_and_one_turn_for_each_negative():
    one = study(texts=("A.", "B."))
    one["trajectories"].append(refused_one())
    assert apo_row(one, "/store") == {
        "messages": [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "Left effusion, small."}],
        "negative_messages": [[{"role": "assistant", "content": "A."}], [{"role": "assistant", "content": "B."}]],
        "images": ["/store/films/a.png"],
    }


def test_apo_row_refuses_what_cannot_be_ranked():
    assert "study 's1': has no consensus; run scripts/compare.sh first, or drop it: --on-missing-consensus drop" in (
        refusal(apo_row, study(consensus=None), "/store")
    )
    lonely = study(texts=(), trajectories=[refused_one()])
    assert "study 's1': has no ok trajectory, so no negative; collect one, or drop it: --on-missing-negative drop" in (
        refusal(apo_row, lonely, "/store")
    )
    same = study(texts=("A.", " Left\neffusion,  small. ", "B."))
    assert "study 's1': the consensus equals the trajectory of 't2', which cannot be positive and negative at once" in (
        refusal(apo_row, same, "/store")
    )
    kept = apo_row(same, "/store", drop_identical=True)["negative_messages"]
    assert [turns[0]["content"] for turns in kept] == ["A.", "B."]
    all_same = study(texts=("Left effusion, small.",))
    assert "every negative equals the consensus; drop the study: --on-missing-negative drop" in (
        refusal(apo_row, all_same, "/store", drop_identical=True)
    )


@pytest.mark.parametrize("text", ["Left effusion, small!", "Left effusion, smal", "left effusion, small."])
def test_a_near_copy_of_the_consensus_is_a_negative(text):
    assert len(apo_row(study(texts=(text,)), "/store")["negative_messages"]) == 1


def test_equal_texts_are_found_whatever_their_white_space():
    words = ["The", "left", "costophrenic", "angle", "is", "blunted;", "the", "heart", "is", "normal."] * 8
    spread = study(texts=("\n\n" + "   \n".join(words),), consensus=" ".join(words))
    assert "the consensus equals the trajectory of 't1'" in refusal(apo_row, spread, "/store")


def test_write_sft_rows_and_counts(cohort, tmp_path):
    mixed = study("b", texts=("C é.",))
    mixed["trajectories"] += [refused_one(), {"teacher": "long", "text": "cut", "status": "truncated"}]
    path = cohort(study("a"), mixed, study("c", split="test"), study("d", texts=(), trajectories=[refused_one()]))
    out = tmp_path / "rows" / "train.jsonl"
    counts = write_rows("sft", path, out, split="train")
    assert counts == {
        "kind": "sft",
        "split": "train",
        "out": str(out),
        "studies": 3,
        "other_splits": {"test": 1},
        "rows": 4,
        "trajectories": {"ok": 4, "refused": 2, "truncated": 1},
        "set_aside": {"no ok trajectory": 1},
    }
    assert [row["messages"][1]["content"] for row in rows_of(out)] == [
        "Left effusion.",
        "Right effusion.",
        "Clear.",
        "C é.",
    ]
    assert rows_of(out) == sft_rows(study("a"), tmp_path) + sft_rows(mixed, tmp_path)
    assert describe(counts) == (
        f"sft rows of split train: 4 rows from 3 studies -> {out}\n"
        "  trajectories: ok 4, refused 2, truncated 1 (only ok ones are used)\n"
        "  studies of other splits, not used: test 1\n"
        "  studies set aside: no ok trajectory 1"
    )
    assert check_rows(out, "sft") == {"kind": "sft", "rows": 4, "images": 4, "unused_columns": {}}


def test_write_apo_rows_with_set_asides_and_counts(cohort, tmp_path):
    path = cohort(
        study("a"),
        study("b", texts=("A.", "A.", "B.", "A.")),
        study("c", consensus=None),
        study("d", texts=(), trajectories=[refused_one()]),
        study("e", texts=(), consensus=None),
        study("f", texts=("Left effusion,\tsmall.", "Clear.")),
        study("g", texts=("Left effusion, small.",)),
        study("h", consensus=None, split="validate"),
    )
    out = tmp_path / "train.jsonl"
    options = {"on_missing_consensus": "drop", "on_missing_negative": "drop", "on_identical": "drop-negative"}
    counts = write_rows("apo", path, out, split="train", **options)
    assert counts == {
        "kind": "apo",
        "split": "train",
        "out": str(out),
        "studies": 7,
        "other_splits": {"validate": 1},
        "rows": 3,
        "trajectories": {"ok": 13, "refused": 1},
        "set_aside": {"no consensus": 1, "no ok trajectory": 2, "every negative equals the consensus": 1},
        "negatives": 8,
        "negatives_per_row": {1: 1, 3: 1, 4: 1},
        "identical_negatives": 1,
        "duplicate_negatives": 2,
        "weighted_rows": 0,
    }
    assert [len(row["negative_messages"]) for row in rows_of(out)] == [3, 4, 1]
    assert describe(counts).splitlines()[-3:] == [
        "  negatives: 8 (rows by number of negatives: N=1: 1, N=3: 1, N=4: 1)",
        "  negatives left out because they equal the consensus: 1",
        "  negatives that repeat another of the same study, kept: 2",
    ]
    assert check_rows(out, "apo") == {"kind": "apo", "rows": 3, "images": 3, "unused_columns": {}, "negatives": 8}


def test_all_problems_are_listed_with_line_and_the_old_rows_stay(cohort, tmp_path):
    path = cohort(
        study("a"),
        study("b", consensus=None),
        study("c", texts=()),
        study("d", texts=("Left effusion, small.",)),
        study("e", images=["films/none.png"]),
        study("f", consensus=None, split="test"),
    )
    out = tmp_path / "rows.jsonl"
    out.write_text("old\n")
    message = refusal(write_rows, "apo", path, out, split="train")
    assert message.startswith(f"{path}: 4 problems:\n")
    assert f"{path}:2: study 'b': has no consensus" in message
    assert f"{path}:3: study 'c': has no ok trajectory" in message
    assert f"{path}:4: study 'd': the consensus equals the trajectory of 't1'" in message
    assert f"{path}:5: study 'e': image {tmp_path}/films/none.png missing or unreadable" in message
    assert out.read_text() == "old\n"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["films", "rows.jsonl", "studies.jsonl"]


def test_a_bad_record_of_another_split_stops_the_rows_too(cohort, tmp_path):
    path = cohort(study("a"))
    with open(path, "a", encoding="utf-8") as studies:
        studies.write(json.dumps(study("b", split="tests")) + "\n")
    message = refusal(write_rows, "sft", path, tmp_path / "rows.jsonl", split="train")
    assert message == f"{path}:2: study 'b': split is 'tests'; did you mean 'test'?"


def test_a_torn_last_line_is_refused(cohort, tmp_path):
    path = cohort(study("a"), study("b"))
    path.write_bytes(path.read_bytes()[:-20])
    message = refusal(write_rows, "sft", path, tmp_path / "rows.jsonl", split="train")
    assert f"{path}:2: not JSON" in message
    assert "it is the last line and has no newline: cut off?" in message
    assert not (tmp_path / "rows.jsonl").exists()


def test_images_are_decoded_when_asked(cohort, tmp_path):
    path = cohort(study("a"))
    film = tmp_path / "films" / "a.png"
    film.write_bytes(film.read_bytes()[:60])
    assert write_rows("sft", path, tmp_path / "rows.jsonl", split="train")["rows"] == 3
    assert "films/a.png is " in refusal(write_rows, "sft", path, tmp_path / "r", split="train", check_images=True)


def test_image_root_of_rows(cohort, tmp_path):
    path = cohort(study("a", images=["a.png"]))
    out = tmp_path / "rows.jsonl"
    write_rows("sft", path, out, split="train", image_root=tmp_path / "films")
    assert rows_of(out)[0]["images"] == [str(tmp_path / "films" / "a.png")]


def test_a_split_without_rows(cohort, tmp_path):
    path = cohort(study("a"), study("b", texts=(), split="test"))
    out = tmp_path / "rows.jsonl"
    assert refusal(write_rows, "sft", path, out, split="validate") == (
        f"{path}: no study has split 'validate' (the file has: test 1, train 1); choose another --split"
    )
    assert "no row for split 'test', every study was set aside: no ok trajectory 1" in (
        refusal(write_rows, "sft", path, out, split="test")
    )
    assert not out.exists()
    assert write_rows("sft", path, out, split="validate", allow_empty=True)["rows"] == 0
    assert out.read_bytes() == b""
    path.write_text("")
    assert "holds no study" in refusal(write_rows, "sft", path, out, split="train")


def test_wrong_arguments_of_write_rows(cohort, tmp_path):
    path = cohort(study("a"))
    before = path.read_bytes()
    assert "is the file of studies itself; name another file" in refusal(write_rows, "sft", path, path, split="train")
    assert "--split val: did you mean 'validate'?" in refusal(write_rows, "sft", path, tmp_path / "o", split="val")
    assert "kind of rows 'dpo': " in refusal(write_rows, "dpo", path, tmp_path / "o", split="train")
    assert path.read_bytes() == before


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["rows", *map(str, arguments)])
    main()


def test_command_line(cohort, tmp_path, monkeypatch, capsys):
    path = cohort(study("a"), study("b", consensus="Clear."))
    out = tmp_path / "rows.jsonl"
    run(monkeypatch, "sft", path, "--split", "train", "--out", out, "--image-root", tmp_path)
    assert "sft rows of split train: 6 rows from 2 studies" in capsys.readouterr().out
    with pytest.raises(UserError, match=r":2: .*leave that negative out: --on-identical drop-negative"):
        run(monkeypatch, "apo", path, "--split", "train", "--out", out)
    run(monkeypatch, "apo", path, "--split", "train", "--out", out, "--on-identical", "drop-negative")
    assert "negatives left out because they equal the consensus: 1" in capsys.readouterr().out
    run(monkeypatch, "check", "apo", out, "--check-images")
    assert capsys.readouterr().out == f"{out}: images 2, negatives 5, rows 2\n"


@pytest.mark.parametrize(
    ("line", "kind"),
    [({"messages": []}, "rows"), ({"id": "a", "images": []}, "studies"), ({"trajectories": []}, "studies")],
)
def test_file_kind(tmp_path, line, kind):
    (tmp_path / "f.jsonl").write_text(json.dumps(line) + "\nrubbish")
    assert file_kind(tmp_path / "f.jsonl") == kind


def test_file_kind_of_neither(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text('{"query": "x"}\n')
    assert refusal(file_kind, path).startswith(f"{path}:1: neither a study record")
    path.write_text("")
    assert refusal(file_kind, path) == f"{path}: is empty; write one JSON object a line"


def turn(content, role="assistant"):
    return {"role": role, "content": content}


def row(**changes):
    good = {
        "messages": [turn(PROMPT, "user"), turn("Left effusion.")],
        "negative_messages": [[turn("Clear.")], [turn("Right effusion.")]],
        "images": ["films/a.png"],
    }
    return {key: value for key, value in (copy.deepcopy(good) | changes).items() if value is not ...}


def check(tmp_path, monkeypatch, kind, *rows):
    """Check rows in a file of that folder, with image paths relative to it."""
    monkeypatch.setenv("ROOT_IMAGE_DIR", str(tmp_path))
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return check_rows(path, kind)


GOOD_ROWS = {
    "compact": (row(), 2),
    "whole conversations": (row(negative_messages=[[turn(PROMPT, "user"), turn("Clear.")]]), 1),
    "rejected_response": (row(negative_messages=..., rejected_response="Clear."), 1),
    "rejected_messages": (row(negative_messages=..., rejected_messages=[turn(PROMPT, "user"), turn("Clear.")]), 1),
    "image as object": (row(images=[{"path": "films/a.png"}]), 2),
    "image as string": (row(images="films/a.png"), 2),
    "no image": (row(images=..., messages=[turn("Hello.", "user"), turn("Left effusion.")]), 2),
    "system": (row(messages=[turn("Be brief.", "system"), turn(PROMPT, "user"), turn("Left effusion.")]), 2),
}


@pytest.mark.parametrize("name", GOOD_ROWS)
def test_own_rows_that_are_accepted(cohort, tmp_path, monkeypatch, name):
    one, negatives = GOOD_ROWS[name]
    assert check(tmp_path, monkeypatch, "apo", one)["negatives"] == negatives


BAD_ROWS = {
    "list as rejected_response": (
        row(negative_messages=..., rejected_response=["Clear.", "Right effusion."]),
        "rejected_response is a list, which ms-swift reads as ONE answer of several turns, not as many negatives; "
        "write negative_messages: [[{role: assistant, content: ...}], ...], one list for each negative",
    ),
    "number as rejected_response": (row(negative_messages=..., rejected_response=3), "must be a string; for several"),
    "two kinds": (row(rejected_response="x"), "row has negative_messages and rejected_response; keep one of them"),
    "none": (row(negative_messages=...), "row has no negative; write negative_messages: [[{role: assistant"),
    "empty list": (row(negative_messages=[]), "negative_messages must be a list of at least one negative"),
    "one flat conversation": (row(negative_messages=[turn("Clear.")]), "negative_messages must be a list of lists"),
    "strings": (row(negative_messages=["Clear."]), "negative_messages must be a list of lists"),
    "empty negative": (row(negative_messages=[[turn("Clear.")], []]), "negative 2 must be a list of turns that ends"),
    "blank negative": (row(negative_messages=[[turn(" ")]]), "negative 1: the assistant's answer is empty"),
    "negative equal": (
        row(negative_messages=[[turn("Clear.")], [turn("Left  effusion.")]]),
        "negative 2: equals the positive answer; take this negative out",
    ),
    "negative trained in part": (
        row(negative_messages=[[turn("Clear.") | {"loss": False}]]),
        "negative 1: its answer has a loss or loss_scale of its own",
    ),
    "positive trained in part": (
        row(messages=[turn(PROMPT, "user"), turn("Left effusion.") | {"loss_scale": 0.5}]),
        "messages: its answer has a loss or loss_scale of its own",
    ),
    "other prompt": (
        row(negative_messages=[[turn("Another <image>.", "user"), turn("Clear.")]]),
        "negative 1: its prompt is not that of messages; write its assistant turn alone",
    ),
    "negative ends with user": (row(negative_messages=[[turn("x", "user")]]), "negative 1: the last turn is not the"),
    "token in negative": (
        row(negative_messages=[[turn("a <image>")]]),
        "negative 1: a turn of assistant holds the spec",
    ),
    "negative images": (row(negative_images=[["b.png"]]), "negatives share the images of the prompt; take"),
    "no prompt": (row(messages=[turn("Left effusion.")], images=[]), "messages has no prompt; put the user's turn"),
}
BAD_CONVERSATIONS = {
    "not an object": ([], "a row must be a JSON object; write {...} on each line"),
    "study record": ({"id": "a", "trajectories": []}, "row has no messages; this is a study record: make rows of it"),
    "no messages": ({"query": "a"}, "row has no messages; write [{role: user, ...}, {role: assistant, ...}]"),
    "messages empty": (row(messages=[]), "messages must be a list of turns that ends with an assistant turn"),
    "turn a string": (row(messages=["a"]), "messages: every turn must be an object with role and content"),
    "role": (row(messages=[turn("a", "assistent")]), "messages: unknown role; did you mean 'assistant'?"),
    "content a list": (
        row(messages=[turn([{"type": "image"}], "user"), turn("x")]),
        "messages: content must be a string; write <image> where an image belongs and its path in images",
    ),
    "ends with user": (row(messages=[turn(PROMPT, "user")]), "messages: the last turn is not the assistant's"),
    "empty answer": (row(messages=[turn(PROMPT, "user"), turn("")]), "messages: the assistant's answer is empty"),
    "token": (row(messages=[turn("<image><|im_end|>", "user"), turn("x")]), "holds the special token <|im_end|>"),
    "surrogate": (row(messages=[turn(PROMPT, "user"), turn("\ud800")]), "messages: a text holds half a surrogate pair"),
    "NUL": (row(messages=[turn(PROMPT, "user"), turn("\0x")]), "messages: a text holds a NUL character"),
    "too many images": (row(images=["films/a.png"] * 2), "prompt has 1 <image> tag(s) for 2 image(s); put one <image>"),
    "too few images": (row(images=...), "prompt has 1 <image> tag(s) for 0 image(s)"),
    "missing image": (row(images=["films/none.png"]), "films/none.png missing or unreadable"),
    "address": (row(images=["http://host/a.png"]), "images must be paths of files; download addresses"),
    "images a number": (row(images=3), "images must be a list of paths"),
    "image": (row(image=["films/a.png"]), "unknown column 'image'; did you mean 'images'?"),
    "negatives": (row(negatives=[]), "unknown column 'negatives'; did you mean 'negative_messages'?"),
}


@pytest.mark.parametrize("name", BAD_ROWS | BAD_CONVERSATIONS)
def test_own_rows_that_are_refused(cohort, tmp_path, monkeypatch, name):
    one, message = (BAD_ROWS | BAD_CONVERSATIONS)[name]
    error = refusal(check, tmp_path, monkeypatch, "apo", row(), one)
    assert error.startswith(f"{tmp_path}/own.jsonl:2: ")
    assert message in error


@pytest.mark.parametrize("name", BAD_CONVERSATIONS)
def test_own_sft_rows_that_are_refused(cohort, tmp_path, monkeypatch, name):
    one, message = BAD_CONVERSATIONS[name]
    assert message in refusal(check, tmp_path, monkeypatch, "sft", row(), one)


def test_unused_columns_and_all_problems_are_counted(cohort, tmp_path, monkeypatch):
    counts = check(tmp_path, monkeypatch, "sft", row(id="a", note=1), row(id="b"))
    assert counts["unused_columns"] == {"id": 2, "note": 1}
    error = refusal(check, tmp_path, monkeypatch, "apo", *[row(images=[])] * 12)
    assert error.startswith(f"{tmp_path}/own.jsonl: 12 problems, the first 10:\n")
    assert "holds no row" in refusal(check, tmp_path, monkeypatch, "sft")
    assert "kind of rows 'dpo'" in refusal(check, tmp_path, monkeypatch, "dpo", row())


def test_own_rows_with_a_damaged_image(cohort, tmp_path, monkeypatch):
    (tmp_path / "films" / "a.png").write_text("no image")
    assert check(tmp_path, monkeypatch, "sft", row())["rows"] == 1
    assert "own.jsonl:1: image" in refusal(check_rows, tmp_path / "own.jsonl", "sft", check_images=True)


FEW = settings(max_examples=300, deadline=None, derandomize=True)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=6)
    | st.sampled_from(["<image>", "\ud800", "assistant"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.sampled_from(["role", "content", "path"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    field=st.sampled_from([*row(), "rejected_response", "rejected_messages", "system"]),
    deeper=st.booleans(),
    value=JSON,
    kind=st.sampled_from(["sft", "apo"]),
)
def test_any_value_in_any_column_is_accepted_or_refused(tmp_path, field, deeper, value, kind):
    one = row()
    if field.startswith("rejected"):
        del one["negative_messages"]
    if deeper and isinstance(one.get(field), list):
        one[field][-1] = value
    else:
        one[field] = value
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(one) + "\n")
    try:
        check_rows(path, kind)
    except UserError as error:
        assert str(path) in str(error)


@pytest.mark.slow
def test_ms_swift_loads_both_kinds_with_any_number_of_negatives(cohort, tmp_path, monkeypatch):
    swift_dataset = pytest.importorskip("swift.dataset", reason="ms-swift is not installed")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    texts = [f"Text {n}." for n in range(7)]
    path = cohort(study("a", texts=texts), study("b", texts=texts[:1]), study("c", texts=texts[:3]))
    for kind, rows in (("sft", 11), ("apo", 3)):
        out = tmp_path / f"{kind}.jsonl"
        write_rows(kind, path, out, split="train")
        loaded, _ = swift_dataset.load_dataset([str(out)], shuffle=False, strict=True)
        assert len(loaded) == rows
        for got, wrote in zip(loaded, rows_of(out), strict=True):
            assert got["messages"] == wrote["messages"]
            assert [image["path"] for image in got["images"]] == wrote["images"]
            assert got.get("negative_messages") == wrote.get("negative_messages")


def test_a_study_learnt_behind_one_prefix_is_one_row(cohort, tmp_path):
    one = study(texts=("A.", "B.", "C."))
    one["trajectories"].insert(1, refused_one())
    counts = write_rows("sft", cohort(one), tmp_path / "rows.jsonl", split="train", share_prefix=True)
    assert counts["rows"] == 1
    (row,) = rows_of(tmp_path / "rows.jsonl")
    separate = sft_rows(one, tmp_path)
    turns = [row["messages"][-1], *(turns[0] for turns in row["positive_messages"])]
    assert turns == [made["messages"][-1] for made in separate]
    assert (row["messages"][0], row["images"]) == (separate[0]["messages"][0], separate[0]["images"])
    assert check_rows(tmp_path / "rows.jsonl", "sft")["rows"] == 1


def test_positive_messages_are_checked(tmp_path, cohort):
    write_rows("sft", cohort(study()), tmp_path / "rows.jsonl", split="train", share_prefix=True)
    (row,) = rows_of(tmp_path / "rows.jsonl")
    row["positive_messages"][0] = "text"
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert "list of lists with one assistant turn" in refusal(check_rows, tmp_path / "rows.jsonl", "sft")
    row["positive_messages"] = [[turn("B.") | {"loss": False}]]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert "positive_messages[0]: its answer has a loss" in refusal(check_rows, tmp_path / "rows.jsonl", "sft")


def test_weights_stay_with_their_negatives_when_others_are_left_out():
    one = study(texts=("Left effusion, small.", "A.", "Left  effusion, small.", "B.", "C."))
    one["consensus"]["audit"] = {"negative_weights": {"t1": 9.0, "t2": 0.5, "t3": 8.0, "t4": 1.5}}
    row = apo_row(one, "/", drop_identical=True)
    assert [turns[0]["content"] for turns in row["negative_messages"]] == ["A.", "B.", "C."]
    assert row["negative_weights"] == [0.5, 1.5, 1.0], "1 for a teacher that the weights do not name"
    one["consensus"]["audit"] = ["free", "in shape"]
    assert "negative_weights" not in apo_row(one, "/", drop_identical=True)
    for weights in (5, [1.0], {"t1": "x"}, {"t1": -1.0}, {"t1": True}):
        one["consensus"]["audit"] = {"negative_weights": weights}
        assert "are not numbers above 0 by teacher" in refusal(apo_row, one, "/", drop_identical=True)


def test_a_critique_row_shows_every_film_of_its_study():
    one = study(images=["a.png", "b.png"], prompt="<image> <image> Describe.")
    assert apo_row(one, "/store")["images"] == ["/store/a.png", "/store/b.png"]


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("apo", {"negative_weights": [0, 1]}, "must be a list of 2 numbers above 0"),
        ("apo", {"negative_weights": [1.0]}, "must be a list of 2 numbers above 0"),
        ("apo", {"negative_weights": [True, 1]}, "must be a list of 2 numbers above 0"),
        ("apo", {"negative_weights": [float("1e400"), 1]}, "too large|must be a list of 2 numbers above 0|not JSON"),
        ("apo", {"rejected_images": ["b.png"]}, "negatives share the images of the prompt"),
        ("apo", {"system": "Look: <image>"}, r"prompt has 2 <image> tag\(s\) for 1 image"),
        ("sft", {"positive_messages": [[turn("A."), turn("B.")]]}, "one assistant turn each"),
    ],
)
def test_own_rows_with_weights_positives_or_a_system_turn(cohort, tmp_path, monkeypatch, kind, changes, message):
    with pytest.raises(UserError, match=message):
        check(tmp_path, monkeypatch, kind, row(**changes))


def test_own_rows_with_weights_are_taken_and_films_stay_inside_the_root(cohort, tmp_path, monkeypatch):
    assert check(tmp_path, monkeypatch, "apo", row(negative_weights=[0.5, 2]))["negatives"] == 2
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="lies outside the image root"):
        check_rows(tmp_path / "own.jsonl", "apo", image_root=tmp_path / "other")


def test_a_link_to_the_studies_is_no_place_for_rows(cohort, tmp_path):
    path = cohort(study("a"))
    before = path.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(path.name)
    assert "is the file of studies itself" in refusal(write_rows, "sft", path, tmp_path / "link.jsonl", split="train")
    assert path.read_bytes() == before
