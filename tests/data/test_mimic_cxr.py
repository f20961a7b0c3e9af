import gzip
import json
import sys
import zipfile

import pytest

from data import mimic_tables
from data.errors import UserError
from data.mimic_cxr import PROMPT, build, main
from data.mimic_sections import read_sections, report_text, section_name, split_report
from data.mimic_tables import read_labels, read_splits
from data.records import check_studies, read_studies
from tests.data import mimic_tree as tree


@pytest.fixture
def root(tmp_path):
    return tree.make(tmp_path / "mimic")


def records(root, **options):
    out = root.parent / "out.jsonl"
    counts = build(root, out, **options)
    return counts, {study["id"]: study for study in read_studies(out)}


def refusal(call, *arguments, **options):
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def test_one_record_a_study_with_its_frontal_film(root):
    counts, studies = records(root, labels="none")
    assert list(studies) == ["s59999991", "s59999990", "s59999993", "s59999995", "s59999996"]
    first = studies["s59999991"]
    # PA before the AP that was taken earlier; the lateral one never.
    assert first["images"] == [tree.path(3)] and first["view"] == "PA" and studies["s59999990"]["view"] == "AP"
    assert (first["patient"], first["source"], first["split"]) == ("p10999991", "mimic-cxr", "train")
    assert first["prompt"] == PROMPT and first["trajectories"] == [] and "findings" not in first
    assert counts["splits"] == {"train": 3, "test": 1, "validate": 1}
    assert counts["set_aside"] == {"no frontal film": 1}
    assert check_studies(root.parent / "out.jsonl", image_root=root, decode=True)["images"] == 5


def test_earlier_film_of_the_same_view_first(tmp_path):
    films = [(1, 10999991, 59999991, "AP", "21500101", "101500.0", "train")]
    films.append((2, 10999991, 59999991, "AP", "21500101", "91500.0", "train"))
    _, studies = records(tree.make(tmp_path / "m", films=films), labels="none")
    assert studies["s59999991"]["images"] == [tree.path(2)]


def test_all_views(root):
    counts, studies = records(root, views="all")
    one = studies["s59999991"]
    assert one["images"] == [tree.path(3), tree.path(2), tree.path(1)]
    assert one["prompt"].count("<image>") == 3 and one["view"] == "PA"
    assert studies["s59999994"]["view"] is None and counts["images"] == 8 and counts["set_aside"] == {}


def test_labels_are_read_by_name_and_value(root):
    counts, studies = records(root, labels="negbio")
    assert studies["s59999991"]["findings"] == {
        "Atelectasis": {"state": "present"},
        "Edema": {"state": "uncertain"},
        "Pneumonia": {"state": "absent"},
        "Pneumothorax": {"state": "absent"},
        "Support Devices": {"state": "present"},
    }
    assert studies["s59999995"]["findings"] == {"No Finding": {"state": "present"}}
    # A row of blanks is labelled with nothing mentioned; a study without a row is not labelled.
    assert studies["s59999996"]["findings"] == {} and "findings" not in studies["s59999990"]
    assert counts["labelled"] == 3


def test_radiologists_table_calls_lung_opacity_otherwise(root):
    names = ["Airspace Opacity" if name == "Lung Opacity" else name for name in tree.LABELS]
    values = ["1" if name == "Airspace Opacity" else "0.0" if name == "Edema" else "" for name in names]
    table = root / "mimic-cxr-2.1.0-test-set-labeled.csv"
    tree.write_table(table, ["study_id", *names], [[59999995, *values]])
    _, studies = records(root, labels="radiologist", split="test")
    assert studies["s59999995"]["findings"] == {"Edema": {"state": "absent"}, "Lung Opacity": {"state": "present"}}


def test_priors_by_date_and_time_of_the_patient(root):
    counts, studies = records(root, prior=True)
    # 93000.0 is 09:30 and before 101400.0, though a longer string.
    assert {key: study["prior"] for key, study in studies.items()} == {
        "s59999990": None,
        "s59999991": "s59999990",
        "s59999993": "s59999991",
        "s59999995": None,  # the patient's earlier study has no frontal film
        "s59999996": None,
    }
    assert (counts["priors"], counts["priors_outside"]) == (2, 0)
    counts, studies = records(root, prior=True, limit=1)
    assert studies["s59999991"]["prior"] == "s59999990" and counts["priors_outside"] == 1


def test_studies_of_one_moment_are_no_priors(tmp_path):
    films = [(n, 10999991, 59999990 + n, "PA", "21500101", "93000.0", "train") for n in (1, 2)]
    _, studies = records(tree.make(tmp_path / "m", films=films), labels="none", prior=True)
    assert [study["prior"] for study in studies.values()] == [None, None]


@pytest.mark.parametrize("unpacked", [False, True])
def test_reports(root, unpacked):
    if unpacked:
        zipfile.ZipFile(root / "mimic-cxr-reports.zip").extractall(root / "mimic-cxr-reports")
        (root / "mimic-cxr-reports.zip").unlink()
    counts, studies = records(root)
    assert studies["s59999991"]["report"] == (
        "FINDINGS: Left basal atelectasis. No effusion.\nIMPRESSION: Atelectasis."
    )
    assert studies["s59999995"]["report"] == "FINDINGS: Clear lungs."
    assert counts["reports"] == 2 and "report" not in studies["s59999996"]


def damaged(root, at, byte):
    """The zip of reports deflated, and a byte of it altered; `at` is relative to a signature: (signature, offset)."""
    file = root / "mimic-cxr-reports.zip"
    with zipfile.ZipFile(file) as archive:
        texts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
    raw = bytearray(file.read_bytes())
    raw[raw.index(at[0]) + at[1]] = byte
    file.write_bytes(raw)


CENTRAL = b"PK\1\2"


@pytest.mark.parametrize(
    ("at", "byte", "what"),
    [
        ((b".txt", 4), 0xFF, "reports.zip: report of study s59999991 is damaged; download"),  # zlib.error
        ((CENTRAL, 8), 0x20, "reports.zip: report of study s59999991 is damaged; download"),  # patch data: no such
        ((CENTRAL, 8), 0x01, "reports.zip: report of study s59999991 is damaged; download"),  # encrypted
        ((CENTRAL, 10), 0x63, "reports.zip: report of study s59999991 is damaged; download"),  # unknown compression
        ((CENTRAL, 6), 0xFF, "reports.zip: cannot be read as a zip file (damaged or cut off)"),  # version 25.5
    ],
)
def test_damaged_reports(root, at, byte, what):
    damaged(root, at, byte)
    assert what in refusal(records, root)


def test_missing_films_are_set_aside_counted_and_named_by_study(tmp_path, capsys, monkeypatch):
    root = tree.make(tmp_path / "m", missing=(3, 7))
    counts, studies = records(root)
    assert counts["set_aside"] == {"film missing": 2, "no frontal film": 1}
    assert counts["missing"] == ["s59999991", "s59999995"] and set(studies) & set(counts["missing"]) == set()
    monkeypatch.setattr(sys, "argv", ["x", "--root", str(root), "--out", str(tmp_path / "o.jsonl")])
    main()
    shown = "".join(capsys.readouterr())
    assert "film missing, first 2: s59999991, s59999995" in shown and "10999991" not in shown
    assert len(records(root, film_check=False)[1]) == 5


def test_nothing_to_write_leaves_the_old_file(tmp_path):
    root = tree.make(tmp_path / "m", missing=range(1, 9))
    (tmp_path / "out.jsonl").write_text("old")
    message = refusal(records, root)
    assert "no study to write (set aside: film missing 5, no frontal film 1)" in message and "s59999991" in message
    assert (tmp_path / "out.jsonl").read_text() == "old"


def published(monkeypatch, root, **changes):
    """Pretend that the miniature tables are the published ones, but for `changes`."""
    counts = {
        "IMAGES": 8,
        "LABELLED": 3,
        "IN_SPLIT": {"train": (5, 3), "validate": (1, 1), "test": (2, 2)},
    }
    for name, value in (counts | changes).items():
        monkeypatch.setattr(mimic_tables, name, value)
    return lambda: records(root)


def test_counts_of_whole_tables_are_asserted(root, monkeypatch, capsys):
    published(monkeypatch, root)()
    assert "partial" not in capsys.readouterr().err
    split = {"train": (5, 3), "validate": (1, 1), "test": (2, 3)}
    message = refusal(published(monkeypatch, root, IN_SPLIT=split))
    assert "split.csv.gz: 2 studies of split test where the published table has 3; download it again" in message
    message = refusal(published(monkeypatch, root, IMAGES=7))
    assert "8 images where the published table has 7" in message
    message = refusal(published(monkeypatch, root, LABELLED=2))
    assert "chexpert.csv.gz: 3 studies where the published table has 2" in message


def test_a_partial_tree_says_that_counts_are_not_checked(root, capsys, monkeypatch):
    records(root)
    said = capsys.readouterr().err
    assert "metadata.csv.gz: 8 of 377110 images; a partial table, its counts are not checked" in said
    assert "chexpert.csv.gz: 3 of 227827 studies" in said
    nearly = published(monkeypatch, root, LABELLED=3, IMAGES=8, IN_SPLIT={"train": (5, 4)})
    assert "3 studies of split train where the published table has 4" in refusal(nearly)
    monkeypatch.setattr(mimic_tables, "IMAGES", 7)
    assert len(records(root, partial=True)[1]) == 5


def test_a_table_cut_off_in_its_gzip_stream(root):
    table = root / "mimic-cxr-2.0.0-metadata.csv.gz"
    table.write_bytes(table.read_bytes()[:-40])
    assert "metadata.csv.gz: the gzip file is cut off or damaged" in refusal(records, root)


def test_unzipped_tables_in_another_folder(root, tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    for table in root.glob("*.csv.gz"):
        (folder / table.name.removesuffix(".gz")).write_bytes(gzip.decompress(table.read_bytes()))
        table.unlink()
    assert "no table mimic-cxr-2.0.0-metadata.csv.gz (or .csv); download" in refusal(records, root)
    # PhysioNet has this one unzipped.
    said = refusal(mimic_tables.find_table, root, "test-set-labeled")
    assert "no table mimic-cxr-2.1.0-test-set-labeled.csv (or .csv.gz); download" in said
    assert len(records(root, tables=folder)[1]) == 5


@pytest.mark.parametrize(
    ("table", "header", "row", "what"),
    [
        ("split", ["study_id", "split"], [["59999991", "val"]], ":2: split is not one of train, validate, test"),
        ("split", ["study_id"], [["59999991"]], ":1: no column split"),
        ("split", ["59999991", "secret"], [], ":1: no column study_id, split (found: 2, which look like values: "),
        (
            "split",
            ["study_id", "split"],
            [["59999991", "train"], ["59999991", "test"]],
            ":3: study s59999991 is in train",
        ),
        ("split", ["study_id", "split"], [["59999991"]], ":2: 1 values for 2 columns"),
        ("split", ["study_id", "split"], [["secret", "train"]], ":2: study_id is not a whole number"),
        ("chexpert", ["study_id", *tree.LABELS], [["59999991", "2.0", *[""] * 13]], ":2: Atelectasis is none of 1.0"),
        ("chexpert", ["study_id", *tree.LABELS[1:]], [], ":1: no column Atelectasis"),
        ("chexpert", ["study_id", *tree.LABELS], [["5", *[""] * 14], ["5", *[""] * 14]], ":3: study s5 has two rows"),
    ],
)
def test_damaged_tables(tmp_path, table, header, row, what):
    file = tmp_path / f"mimic-cxr-2.0.0-{table}.csv"
    tree.write_table(file, header, row)
    message = refusal(read_splits, file) if table == "split" else refusal(read_labels, file, "chexpert")
    assert what in message and "secret" not in message


def test_wrong_roots_and_options(root, tmp_path):
    assert "holds no folder files/; name the folder above it" in refusal(records, root / "files")
    assert "is not a folder" in refusal(records, tmp_path / "nowhere")
    (root / "files").rename(root / "later")
    assert "name the root of MIMIC-CXR-JPG" in refusal(records, root)
    assert len(records(root, film_check=False)[1]) == 5
    (root / "later").rename(root / "files")
    assert "write <image> exactly once" in refusal(records, root, prompt="no film")
    for name in ("mimic-cxr-2.0.0-metadata.csv.gz", "mimic-cxr-reports.zip"):
        assert f"{name}: is the input file" in refusal(build, root, root / name)
    (root / "mimic-cxr-2.1.0-split.csv").write_text("study_id,split\n")
    assert "several split tables" in refusal(records, root)


def test_command_line_writes_what_the_checks_accept(root, tmp_path, capsys, monkeypatch):
    out = tmp_path / "deep" / "studies.jsonl"
    monkeypatch.setattr(
        sys, "argv", f"x --root {root} --out {out} --split train --labels chexpert --limit 2 --prior".split()
    )
    main()
    assert "2 studies (train 2), 2 images" in capsys.readouterr().out
    assert [json.loads(line)["split"] for line in out.read_text().splitlines()] == ["train", "train"]


# --- sections -------------------------------------------------------------------------------------------------------


def test_last_of_equal_sections_wins_and_empty_ones_do_not_exist():
    text = (
        " WET READ: ___\n  addendum\n ______________________________________________________________________________\n"
        " FINDINGS: old\n \n IMPRESSION: first\n \n FINDINGS:  new\n lines\n \n IMPRESSION: \n \n"
    )
    sections = read_sections("\n" + text)
    assert sections["findings"] == "new\n lines" and sections["impression"] == "first"
    assert report_text("\n" + text) == "FINDINGS: new lines\nIMPRESSION: first"


def test_a_header_needs_one_space_capitals_and_a_colon():
    text = "\n FINDINGS: The\n heart: small\n Heart: normal\nLUNGS: clear\n 2 DEVICES: left\n IMPRESSION:  None\n"
    assert set(read_sections(text)) == {"preamble", "findings", "impression"}
    assert "LUNGS: clear\n 2 DEVICES" in read_sections(text)["findings"]


def test_the_line_that_a_section_begins_on_is_no_header():
    # The header's line break is its white space: the next line is where the section begins.
    text = "\n FINDINGS:\n IMPRESSION: in the findings\n IMPRESSION: real\n"
    assert read_sections(text) == {"preamble": "", "findings": "IMPRESSION: in the findings", "impression": "real"}


def test_last_paragraph_only_without_findings_and_impression():
    text = "\n INDICATION: cough\n \n Lungs are clear.\n Heart normal.\n \n Stable.\n"
    sections = read_sections(text)
    assert sections["indication"] == "cough"
    assert sections["last_paragraph"] == "Lungs are clear.\n Heart normal.\n \n Stable."
    assert report_text(text) == "Lungs are clear. Heart normal. Stable."
    assert "last_paragraph" not in read_sections(text + " IMPRESSION: clear\n")
    assert read_sections("Clear.") == {"full report": "Clear."} and report_text("Clear.") == ""
    assert read_sections("Portable.\n \n Clear.")["last_paragraph"] == "Clear."


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("FINDINGS", "findings"),
        ("FINDINGS AND IMPRESSION", "impression"),
        ("CONCLUSION", "impression"),
        ("NDICATION", "impression"),
        ("IMPERSSION", "impression"),
        ("FINDNINGS", "findings"),
        ("OPINION", "opinion"),  # not of the official rules
        ("INDICATION", "indication"),
        ("CHEST, TWO VIEWS", "findings"),
        ("PORTABLE UPRIGHT FRONTAL RADIOGRAPH", "findings"),
        ("LEFT RIBS", "findings"),
        ("AP AND LATERAL RADIOGRAPHS", "findings"),
        ("SUPINE FRONTAL RADIOGRAPH", "supine frontal radiograph"),
        ("IMPRESSION (PRELIMINARY)", "impression"),
        ("CLINICAL HISTORY", "history"),
        ("COMPARISONS", "comparison"),
        ("TECHNIQUE", "technique"),
        ("NOTIFICATION", "notification"),
    ],
)
def test_header_names(header, name):
    assert section_name(header) == name
    assert read_sections(f"\n {header}: text\n")[name] == "text"


def test_split_report_undoes_report_text():
    assert split_report("FINDINGS: a: b.\nIMPRESSION: c") == {"findings": "a: b.", "impression": "c"}
    assert split_report("Note: only a paragraph.") == {"last_paragraph": "Note: only a paragraph."}


def test_a_study_that_lacks_one_of_its_films_is_set_aside(tmp_path):
    counts, studies = records(tree.make(tmp_path / "m", missing=(1,)), views="all")
    assert "s59999991" not in studies and counts["set_aside"] == {"film missing": 1}


def test_a_study_is_as_old_as_its_earliest_film(root):
    studies = mimic_tables.read_metadata(root / "mimic-cxr-2.0.0-metadata.csv.gz")
    assert studies[59999991].when == (21500101, 101400.0)


def test_numbers_and_views_in_other_spellings(tmp_path):
    table = tmp_path / "mimic-cxr-2.0.0-chexpert.csv"
    tree.write_table(table, ["study_id", *tree.LABELS], [["s59999991.0", "-1", "0", "1", *[""] * 11]])
    found = mimic_tables.findings_of(read_labels(table, "chexpert")[59999991])
    assert [found[name]["state"] for name in tree.LABELS[:3]] == ["uncertain", "absent", "present"]
    films = [(1, 10999991, 59999991, "pa ", "21500101", "101500.0", "train")]
    _, studies = records(tree.make(tmp_path / "m", films=films), labels="none")
    assert studies["s59999991"]["view"] == "PA"


def test_rows_too_long_and_studies_of_two_subjects_are_refused(tmp_path):
    table = tmp_path / "mimic-cxr-2.0.0-split.csv"
    tree.write_table(table, ["study_id", "split"], [["59999991", "train", "x"]])
    assert ":2: 3 values for 2 columns" in refusal(read_splits, table)
    films = [(n, 10999990 + n, 59999991, "PA", "21500101", "101500.0", "train") for n in (1, 2)]
    assert "study s59999991 belongs to two subjects" in refusal(records, tree.make(tmp_path / "m", films=films))


def test_sections_of_other_line_ends_and_of_a_header_with_both_names():
    assert read_sections("\r\n FINDINGS: Clear.\r\n Heart normal.\r\n")["findings"] == "Clear.\n Heart normal."
    assert section_name("IMPRESSION WITH FINDINGS") == "impression"


@pytest.mark.parametrize("base", ["files/", "", "mimic/files/"])
def test_reports_at_other_places_and_with_a_nul(tmp_path, base):
    from data.mimic_reports import open_reports

    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        archive.writestr(f"__MACOSX/{base}p10/p10999991/._s59999991.txt", "of a Mac")
        archive.writestr(f"{base}p10/p10999991/s59999991.txt", "\n FINDINGS: Cl\0ear.\n")
        archive.extractall(tmp_path / "unpacked")
    places = [tmp_path / "r.zip", *([] if base.startswith("mimic") else [tmp_path / "unpacked"])]
    for place in places:
        assert open_reports(place)(10999991, 59999991) == "FINDINGS: Clear."
