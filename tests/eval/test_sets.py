"""The labelled sets, on miniature trees and on the real tables of torchxrayvision where that is installed."""

import importlib.util
import json
import random
import shutil
import tarfile
import zlib
from collections import Counter
from pathlib import Path

import pytest

from data.errors import UserError
from eval import zeroshot
from eval.sets import chestxdet10, chexpert, nih, openi, padchest, vindr
from tests.eval import sets_tree


def load(name, root, **options):
    return zeroshot.load(name, root, options=options)


def truths(benchmark):
    """{film: labels present} and the number of labels asked about."""
    found = {}
    for item in benchmark.items:
        film, _, label = item.id.rpartition("#")
        assert label == item.truth["label"]
        found.setdefault(film, set()).update({label} if item.truth["present"] else set())
    return found


def test_chestx_ray14_is_the_test_list(tmp_path):
    benchmark = load("chestx-ray14", sets_tree.nih(tmp_path))
    assert truths(benchmark) == {
        "00000901_000.png": {"Effusion", "Mass"},
        "00000901_001.png": set(),
        "00000902_000.png": {"Pleural_Thickening"},
    }
    assert len(benchmark.items) == 3 * 14 and benchmark.kind == "yesno"
    assert [item.patient for item in benchmark.items[::14]] == ["901", "901", "902"]
    assert all(Path(item.images[0]).is_file() for item in benchmark.items)
    first = next(item for item in benchmark.items if item.truth["label"] == "Effusion")
    assert first.prompt == "Does this chest X-ray show pleural effusion? Answer yes or no."
    assert benchmark.fingerprint["rows"] == 4 and benchmark.fingerprint["films"] == 3
    assert benchmark.fingerprint["positives"]["Mass"] == 1
    assert not any("outside it" in note for note in benchmark.notes)


def test_chestx_ray14_says_when_a_patient_is_on_both_sides(tmp_path):
    benchmark = load("chestx-ray14", sets_tree.nih(tmp_path, listed=["00000901_000.png"]))
    assert "1 patients of the test list have films outside it" in benchmark.notes


@pytest.mark.parametrize(
    ("rows", "listed", "message"),
    [
        ([("a.png", "Efusion", 1, "PA")], ["a.png"], ":2: Finding Labels holds a label"),
        ([("a.png", "No Finding|Mass", 1, "PA")], ["a.png"], ":2: No Finding beside a finding"),
        ([("a.png", "Mass", 1, "PA")] * 2, ["a.png"], ":3: film a.png stands in the table already"),
        ([("a.png", "Mass", 1, "PA")], ["b.png"], "test_list.txt:1: film b.png is not in the table"),
        ([("a.png", "Mass", 1, "PA")], ["a.png", "a.png"], "test_list.txt:2: film a.png is listed twice"),
        ([("a.png", "Mass", 1, "PA")], [""], "lists no film"),
    ],
)
def test_chestx_ray14_bad_input(tmp_path, rows, listed, message):
    with pytest.raises(UserError, match=message):
        load("chestx-ray14", sets_tree.nih(tmp_path, rows, listed))


@pytest.mark.parametrize(("missing", "option"), [("Data_Entry_2017_v2020.csv", "table"), ("test_list.txt", "list")])
def test_chestx_ray14_names_the_option_of_a_missing_file(tmp_path, missing, option):
    (sets_tree.nih(tmp_path) / missing).unlink()
    with pytest.raises(UserError, match=f"no {missing}.*or name it with --set {option}=FILE$"):
        load("chestx-ray14", tmp_path)


def test_a_wrong_header_names_the_column(tmp_path):
    sets_tree.nih(tmp_path)
    table = tmp_path / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace("Finding Labels", "Findings"))
    with pytest.raises(UserError, match="no column Finding Labels"):
        load("chestx-ray14", tmp_path)


def test_open_i_labels_are_substrings_of_the_automatic_tags(tmp_path):
    benchmark = load("open-i", sets_tree.openi(tmp_path))
    assert truths(benchmark) == {
        "CXR1_1_IM-0001-3001": {"Calcified Granuloma", "Granuloma", "Effusion"},
        "CXR1_1_IM-0001-4001": {"Calcified Granuloma", "Granuloma", "Effusion"},
        "CXR2_IM-0652-1001": {"Atelectasis", "Infiltration"},
        "CXR10_IM-0002-2001": set(),
    }
    assert len(benchmark.items) == 4 * 18
    assert benchmark.items[0].patient == benchmark.items[18].patient == "CXR1"
    assert benchmark.fingerprint["images_per_report"] == {"0": 1, "1": 2, "2": 1}
    assert "1 reports without a film were left out" in benchmark.notes


def test_open_i_reads_the_published_archive_too(tmp_path):
    folder = sets_tree.openi(tmp_path / "folder")
    with tarfile.open(tmp_path / "NLMCXR_reports.tgz", "w:gz") as archive:
        archive.add(folder / "ecgen-radiology", "ecgen-radiology")
    other = load("open-i", folder, reports=str(tmp_path / "NLMCXR_reports.tgz"))
    assert other.items == load("open-i", folder).items


def test_open_i_whole_reports_have_the_published_images(tmp_path, monkeypatch):
    monkeypatch.setattr(openi, "REPORTS", 4)
    monkeypatch.setattr(openi, "IMAGES", 4)
    root = sets_tree.openi(tmp_path)
    assert len(load("open-i", root).items) == 4 * 18
    monkeypatch.setattr(openi, "IMAGES", 400)
    with pytest.raises(UserError, match="4 images in 4 reports, where the published ones have 400.*partial=yes"):
        load("open-i", root)
    assert len(load("open-i", root, partial="yes").items) == 4 * 18


@pytest.mark.parametrize("encoding", ["foo", "utf-7", "gb2312"])
def test_open_i_xml_in_an_encoding_that_cannot_be_read(tmp_path, encoding):
    root = sets_tree.openi(tmp_path)
    (root / "ecgen-radiology" / "3.xml").write_text(f'<?xml version="1.0" encoding="{encoding}"?><a/>')
    with pytest.raises(UserError, match="3.xml: not a report of Open-I"):
        load("open-i", root)


def test_open_i_folder_in_place_of_a_report(tmp_path):
    root = sets_tree.openi(tmp_path)
    (root / "ecgen-radiology" / "3.xml").mkdir()
    with pytest.raises(UserError, match="ecgen-radiology: 3.xml: cannot be read .Is a directory.; download"):
        load("open-i", root)


def test_open_i_archive_damaged_within_a_report(tmp_path):
    report = random.Random(0).randbytes(60_000)
    member = tarfile.TarInfo("ecgen-radiology/1.xml")
    member.size = len(report)
    packer = zlib.compressobj(wbits=31)  # gzip
    # What follows the flush begins with a type of block that does not exist.
    start = packer.compress(member.tobuf() + report[:50_000]) + packer.flush(zlib.Z_FULL_FLUSH)
    (tmp_path / "damaged.tgz").write_bytes(start + b"\xff" * 99)
    with pytest.raises(UserError, match="damaged.tgz: not a tar archive, or damaged .error.; download"):
        load("open-i", tmp_path, reports=str(tmp_path / "damaged.tgz"))


def test_open_i_bad_input(tmp_path):
    folder = sets_tree.openi(tmp_path) / "ecgen-radiology"
    (folder / "3.xml").write_text("<eCitation><uId")
    shutil.copy(folder / "1.xml", folder / "4.xml")
    with pytest.raises(UserError, match="3.xml: not a report of Open-I") as error:
        load("open-i", tmp_path)
    assert "4.xml: id CXR1 stands in 1.xml already" in str(error.value)
    (tmp_path / "cut.tgz").write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match="not a tar archive"):
        load("open-i", tmp_path, reports=str(tmp_path / "cut.tgz"))


def test_chexpert_scores_one_frontal_film_a_study(tmp_path):
    root = sets_tree.chexpert(tmp_path)
    fourteen, five = load("chexpert-14", root), load("chexpert-5", root)
    assert truths(fourteen)["patient90001/study1"] == {
        "Enlarged Cardiomediastinum",
        "Cardiomegaly",
        "Edema",
        "Atelectasis",
        "Support Devices",
    }
    assert truths(five)["patient90001/study1"] == {"Cardiomegaly", "Edema", "Atelectasis"}
    assert len(fourteen.items) == 3 * 14 and len(five.items) == 3 * 5
    films = [Path(item.images[0]).name for item in five.items[::5]]
    assert films == ["view2_frontal.jpg", "view1_lateral.jpg", "view1_frontal.jpg"]
    assert "1 studies have no frontal film; their first film is scored" in five.notes
    assert list(five.protocol["words"]) == list(chexpert.COMPETITION)


@pytest.mark.parametrize(
    ("study", "values", "message"),
    [
        ("CheXpert-v1.0/test/patient1/study1", "0,-1,1,0,0,1,0,0,1,0,0,0,0,1", ":2: a label is neither 0 nor 1"),
        ("CheXpert-v1.0/test/patient1/study1", ",1,1,0,0,1,0,0,1,0,0,0,0,1", ":2: a label is neither 0 nor 1"),
        ("CheXpert-v1.0/valid/patient1/study1", "0,1,1,0,0,1,0,0,1,0,0,0,0,1", ":2: Study is not"),
    ],
)
def test_chexpert_bad_input(tmp_path, study, values, message):
    with pytest.raises(UserError, match=message):
        load("chexpert-5", sets_tree.chexpert(tmp_path, [(study, values)]))


def test_chestx_det10_takes_the_set_of_its_labels(tmp_path):
    benchmark = load("chestx-det10", sets_tree.chestxdet10(tmp_path))
    assert truths(benchmark) == {"90001.png": {"Nodule", "Effusion"}, "90002.png": set()}
    assert benchmark.fingerprint["normal_films"] == 1 and len(benchmark.items) == 20
    assert benchmark.items[0].patient == "90001.png" and "no patient ids" in benchmark.notes[0]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"file_name": "1.png", "syms": ["Nodule"], "boxes": []}], "film 1: 1 labels for 0 boxes"),
        ([{"file_name": "1.png", "syms": ["Node"], "boxes": [[0, 0, 1, 1]]}], "film 1: a label is none of the ten"),
        ([{"file_name": "1.png", "syms": [["Nodule"]], "boxes": [[0, 0, 1, 1]]}], "film 1: a label is none of the ten"),
        ([{"file_name": "1.png", "syms": [], "boxes": []}] * 2, "film 2: 1.png comes twice"),
        ([{"file_name": "1.png"}], "film 1: needs file_name, syms and boxes"),
        ({}, "not a list of films"),
        ([], "holds no film"),
    ],
)
def test_chestx_det10_bad_input(tmp_path, entries, message):
    (tmp_path / "test.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match=message):
        load("chestx-det10", tmp_path)


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_chestx_det10_no_json(tmp_path, text):
    (tmp_path / "test.json").write_text(text)
    with pytest.raises(UserError, match="test.json: not a JSON file"):
        load("chestx-det10", tmp_path)


def test_padchest_is_what_physicians_labelled_without_normal(tmp_path):
    benchmark = load("padchest", sets_tree.padchest(tmp_path))
    assert truths(benchmark) == {
        "901.png": set(),
        "902.png": {"nodule", "pleural effusion"},
        "903.png": {"nodule", "unchanged"},
    }
    assert list(benchmark.protocol["words"]) == ["nodule", "pleural effusion", "unchanged"]
    assert benchmark.items[-1].images[0].endswith("images/54/903.png") and benchmark.items[-1].patient == "7"
    # 905.png has none either, but the model labelled it: it was never to be scored.
    assert not any("without Labels" in note for note in benchmark.notes)
    assert any("include unchanged, which" in note for note in benchmark.notes)
    frontal = load("padchest", tmp_path, projections="frontal")
    assert set(truths(frontal)) == {"901.png", "903.png"}
    assert "1 films that are not frontal were left out (projections=frontal)" in frontal.notes
    assert list(load("padchest", tmp_path, min_positives="2").protocol["words"]) == ["nodule"]


def test_padchest_counts_the_physicians_rows_without_labels(tmp_path):
    rows = [(f"{i}.png", 0, f"s{i}", f"p{i}", "PA", "Physician", listed) for i, listed in enumerate(("['mass']", ""))]
    rows.append(("2.png", 0, "s2", "p2", "PA", "RNN_model", ""))
    benchmark = load("padchest", sets_tree.padchest(tmp_path, rows))
    assert "1 rows of physicians without Labels were left out" in benchmark.notes and len(benchmark.items) == 1


def test_padchest20_keeps_the_rare_labels(tmp_path):
    rows = [(f"{i}.png", 0, f"s{i}", f"p{i}", "PA", "Physician", "['nodule']") for i in range(11)]
    rows.append(("11.png", 0, "s11", "p11", "PA", "Physician", "['mass']"))
    benchmark = load("padchest20", sets_tree.padchest(tmp_path, rows))
    assert list(benchmark.protocol["words"]) == ["mass"] and len(benchmark.items) == 12


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("1.png", 0, "s", "p", "PA", "Physician", "nodule"), ":2: Labels is not a list"),
        (("1.png", 0, "s", "p", "PA", "Doctor", "['nodule']"), ":2: MethodLabel is neither"),
        (("1.png", 0, "s", "p", "PA", "Doctor", ""), ":2: MethodLabel is neither"),
    ],
)
def test_padchest_bad_input(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        load("padchest", sets_tree.padchest(tmp_path, [row]))
    with pytest.raises(UserError, match="min_positives=few"):
        load("padchest", tmp_path, min_positives="few")


def test_a_table_with_nothing_but_its_header_is_refused(tmp_path):
    with pytest.raises(UserError, match="PADCHEST.*holds no film; ask BIMCV"):
        load("padchest", sets_tree.padchest(tmp_path, []))
    with pytest.raises(UserError, match="Data_Entry_2017.*holds no film; download it"):
        load("chestx-ray14", sets_tree.nih(tmp_path, []))


def test_vindr_leaves_out_what_names_no_finding(tmp_path):
    benchmark = load("vindr-cxr", sets_tree.vindr(tmp_path))
    assert truths(benchmark) == {"a" * 32: {"Cardiomegaly"}, "b" * 32: set()}
    assert len(benchmark.items) == 2 * 25
    assert benchmark.items[0].images[0].endswith(f"test/{'a' * 32}.png")
    twice = [("a" * 32, []), ("a" * 32, [])]
    with pytest.raises(UserError, match=":3: this image stands in the table already"):
        load("vindr-cxr", sets_tree.vindr(tmp_path, twice))


def test_a_nearly_whole_table_is_refused_and_may_be_forced(tmp_path, monkeypatch):
    monkeypatch.setattr(nih, "ROWS", 4)
    monkeypatch.setattr(nih, "LISTED", 3)
    sets_tree.nih(tmp_path)
    load("chestx-ray14", tmp_path)
    monkeypatch.setattr(nih, "LISTED", 2)
    with pytest.raises(UserError, match="3 films where the published table has 2.*partial=yes"):
        load("chestx-ray14", tmp_path)
    assert len(load("chestx-ray14", tmp_path, partial="yes").items) == 42


@pytest.mark.parametrize("name", [name for name in zeroshot.NAMES if name != "phantom-zeroshot"])
def test_an_empty_folder_is_told_what_is_missing(tmp_path, name):
    with pytest.raises(UserError, match=f"{tmp_path}: no .*; (download|ask)"):
        load(name, tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        load(name, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"tabel=x.*did you mean|tabel=x.*use one of"):
        load(name, tmp_path, tabel="x")


# The real tables, as the package carries them; nothing is imported from it.
PACKAGE = importlib.util.find_spec("torchxrayvision")
TABLES = Path(PACKAGE.origin).parent / "data" if PACKAGE else Path()
real = pytest.mark.skipif(
    PACKAGE is None, reason="torchxrayvision (its label tables) is not installed: bash scripts/setup.sh --test"
)


@real
def test_the_real_chestx_ray14_table():
    _, counts = nih.read_table(TABLES / "Data_Entry_2017_v2020.csv.gz")
    assert counts["rows"] == 112_120 and counts["table_patients"] == 30_805
    assert counts["views"] == {"AP": 44_810, "PA": 67_310}
    assert counts["table_labels"] == {
        "Atelectasis": 11_559,
        "Cardiomegaly": 2_776,
        "Consolidation": 4_667,
        "Edema": 2_303,
        "Effusion": 13_317,
        "Emphysema": 2_516,
        "Fibrosis": 1_686,
        "Hernia": 227,
        "Infiltration": 19_894,
        "Mass": 5_782,
        "No Finding": 60_361,
        "Nodule": 6_331,
        "Pleural_Thickening": 3_385,
        "Pneumonia": 1_431,
        "Pneumothorax": 5_302,
    }


@real
def test_the_real_reports_of_indiana():
    reports = openi.read_reports(TABLES / "NLMCXR_reports.tgz")
    assert len(reports) == openi.REPORTS == 3_955
    sizes = Counter(len(report.images) for report in reports)
    assert sizes == {0: 104, 1: 446, 2: 3_208, 3: 181, 4: 15, 5: 1}
    assert sum(n * count for n, count in sizes.items()) == openi.IMAGES == 7_470
    both = [r for r in reports if r.images and r.sections["FINDINGS"] and r.sections["IMPRESSION"]]
    neither = [r for r in reports if not r.sections["FINDINGS"] and not r.sections["IMPRESSION"]]
    assert (len(both), len(neither)) == (3_331, 28)
    assert all(set(r.sections) == {"COMPARISON", "INDICATION", "FINDINGS", "IMPRESSION"} for r in reports)
    # torchxrayvision 1.5.7 reads these off the same archive, view and patient filters apart.
    positives = Counter(label for r in reports for label in openi.labels_of(r) for _ in r.images)
    assert (positives["Granuloma"], positives["Calcified Granuloma"], positives["Atelectasis"]) == (781, 416, 711)


@real
def test_the_real_padchest_table():
    rows, counts, notes = padchest.read_table(TABLES / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz")
    assert counts == {
        "rows": 160_861,
        "table_studies": 109_931,
        "table_patients": 67_625,
        "methods": {"Physician": 39_053, "RNN_model": 121_808},
    }
    assert notes == []  # the 103 rows without Labels are all the model's
    positives = Counter(label for row in rows for label in row.labels)
    assert len(rows) == 39_053 and len(positives) == 193
    assert sum(n <= padchest.RARE for n in positives.values()) == 20
    assert sum(row.projection == "L" for row in rows) == 12_608


@real
def test_the_real_chexpert_train_table_has_the_columns_of_the_test_table():
    from data.mimic_tables import rows

    columns = ("Path", "Frontal/Lateral", *chexpert.LABELS)
    views, patients, total = Counter(), set(), 0
    for _, (path, view, *values) in rows(TABLES / "chexpert_train.csv.gz", columns):
        total += 1
        views[view] += 1
        patients.add(path.split("/")[2])
        assert set(values) <= {"1.0", "0.0", "-1.0", ""}
    assert total == 223_414 and len(patients) == 64_540
    assert views == {"Frontal": 191_027, "Lateral": 32_387}


def test_every_label_of_every_set_has_words():
    for module in (nih, openi, chexpert, chestxdet10, vindr):
        for label, words in module.LABELS.items():
            assert words and words == words.strip() and "_" not in words, label
