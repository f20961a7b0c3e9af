import csv
import gzip
import json
import math
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import cxr_max
from data.cxr_columns import TEACHERS, film_of, find_columns, teacher_name
from data.cxr_labels import Stated, labels_of
from data.cxr_max import build, main
from data.cxr_source import hub_splits, open_source
from data.cxr_store import temporary_store
from data.errors import UserError
from data.mimic_cxr import PROMPT
from data.records import check_studies, read_studies
from data.rows import write_rows
from tests.data import mimic_tree as tree

STUDIES = (59999991, 59999993, 59999995)
FILM = {59999991: 3, 59999993: 5, 59999995: 7}
REFUSAL = "As an AI, I'm not capable of interpreting medical images."
GIVEN = {59999991: ["Atelectasis", "Pleural Effusion"], 59999993: ["Edema"], 59999995: ["No Finding"]}


@pytest.fixture
def root(tmp_path):
    return tree.make(tmp_path / "mimic")


@pytest.fixture
def clone(tmp_path):
    (tmp_path / "clone").mkdir()
    return tmp_path / "clone"


def text(study, teacher):
    return REFUSAL if teacher == "Moonshot-v1" else f"{teacher} on {study % 100}: small left pleural effusion."


def rows(studies=STUDIES, teachers=TEACHERS, **columns):
    """One row a (study, teacher); `columns` renames: image="dicom_id"."""
    name = {"teacher": "teacher", "text": "text", "image": "image", "labels": "labels"} | columns
    return [
        {
            name["image"]: tree.path(FILM[study]),
            name["teacher"]: teacher,
            name["text"]: text(study, teacher),
            name["labels"]: GIVEN[study],
        }
        for teacher in teachers
        for study in studies
    ]


def wide_rows():
    return [
        {"study_id": study, "diagnosis": ", ".join(GIVEN[study])}
        | {teacher: text(study, teacher) for teacher in TEACHERS}
        for study in STUDIES
    ]


def write(file, made):
    name = file.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(made), file)
        return file
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "wt", encoding="utf-8", newline="") as out:
        if name.endswith("l"):
            out.writelines(json.dumps(row) + "\n" for row in made)
        elif name.endswith("json"):
            json.dump(made, out, indent=1)
        else:
            table = csv.DictWriter(out, list(made[0]), delimiter="\t" if name.endswith("tsv") else ",")
            table.writeheader()
            table.writerows(made)
    return file


def load(source, root, **options):
    out = root.parent / "studies.jsonl"
    counts = build(str(source), root, out, **options)
    return counts, {study["id"]: study for study in read_studies(out)}


def refusal(call, *arguments, **options):
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def check_all(counts, studies, teachers=TEACHERS):
    assert list(studies) == [f"s{study}" for study in STUDIES]
    for study in STUDIES:
        record = studies[f"s{study}"]
        assert record["images"] == [tree.path(FILM[study])]
        assert {one["teacher"]: one["text"] for one in record["trajectories"]} == {
            teacher: text(study, teacher) for teacher in teachers
        }
        assert record["findings"] == {label: {"state": "present"} for label in GIVEN[study]}
        assert record["prompt"] == PROMPT and record["source"] == "mimic-cxr"
    assert [studies[f"s{study}"]["split"] for study in STUDIES] == ["train", "train", "test"]
    assert counts["trajectories"] == {"ok": 18, "refused": 3} and counts["per_study"] == {6: 3}
    assert "Moonshot-v1" not in counts["teachers"]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json", "csv", "tsv", "csv.gz", "parquet"])
def test_one_row_a_teacher_in_every_format(root, clone, ending):
    write(clone / f"train.{ending}", rows())
    check_all(*load(clone, root))
    assert check_studies(root.parent / "studies.jsonl", image_root=root, decode=True)["studies"] == 3


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_a_column_a_teacher(root, clone, ending):
    write(clone / f"data.{ending}", wide_rows())
    check_all(*load(clone / f"data.{ending}", root))


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_what_a_column_beside_a_teachers_text_tells(root, clone, ending, capsys):
    made = []
    for row in wide_rows():
        beside = {f"{name}_finish_reason": "length" if name == "Grok-4" else "stop" for name in TEACHERS}
        made.append(row | beside | {"grok_4_tokens": "812"})
    write(clone / f"data.{ending}", made)
    counts, studies = load(clone, root)
    assert sorted(counts["teachers"]) == sorted({*TEACHERS} - {"Moonshot-v1", "Grok-4"})
    for record in studies.values():
        status = {one["teacher"]: one["status"] for one in record["trajectories"]}
        assert status == dict.fromkeys(TEACHERS, "ok") | {"Moonshot-v1": "refused", "Grok-4": "truncated"}
    assert list(counts["unread"]) == ["grok_4_tokens"]
    assert "columns of a teacher that hold no text, not read: grok_4_tokens" in cxr_max.describe(counts, "out")


def test_a_finish_reason_beside_a_longer_name(root, clone):
    made = [{"study_id": s, "gpt5nano_findings": text(s, "a"), "Grok-4_response": text(s, "b")} for s in STUDIES]
    made = [row | {"Grok-4_finish_reason": "length"} for row in made]
    write(clone / "data.jsonl", made)
    counts, _ = load(clone, root)
    assert counts["trajectories"] == {"ok": 3, "truncated": 3} and not counts["unread"]


def test_columns_that_only_later_rows_have(root, clone, monkeypatch):
    monkeypatch.setattr("data.cxr_fill.PEEK", 1)
    made = wide_rows()
    late, labels = made[0].pop("Moonshot-v1"), made[0].pop("diagnosis")
    assert late and labels
    write(clone / "data.jsonl", made)
    counts, studies = load(clone, root)
    assert counts["trajectories"] == {"ok": 18, "refused": 2} and counts["labelled"] == 2
    assert "findings" not in studies[f"s{STUDIES[0]}"]


def test_a_later_column_that_changes_what_was_read_is_refused(root, clone, monkeypatch):
    monkeypatch.setattr("data.cxr_fill.PEEK", 1)
    made = rows()
    made[4]["trajectory"] = "Another text."  # before "text" in the order of guesses
    write(clone / "data.jsonl", made)
    assert "data.jsonl:5: has a column that the rows before it lack" in refusal(load, clone, root)
    made = [{"study_id": s, "trajectories": {name: text(s, name) for name in TEACHERS}} for s in STUDIES]
    made[2]["trajectory"] = "Another text."  # a text of nobody, by which no column could be told
    write(clone / "data.jsonl", made)
    assert "data.jsonl:3: has a column that the rows before it lack" in refusal(load, clone, root)


@pytest.mark.parametrize("write_list", [json.dumps, repr])
def test_a_conversation_in_a_cell_of_plain_text(root, clone, write_list):
    made = rows()
    for row in made:
        turns = [{"role": "user", "content": "Read it."}, {"role": "assistant", "content": row.pop("text")}]
        row["messages"] = write_list(turns)
    write(clone / "data.csv", made)
    check_all(*load(clone, root))


def test_values_in_the_place_of_a_header_are_not_shown(root, clone):
    (clone / "data.csv").write_text("s59999991,Jane Roe has a mass. Told today,56 M\ns59999993,No edema.,7 F\n")
    message = refusal(load, clone, root)
    assert "columns found: 3, which look like values: is the header missing?" in message and "Roe" not in message
    (clone / "data.csv").write_text("1st_reader,Is it abnormal?,study_id\na,b,59999991\n")
    assert "columns found: 1st_reader, Is it abnormal?, study_id;" in refusal(load, clone, root)


@pytest.mark.parametrize(
    "names",
    [
        {"teacher": "Model", "text": "Response", "image": "DICOM_ID", "labels": "Diagnoses"},
        {"teacher": "source", "text": "answer", "image": "image-path", "labels": "findings"},
        {"teacher": "Model Name", "text": "reasoning_trajectory", "image": "id", "labels": "disease"},
    ],
)
def test_names_are_guessed_without_case_and_punctuation(root, clone, names):
    write(clone / "a.jsonl", rows(**names))
    check_all(*load(clone, root))


def test_a_source_column_that_names_the_data_set_is_no_teacher(root, clone):
    write(clone / "a.jsonl", [row | {"source": "mimic-cxr"} for row in rows(teacher="who")])
    message = refusal(load, clone, root)
    assert "columns found: image, who, text, labels, source; no column for: teacher" in message
    assert "--columns teacher=model,text=response" in message
    check_all(*load(clone, root, columns="teacher=WHO"))


def test_told_columns(root, clone):
    made = rows(teacher="a", text="b", image="c", labels="d")
    write(clone / "a.jsonl", [row | {"ask": f"Why {n % 3}?", "side": "valid"} for n, row in enumerate(made)])
    message = refusal(load, clone, root)
    assert "columns found: c, a, b, d, ask, side; no column for: image (or dicom, study), text" in message
    counts, studies = load(clone, root, columns="teacher=a, text=b,image=c,labels=d,prompt=ask,split=side")
    assert studies["s59999993"]["prompt"] == "<image>Why 1?" and counts["splits"] == {"validate": 3}
    assert "no column 'z' for text; columns found: c, a, b" in refusal(load, clone, root, columns="text=z")
    assert "no field 'texts'; did you mean 'text'?" in refusal(load, clone, root, columns="texts=b")
    assert "'b' is not FIELD=COLUMN" in refusal(load, clone, root, columns="b")


def test_told_columns_a_teacher_each(root, clone):
    made = [{"film": tree.path(3), "one": "Left effusion.", "two": "", "three": None}]
    write(clone / "a.jsonl", made)
    counts, studies = load(clone, root, columns="text=one+two+three,image=film")
    assert studies["s59999991"]["trajectories"] == [
        {"teacher": "one", "text": "Left effusion.", "status": "ok"},
        {"teacher": "two", "text": "", "status": "empty"},
    ]
    assert counts["no_text"] == 1  # a null is no trajectory, and is counted


@pytest.mark.parametrize("shape", ["object", "objects", "list"])
def test_all_teachers_in_one_column(root, clone, shape):
    made = []
    for study in STUDIES:
        texts = {teacher: text(study, teacher) for teacher in TEACHERS}
        if shape == "objects":
            texts = {teacher: {"response": one, "tokens": 5} for teacher, one in texts.items()}
        if shape == "list":
            texts = [{"model": teacher, "content": one} for teacher, one in texts.items()]
        made.append({"image": tree.path(FILM[study]), "labels": GIVEN[study], "trajectories": texts})
    write(clone / "a.json", made)
    check_all(*load(clone, root))


@pytest.mark.parametrize("shape", ["row", "object", "list"])
def test_finish_reasons_in_every_shape(root, clone, shape):
    said = {"Grok-4": "length", "GLM-4.5V": "sensitive", "GPT-5-nano": "next_year", "Qwen-VL-Max": "STOP"}
    study, one = {"image": tree.path(3)}, {"text": "There is a mod"}
    if shape == "row":
        made = [study | one | {"model": teacher, "stop_reason": reason} for teacher, reason in said.items()]
    elif shape == "object":
        texts = {teacher: one | {"finish_reason": reason} for teacher, reason in said.items()}
        made = [study | {"trajectories": texts, "finish_reason": "stop"}]
    else:
        made = [study | {"trajectories": [one | {"model": key, "finishReason": said[key]} for key in said]}]
    write(clone / "a.jsonl", made)
    counts, studies = load(clone, root)
    found = {one["teacher"]: one["status"] for one in studies["s59999991"]["trajectories"]}
    assert found == dict(zip(said, ("truncated", "filtered", "truncated", "ok"), strict=True))
    shown = cxr_max.describe(counts, "o")
    assert "texts whose finish reason is not known, written as truncated: 1 (next_year 1)" in shown


def test_json_by_study_and_by_split(root, clone):
    by_study = {f"s{row['study_id']}": {key: row[key] for key in row if key != "study_id"} for row in wide_rows()}
    (clone / "a.json").write_text(json.dumps(by_study))
    check_all(*load(clone, root))
    made = wide_rows()
    (clone / "a.json").write_text(json.dumps({"train": made[:2], "test": made[2:]}))
    check_all(*load(clone, root))
    (clone / "a.json").write_text("\n".join(map(json.dumps, made)))
    check_all(*load(clone, root))


@pytest.mark.parametrize("name", ["{}.jsonl", "{}/train.jsonl"])
def test_conversations_in_a_file_or_folder_a_teacher(root, clone, name):
    for teacher in TEACHERS:
        made = [
            {
                "images": [{"path": "/elsewhere/" + tree.path(FILM[study]), "bytes": None}],
                "labels": GIVEN[study],
                "messages": [
                    {"role": "user", "content": "<image>Describe."},
                    {"role": "assistant", "content": text(study, teacher)},
                ],
            }
            for study in STUDIES
        ]
        file = clone / name.format(teacher.lower().replace(" ", "_"))
        file.parent.mkdir(exist_ok=True)
        write(file, made)
    check_all(*load(clone, root))


def test_label_columns(root, clone):
    made = [row | {"Edema": "0.0", "Atelectasis": 1, "Pneumonia": -1.0, "Lung Opacity": float("nan")} for row in rows()]
    for row in made:
        del row["labels"]
        row |= dict.fromkeys(set(tree.LABELS) - set(row), "")
    write(clone / "a.csv", made)
    _, studies = load(clone, root)
    states = {"Edema": "absent", "Atelectasis": "present", "Pneumonia": "uncertain"}
    assert studies["s59999991"]["findings"] == {label: {"state": state} for label, state in states.items()}


def test_label_columns_are_taken_before_a_report_beside_them():
    row = {"study_id": 59999991, "model": "a", "text": "b", "findings": "No edema. Heart size is normal."}
    blank = dict.fromkeys(tree.LABELS, math.nan)
    filled = blank | {"Edema": 1.0, "Fracture": 0.0}
    states = {"Edema": {"state": "present"}, "Fracture": {"state": "absent"}}
    by_label = find_columns("a", [row | blank, row | filled], {})
    assert labels_of(row | filled, by_label) == Stated(states)
    told = find_columns("a", [row | filled], {"labels": "findings"})
    assert (told.labels, told.label_columns) == ("findings", {})
    assert find_columns("a", [row | blank], {}).labels == "findings"


def test_files_may_have_label_columns_of_their_own(root, clone):
    """Equal values in the columns of other labels: what one file says is not read as what another said."""
    for name, study, labels in (
        ("a.csv", 59999991, ("Edema", "Fracture")),
        ("b.csv", 59999993, ("Pneumonia", "Edema")),
    ):
        row = {"study_id": study, "teacher": "a", "text": "Clear.", labels[0]: "1.0", labels[1]: "0.0"}
        write(clone / name, [row | {label: "" for label in tree.LABELS if label not in row}])
    _, studies = load(clone, root)
    present = {
        name: [k for k, v in one["findings"].items() if v["state"] == "present"] for name, one in studies.items()
    }
    assert (present["s59999991"], present["s59999993"]) == (["Edema"], ["Pneumonia"])


def test_labels_and_reports_of_mimic_cxr(root, clone):
    write(clone / "a.jsonl", rows())
    _, studies = load(clone, root, labels="chexpert", reports=root / "mimic-cxr-reports.zip")
    assert studies["s59999991"]["findings"]["Edema"] == {"state": "uncertain"}
    assert studies["s59999991"]["report"].startswith("FINDINGS: Left basal") and "report" not in studies["s59999993"]
    _, studies = load(clone, root, labels="none")
    assert "findings" not in studies["s59999991"]


def test_unknown_diagnoses_are_counted(root, clone):
    given = [
        "edema and airspace opacity",
        ["Edema", "airspace opacity", "Gout"],
        "No consolidation, edema, or effusion.",
    ]
    made = [row | {"labels": labels} for row, labels in zip(rows(teachers=["a"]), given, strict=True)]
    write(clone / "a.jsonl", made)
    counts, studies = load(clone, root)
    both = {label: {"state": "present"} for label in ("Edema", "Lung Opacity")}
    assert [study.get("findings") for study in studies.values()] == [both, both, None]
    assert (counts["unknown_labels"], counts["no_list"], counts["no_known_label"]) == (1, 1, 1)
    shown = cxr_max.describe(counts, "o")
    assert "diagnoses that are a text and no list of the 14 labels, left out (a JSON list may hold others): 1" in shown


@pytest.mark.parametrize(
    ("labels", "findings"),
    [
        ([], {}),
        ("[]", {}),
        (" [ ] ", {}),
        ("['']", {}),
        ({}, {}),
        (None, None),
        ("", None),
        ("-", None),
        (float("nan"), None),
        ({"Edema": None}, None),
        (["Gout"], None),
        ("Gout", None),
        ("['Gout']", None),
        ({"Gout": 1}, None),
        (["Edema", "Gout"], {"Edema": {"state": "present"}}),
        ("['Edema']", {"Edema": {"state": "present"}}),
    ],
)
def test_an_empty_list_is_a_normal_film_and_null_is_no_label(labels, findings):
    columns = find_columns("a", [{"study": 59999991, "model": "a", "text": "b", "labels": labels}], {})
    stated = labels_of({"labels": labels}, columns)
    assert stated == (findings, "Gout" in str(labels) and labels != "Gout", labels == "Gout")


EDEMA = {"Edema": {"state": "present"}}


@pytest.mark.parametrize(
    ("labels", "stated"),
    [
        ("No focal consolidation, pneumonia, or pneumothorax.", Stated(None, no_list=True)),
        ("[No focal consolidation, pneumonia, or pneumothorax.]", Stated(None, no_list=True)),
        ('["No focal consolidation, pneumonia, or pneumothorax."]', Stated(None, unknown=1)),
        ("edema; Gout", Stated(None, no_list=True)),
        ('["Edema", "Gout"]', Stated(EDEMA, unknown=1)),
        ("['Edema', 'Gout']", Stated(EDEMA, unknown=1)),
        ("[Edema]", Stated(EDEMA)),
        ("edema.", Stated(EDEMA)),
        ("edema and pneumonia | Fracture", Stated(EDEMA | dict.fromkeys(("Pneumonia", "Fracture"), EDEMA["Edema"]))),
    ],
)
def test_a_text_is_a_list_of_labels_only_where_every_piece_is_one(labels, stated):
    columns = find_columns("a", [{"study": 59999991, "model": "a", "text": "b", "labels": labels}], {})
    assert labels_of({"labels": labels}, columns) == stated


def test_label_columns_that_are_all_blank_state_nothing():
    row = {"study": 59999991, "model": "a", "text": "b"} | dict.fromkeys(tree.LABELS, "")
    assert labels_of(row, find_columns("a", [row], {})) == Stated(None)


def test_normal_films_keep_their_label(root, clone):
    given = {59999991: [], 59999993: ["Gout"], 59999995: None}
    made = [row | {"labels": given[study]} for row, study in zip(rows(teachers=["a"]), STUDIES, strict=True)]
    write(clone / "a.jsonl", made)
    counts, studies = load(clone, root)
    assert [study.get("findings") for study in studies.values()] == [{}, None, None]
    assert (counts["labelled"], counts["no_known_label"], counts["unknown_labels"]) == (1, 1, 1)
    said = cxr_max.describe(counts, "out")
    assert "with labels 1," in said
    assert "studies whose diagnoses name none of the 14 labels or are no list, written without labels: 1" in said


def test_a_study_is_normal_only_where_no_row_says_otherwise(root, clone):
    stated = {"59999991": ([], ["Edema"]), "59999993": ([], ["Gout"]), "59999995": (None, [])}
    made = [
        {"study_id": study, "model": f"teacher {n}", "response": "Clear.", "labels": labels}
        for study, both in stated.items()
        for n, labels in enumerate(both)
    ]
    write(clone / "a.jsonl", made)
    _, studies = load(clone, root)
    assert [study.get("findings") for study in studies.values()] == [{"Edema": {"state": "present"}}, None, {}]


def test_the_film_that_is_named_or_else_the_frontal_one(root, clone):
    made = [{"dicom_id": tree.dicom(1), "teacher": "a", "text": "Clear."}]
    made.append({"dicom_id": tree.dicom(7).upper(), "teacher": "a", "text": "Clear."})
    write(clone / "a.jsonl", made)
    counts, studies = load(clone, root)
    assert studies["s59999991"]["images"] == [tree.path(1)] and studies["s59999991"]["view"] is None
    assert studies["s59999995"]["images"] == [tree.path(7)]
    made = [{"study_id": study, "teacher": "a", "text": "Clear."} for study in ("s59999991", 59999994, "59999999")]
    write(clone / "a.jsonl", made)
    counts, studies = load(clone, root)
    assert studies["s59999991"]["images"] == [tree.path(3)] and len(studies) == 1
    assert counts["set_aside"] == {"no frontal film": 1, "not in the metadata table": 1}


def test_films_unknown_and_of_another_study(root, clone):
    made = [
        {"study": 59999991, "dicom_id": tree.dicom(7), "teacher": "a", "text": "Clear."},
        {"study": None, "dicom_id": tree.dicom(99), "teacher": "a", "text": "Clear."},
        {"study": None, "dicom_id": None, "teacher": "a", "text": "Clear."},
        {"study": 59999993, "dicom_id": tree.dicom(5), "teacher": "a", "text": "Clear."},
    ]
    write(clone / "a.jsonl", made)
    counts, studies = load(clone, root)
    assert list(studies) == ["s59999993"] and counts["set_aside"] == {"named film not in the study": 1}
    assert (counts["unknown_films"], counts["no_film"]) == (1, 1)


def test_missing_films_are_counted_and_named_by_study(tmp_path, clone, capsys, monkeypatch):
    root = tree.make(tmp_path / "m", missing=(5,))
    write(clone / "a.jsonl", rows())
    out = tmp_path / "o.jsonl"
    monkeypatch.setattr(sys, "argv", ["x", "--source", str(clone), "--images", str(root), "--out", str(out)])
    main()
    shown = "".join(capsys.readouterr())
    assert "set aside: film missing 1" in shown and "film missing, first 1: s59999993" in shown
    assert "2 studies (test 1, train 1), 14 trajectories" in shown and "ok 12, refused 2" in shown
    assert "10999991" not in shown and "effusion" not in shown
    # Nothing is left beside the output.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clone", "m", "o.jsonl"]


def test_limit_counts_studies_that_can_be_written(tmp_path, clone):
    root = tree.make(tmp_path / "m", missing=(3,))
    for n, teacher in enumerate(TEACHERS):
        write(clone / f"{n}.jsonl", rows(teachers=[teacher]))
    counts, studies = load(clone, root, limit=1)
    assert list(studies) == ["s59999993"] and len(studies["s59999993"]["trajectories"]) == 7
    assert counts["rows"] == 14 and counts["set_aside"] == {"film missing": 1}


def test_the_same_text_again_is_counted_another_text_is_refused(root, clone):
    made = rows(teachers=["a"])
    write(clone / "a.jsonl", made + made[:1])
    counts, studies = load(clone, root)
    assert counts["repeated"] == 1 and len(studies["s59999991"]["trajectories"]) == 1
    write(clone / "a.jsonl", [*made, made[0] | {"text": "private words"}])
    message = refusal(load, clone, root)
    assert "a.jsonl:4: study s59999991: another text of teacher 'a' stands in" in message and "private" not in message
    counts, studies = load(clone, root, on_duplicate="first")
    assert counts["duplicates"] == 1 and studies["s59999991"]["trajectories"][0]["text"] == made[0]["text"]


def test_other_files_of_the_clone(root, clone):
    write(clone / "a.jsonl", rows())
    write(clone / "films.csv", [{"image": tree.path(3), "width": 8}])
    (clone / ".git").mkdir()
    (clone / ".git" / "x.json").write_text("{")
    (clone / "dataset_infos.json").write_text("{}")
    (clone / "README.md").write_text("# CXR-MAX")
    counts, studies = load(clone, root)
    check_all(counts, studies)
    assert counts["left_out"] == [str(clone / "films.csv")]
    (clone / "a.jsonl").unlink()
    assert "columns found: image, width; no column for: text" in refusal(load, clone, root)


def test_the_hub_by_the_real_loader(root, clone, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write(clone / "train.jsonl", rows(studies=STUDIES[:2]))
    write(clone / "test.jsonl", rows(studies=STUDIES[2:]))
    for streaming in (False, True):
        opened = hub_splits(str(clone), streaming=streaming)
        assert sorted(name for name, _ in opened) == [f"{clone}[test]", f"{clone}[train]"]
        monkeypatch.setattr("data.cxr_max.open_source", lambda source, opened=opened, **_: opened)
        check_all(*load("owner/name", root))


def test_the_hub_out_of_reach(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = refusal(open_source, "MiaoMiaoYang/CXR-MAX")
    assert "cannot be loaded from the Hub (ConnectionError: Couldn't reach" in message and "clone it" in message


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.jsonl", b'{"image": 1}\n{"image"\n', "a.jsonl:2: not JSON"),
        ("a.json", b'[{"image": 1}, {"image": ', "a.json:2: not JSON"),
        ("a.json", b"[1]", "a.json:1: is no object"),
        ("a.json", b'[{"n": 1}]\n{"n": 2}\n', "a.json: after row 1: something stands behind the end of the array"),
        ("a.json", b'[{"n": 1}], [{"n": 2}]', "a.json: after row 1: something stands behind the end of the array"),
        ("a.json", b'[{"n": 1}][{"n": 2}', "a.json:3: not JSON"),
        ("a.jsonl", b'{"text": "tea"}\n{"text": "caf\xe9"}\n', "a.jsonl:2: not UTF-8"),
        ("a.csv.gz", gzip.compress(b"image,text\n1,tea\n2,caf\xe9\n", mtime=0), "a.csv.gz:3: not UTF-8"),
        ("a.csv", b"image,teacher,text\n1,2\n", "a.csv:2: not as many values as columns"),
        ("a.parquet", b"PAR1 and no more", "a.parquet: not a Parquet file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "long enough"}\n' * 9, mtime=0)[:-12], "cut off or damaged"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "long enough"}\n' * 9, mtime=0)[:12] + b"\xff" * 40,
            "cut off or damaged",
        ),
        ("a.jsonl", b'{"text": "x"}\n' + b"[" * 100_000 + b"\n", "a.jsonl: after row 1: nested too deeply"),
        (
            "a.json",
            b'[{"text": ' + b"1" * 5_000 + b"}]",
            "a.json: after row 0: nested too deeply, or a number too long",
        ),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("a.jsonl", b"", "columns found: none"),
        ("a.xlsx", b"", "holds no file of a known kind"),
        ("a.jsonl", b'{"image": "1.png", "teacher": "a", "text": "b"}\n', "no column for: image (or dicom, study)"),
        (
            "a.jsonl",
            b'{"study_id": 59999991, "teacher": "a", "text": 5}\n',
            "a.jsonl:1: text of teacher 'a' is no text",
        ),
        ("a.jsonl", b'{"study_id": 59999991, "teacher": "", "text": "b"}\n', "a.jsonl:1: names no teacher"),
        ("a.jsonl", b'{"study_id": 59999991, "teacher": ["a"], "text": "b"}\n', "a.jsonl:1: names no teacher"),
        (
            "a.jsonl",
            b'{"study_id": 59999991, "teacher": "\\ud800", "text": "b"}\n',
            "a.jsonl:1: a teacher's name holds",
        ),
        (
            "a.jsonl",
            b'{"study_id": 59999991, "trajectories": [{"teacher": ["a"], "text": "b"}]}\n',
            "do not name teacher and text",
        ),
    ],
)
def test_bad_sources(root, clone, name, content, what):
    (clone / name).write_bytes(content)
    assert what in refusal(load, clone, root)
    assert not (root.parent / "studies.jsonl").exists()


@pytest.mark.parametrize("name", ["a.csv", "new.jsonl", "mimic-cxr-2.0.0-split.csv.gz", "mimic-cxr-reports.zip"])
def test_out_is_not_among_what_is_read(root, clone, name):
    write(clone / "a.csv", rows())
    out = root / name if name.startswith("mimic") else clone / name
    before = out.read_bytes() if out.exists() else None
    assert "choose another" in refusal(build, str(clone), root, out, reports=root / "mimic-cxr-reports.zip")
    assert (out.read_bytes() if out.exists() else None) == before


def test_no_such_source(root, tmp_path):
    assert "no such file or folder, and no Hub id" in refusal(load, tmp_path / "nowhere", root)


def test_a_told_column_without_ids_is_refused(root, clone):
    write(clone / "a.jsonl", [{"image": "1.png", "teacher": "a", "text": "b"}])
    assert "none of 1 rows names a study" in refusal(load, clone, root, columns="image=image")


def test_a_column_of_nulls_is_no_text(root, clone):
    write(clone / "a.jsonl", [row | {"text": None, "answer": "No edema."} for row in rows()])
    assert "none of 21 rows has a text (null for every teacher); name the column" in refusal(load, clone, root)
    assert load(clone, root, columns="text=answer")[0]["studies"] == 3


def test_a_study_in_several_told_splits_is_refused(root, clone):
    sides = [None, "train", "train", "val", "train", "val", "test"]
    made = [row | {"side": side} for row, side in zip(rows(studies=STUDIES[:1]), sides, strict=True)]
    write(clone / "a.jsonl", made)
    message = refusal(load, clone, root, columns="split=side")
    place = f"{clone / 'a.jsonl'}:"
    assert f"{place}4: study s59999991 is in train ({place}2) and in validate; name one split for it" in message
    assert f"{place}7: study s59999991 is in train ({place}2) and in test" in message and "2 problems" in message
    assert not (root.parent / "studies.jsonl").exists()
    write(clone / "a.jsonl", made[:3])
    assert load(clone, root, columns="split=side")[0]["splits"] == {"train": 1}


def test_a_patient_in_several_told_splits_is_counted(root, clone):
    write(clone / "a.jsonl", [row | {"side": ["train", "val", "test"][n % 3]} for n, row in enumerate(rows())])
    counts, _ = load(clone, root, columns="split=side")  # the first two studies are of one patient
    assert counts["split_patients"] == 1 and "patients in several splits" in cxr_max.describe(counts, "o")
    assert "several splits" not in cxr_max.describe(load(clone, root)[0], "o")


@pytest.mark.parametrize("between", [None, "", "\n\n", " " * 30])
def test_arrays_larger_than_what_is_read_at_once(clone, monkeypatch, between):
    """One array, or several with nothing but blanks between."""
    monkeypatch.setattr("data.cxr_source.BLOCK", 7)
    made = [{"n": n, "text": "é]},{" * (n % 9)} for n in range(40)]
    parts = [made] if between is None else [made[:9], [], made[9:30], made[30:]]
    text = (between or "").join(json.dumps(part, ensure_ascii=False) for part in parts)
    (clone / "a.json").write_text(text + (between or ""), encoding="utf-8")
    ((_, read),) = open_source(str(clone))
    assert [row for _, row in read()] == made


@pytest.mark.parametrize(
    ("value", "film"),
    [
        ("files/p10/p10999991/s59999991/" + tree.dicom(3) + ".jpg", (59999991, tree.dicom(3))),
        ("D:\\mimic\\s59999991\\" + tree.dicom(3).upper() + ".JPG", (59999991, tree.dicom(3))),
        (59999991, (59999991, None)),
        ("59999991.0", (59999991, None)),
        (59999991.0, (59999991, None)),
        ("p10999991_s59999991", (59999991, None)),
        ([{"path": tree.dicom(3)}], (None, tree.dicom(3))),
        ("50000000-0a1b2c3d-11223344-deadbeef-50000001", (None, "50000000-0a1b2c3d-11223344-deadbeef-50000001")),
        ("159999991", (None, None)),
        ("12.png", (None, None)),
        (None, (None, None)),
        ([], (None, None)),
    ],
)
def test_film_of(value, film):
    assert film_of(value) == film


@pytest.mark.parametrize(
    ("name", "teacher"),
    [
        *((teacher, teacher) for teacher in TEACHERS),
        ("gpt5nano_response", "GPT-5-nano"),
        ("gpt-5-nano-2025-08-07", "GPT-5-nano"),
        ("GPT5NanoResponse", "GPT-5-nano"),
        ("claude_sonnet_4", "Claude Sonnet-4"),
        ("anthropic/claude-sonnet-4@20250514", "Claude Sonnet-4"),
        ("grok_4_0709_reasoning_trajectory", "Grok-4"),
        ("grok-4-latest", "Grok-4"),
        ("response_grok4", "Grok-4"),
        ("glm-4.5v_train", "GLM-4.5V"),
        ("grok_4-00000-of-00002", "Grok-4"),
        ("qwen-vl-max-2025-08-13", "Qwen-VL-Max"),
        ("moonshot-v1-32k-vision-preview", "Moonshot-v1"),
        *((name, name) for name in ("claude-sonnet-4-5", "claude-sonnet-4-5-20250929", "Claude Sonnet 4.5")),
        *(
            (name, name)
            for name in ("grok-4.20", "grok-4-fast", "grok-4-1-fast-reasoning", "grok-4_thinking", "grok-42")
        ),
        *((name, name) for name in ("gpt-4o", "gpt-5-nano-high", "claude-sonnet-4 and grok-4", "gpt-5-nano-text-2")),
        (" my  model ", "my model"),
    ],
)
def test_teacher_names(name, teacher):
    assert teacher_name(name) == teacher


def test_the_published_case(root, clone):
    case = Path(__file__).resolve().parents[3] / "shared/data/cxr_max_case/trajectories.jsonl"
    if not case.exists():
        pytest.skip(f"{case} is not here")
    made = [json.loads(line) | {"image": tree.path(3)} for line in case.read_text(encoding="utf-8").splitlines()]
    write(clone / "a.jsonl", made)
    counts, studies = load(clone, root)
    assert counts["trajectories"] == {"ok": 6, "refused": 1} and "Moonshot-v1" not in counts["teachers"]
    assert [one["teacher"] for one in studies["s59999991"]["trajectories"]] == [row["teacher"] for row in made]
    assert set(studies["s59999991"]["findings"]) == {"Atelectasis", "Pleural Effusion"}


def test_from_clone_to_rows(root, clone):
    write(clone / "a.jsonl", rows())
    load(clone, root)
    counts = write_rows("sft", root.parent / "studies.jsonl", clone / "rows.jsonl", split="train", image_root=root)
    assert counts["rows"] == 12 and counts["trajectories"] == {"ok": 12, "refused": 2}


def test_texts_are_sorted_on_the_disk_chosen_for_them(tmp_path):
    def files():
        fds = [os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
        return [os.readlink(fd) for fd in fds if os.path.lexists(fd)]

    with temporary_store(tmp_path / "it's here" / "out.jsonl") as store:
        store.execute("PRAGMA cache_size = -100")
        rows = ((str(number % 977), "x" * 300) for number in range(30_000))
        store.executemany("INSERT INTO texts (teacher, text) VALUES (?, ?)", rows)
        sorting = store.execute("SELECT teacher, text FROM texts ORDER BY text, teacher")
        next(sorting)
        spilled = [name for name in files() if "etilqs_" in name]
        assert spilled and all(name.startswith(str(tmp_path)) for name in spilled)
        sorting.close()
    assert os.listdir(tmp_path / "it's here") == []


def test_of_several_films_the_first_that_is_named_is_shown(root, clone):
    made = [{"dicom_id": tree.dicom(n), "teacher": f"t{n}", "text": "Clear."} for n in (1, 3)]
    write(clone / "a.jsonl", made)
    counts, studies = load(clone, root)
    assert studies["s59999991"]["images"] == [tree.path(1)] and counts["several_films"] == 1
    write(clone / "a.jsonl", made[:1])
    assert load(clone, root)[0]["several_films"] == 0


def test_a_blank_of_pandas_is_no_text_and_rows_keep_their_order(root, clone):
    made = [{"study": 59999991, "teacher": name, "text": "Clear."} for name in ("zeta", "alpha")]
    (clone / "a.json").write_text(json.dumps([*made, {"study": 59999991, "teacher": "none", "text": float("nan")}]))
    counts, studies = load(clone, root)
    assert [one["teacher"] for one in studies["s59999991"]["trajectories"]] == ["zeta", "alpha"]
    assert counts["no_text"] == 1
