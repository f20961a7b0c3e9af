"""apo.labels: which rows count, and what is refused."""

import json

import pytest

from apo.labels import read_labels
from data.errors import UserError

STUDIES = [{"id": f"s{n}", "split": split} for n, split in enumerate(["train", "train", "train", "test", "validate"])]


def row(name, **states):
    return {"id": name, "findings": {label: {"state": state} for label, state in states.items()}}


@pytest.fixture
def write(tmp_path):
    def put(*rows):
        path = tmp_path / "labels.jsonl"
        path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows))
        return path

    return put


def test_only_what_is_known_of_training_studies_counts(write):
    path = write(
        row("s1", Edema="present", Pneumonia="absent", Fracture="uncertain"),
        row("s3", Edema="present"),
        row("s4", Edema="present"),
        row("s9", Edema="absent"),
        row("s2", Edema="uncertain"),
        {"id": "s0", "report": "a study record has more than these two", "findings": {"Edema": {"state": "absent"}}},
    )
    found = read_labels(path, STUDIES)
    assert found.known == {"s1": {"Edema": True, "Pneumonia": False}, "s0": {"Edema": False}}
    assert found.left == {
        "of held-out studies": 2,
        "of no study in the file": 1,
        "without a finding that is present or absent": 1,
    }
    one = read_labels(path, STUDIES, 1)
    assert list(one.known) == ["s1"] and one.left["over --label-limit"] == 1


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (["x"], r"labels.jsonl:1: "),
        ([row("s0", Edema="present"), []], r"labels.jsonl:2: not a label; write"),
        ([{"findings": {}}], r"labels.jsonl:1: not a label; write"),
        ([row("s0", Edema="yes")], r"labels.jsonl:1: finding 'Edema': state"),
        ([row("s0", Oedema="present")], r"labels.jsonl:1: findings has no label .*Edema"),
        ([row("s0", Edema="present")] * 2, r"labels.jsonl:2: study 's0' comes twice"),
        ([row("s3", Edema="present")], r"no label can be used \(1 of held-out studies\); label studies of split train"),
        ([], r"no label can be used \(it holds no row\)"),
    ],
)
def test_what_is_wrong_is_named(write, rows, complaint):
    with pytest.raises(UserError, match=complaint):
        read_labels(write(*rows), STUDIES)


def test_all_wrong_rows_are_told_at_once(write):
    with pytest.raises(UserError, match="2 problems"):
        read_labels(write([], row("s0", Edema="yes"), row("s1", Edema="absent")), STUDIES)
