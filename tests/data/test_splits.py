import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UserError
from data.records import read_studies, write_studies
from data.splits import assign, check_splits, main, split_file


def study(id, patient, split="train", image=None):
    return {
        "id": id,
        "patient": patient,
        "source": "phantom",
        "split": split,
        "images": [image or f"{id}.png"],
        "prompt": "<image>",
        "trajectories": [],
    }


def cohort(path, patients=50):
    """Patient n has n % 3 + 1 studies, which do not stand together."""
    rows = [study(f"s{visit}-{n}", f"p{n}") for visit in range(3) for n in range(patients) if visit <= n % 3]
    write_studies(path, rows)
    return rows


def refusal(call, *arguments, **options):
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def test_all_studies_of_a_patient_on_one_side(tmp_path):
    rows = cohort(tmp_path / "s.jsonl")
    counts = split_file(tmp_path / "s.jsonl", tmp_path / "o.jsonl", validate=0.1, test=0.2)
    assert counts["patients"] == {"train": 35, "validate": 5, "test": 10}
    written = list(read_studies(tmp_path / "o.jsonl"))
    assert [one | {"split": "train"} for one in written] == rows
    sides = {(one["patient"], one["split"]) for one in written}
    assert len(sides) == 50 and sum(counts["studies"].values()) == len(rows)


@given(
    sizes=st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 9), min_size=3),
    parts=st.tuples(st.floats(0, 0.4), st.floats(0, 0.4)),
    seed=st.integers(0, 99),
)
def test_every_patient_has_one_split_whatever_the_order(sizes, parts, seed):
    options = {"validate": parts[0], "test": parts[1], "seed": seed}
    try:
        splits = assign(sizes, **options)
    except UserError as error:
        assert "too few" in str(error)
        return
    assert set(splits) == set(sizes) and "train" in splits.values()
    assert ("test" in splits.values()) == (parts[1] > 0) and ("validate" in splits.values()) == (parts[0] > 0)
    assert assign(dict(reversed(sizes.items())), **options) == splits


def test_seed_and_parts_of_the_studies():
    sizes = {f"p{n}": 1 + 9 * (n % 2) for n in range(200)}
    splits = assign(sizes, validate=0.1, test=0.2, count="studies")
    held = {side: sum(sizes[patient] for patient in sizes if splits[patient] == side) for side in ("test", "validate")}
    assert 220 <= held["test"] < 230 and 110 <= held["validate"] < 120
    assert assign(sizes, validate=0.1, test=0.2) != assign(sizes, validate=0.1, test=0.2, seed=1)


def test_a_patient_on_both_sides_is_refused_by_study(tmp_path):
    rows = [study("a", "secret"), study("b", "other", "test"), study("c", "secret", "test")]
    write_studies(tmp_path / "s.jsonl", rows)
    message = refusal(check_splits, [tmp_path / "s.jsonl"])
    assert "s.jsonl:3: study 'c' is in test, but its patient is in train with study 'a'" in message
    assert "secret" not in message


def test_sides_are_compared_over_several_files_with_films_and_ids(tmp_path):
    write_studies(tmp_path / "a.jsonl", [study("a", "p1", image="x.png")])
    write_studies(tmp_path / "b.jsonl", [study("b", "p2", "test", image="x.png"), study("a", "p3", "test")])
    message = refusal(check_splits, [tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert "2 problems" in message and "but its film is in train" in message and "but the study is in train" in message
    write_studies(tmp_path / "b.jsonl", [study("b", "p2", "test")])
    assert check_splits([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])["patients"] == {"train": 1, "test": 1}


@pytest.mark.parametrize(
    ("validate", "test", "what"),
    [
        (0.5, 0.5, "together below 1"),
        (-0.1, 0, "--validate -0.1: write a part"),
        (0, 10, "--test 10"),
        (float("nan"), 0, "--validate nan"),
        (0.4, 0.59, "none is left for train"),
    ],
)
def test_impossible_parts(validate, test, what):
    assert what in refusal(assign, {"a": 1, "b": 1}, validate=validate, test=test)


def test_the_input_is_not_replaced(tmp_path):
    """It may hold an official split."""
    cohort(tmp_path / "s.jsonl")
    before = (tmp_path / "s.jsonl").read_bytes()
    (tmp_path / "link.jsonl").symlink_to("s.jsonl")
    for out in ("s.jsonl", "link.jsonl", "../" + tmp_path.name + "/s.jsonl"):
        message = refusal(split_file, tmp_path / "s.jsonl", tmp_path / out, validate=0.1, test=0.1)
        assert message == f"--out {tmp_path / out}: is the input file; choose another"
    assert (tmp_path / "s.jsonl").read_bytes() == before


def test_command_line(tmp_path, capsys, monkeypatch):
    given, file = str(tmp_path / "given.jsonl"), str(tmp_path / "s.jsonl")
    cohort(given)
    monkeypatch.setattr(sys, "argv", ["x", given, "--out", file, "--validate", "0.02", "--test", "0.1", "--seed", "0"])
    main()
    shown = capsys.readouterr().out
    assert "of 50 patients" in shown and "validate: " in shown and "no patient on two sides" in shown
    monkeypatch.setattr(sys, "argv", ["x", file, "--check"])
    main()
    assert capsys.readouterr().out == shown
    monkeypatch.setattr(sys, "argv", ["x", given, "--out", str(tmp_path / "elsewhere/s.jsonl")])
    main()
    assert f"give later commands the same --image-root ({tmp_path} if it needed none)\n" in capsys.readouterr().out
    for wrong in (["x", file], ["x", file, "--check", "--out", file], ["x", file, file, "--out", file]):
        monkeypatch.setattr(sys, "argv", wrong)
        refusal(main)


def test_every_film_of_a_study_is_compared(tmp_path):
    films = [study("a", "p1") | {"images": ["x.png", "y.png"], "prompt": "<image><image>"}]
    write_studies(tmp_path / "s.jsonl", [*films, study("b", "p2", "test", image="y.png")])
    assert "but its film is in train with study 'a'" in refusal(check_splits, [tmp_path / "s.jsonl"])


def test_one_name_in_two_folders_is_two_films_unless_they_have_one_image_root(tmp_path, capsys, monkeypatch):
    files = [tmp_path / side / "studies.jsonl" for side in ("train", "test")]
    for file in files:
        write_studies(file, [study(file.parent.name, file.parent.name, file.parent.name, image="0001.png")])
    with_root = ["x", *map(str, files), "--check", "--image-root", str(tmp_path)]
    message = refusal(check_splits, files)
    assert f"{files[0]}: its first film {tmp_path / 'train/0001.png'} is not there" in message
    assert "give the --image-root" in message
    for file in files:
        (file.parent / "0001.png").write_bytes(file.parent.name.encode())
    assert check_splits(files)["studies"] == {"train": 1, "test": 1}
    monkeypatch.setattr(sys, "argv", with_root)
    assert "but its film is in train" in refusal(main)
    monkeypatch.setattr(sys, "argv", [*with_root[:-1], str(tmp_path / "nowhere")])
    assert "image root is not a folder" in refusal(main)


@pytest.mark.parametrize("name", ["films/./0001.png", "films//0001.png"])
def test_a_film_is_the_same_however_its_path_is_written(tmp_path, name):
    one, other = study("a", "p1", image="films/0001.png"), study("b", "p2", "test", image=name)
    write_studies(tmp_path / "s.jsonl", [one, other])
    message = refusal(check_splits, [tmp_path / "s.jsonl"])
    assert "study 'b' is in test, but its film is in train" in message and "mend the paths in images" in message


def test_nothing_is_written_where_a_film_would_be_on_two_sides(tmp_path):
    rows = [study(f"s{n}", f"p{n}", image="shared.png") for n in range(4)]
    write_studies(tmp_path / "s.jsonl", rows)
    message = refusal(split_file, tmp_path / "s.jsonl", tmp_path / "o.jsonl", validate=0, test=0.5)
    assert "s.jsonl:" in message and "give both the same patient if they are one patient's" in message
    assert "python -m data.splits" not in message
    assert not (tmp_path / "o.jsonl").exists()
