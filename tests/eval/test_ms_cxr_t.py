import gzip

import pytest

from data.errors import UserError
from eval import ms_cxr_t
from tests.data import mimic_tree
from tests.eval import ms_cxr_t_tree as tree


def test_columns_are_found_by_name_in_any_order(tmp_path):
    rows = tree.image_rows()
    first, _, _ = ms_cxr_t.read_pairs(tree.write_images(tmp_path, rows))
    again, _, _ = ms_cxr_t.read_pairs(tree.write_images(tmp_path, rows, order=sorted(rows[0], reverse=True)))
    assert first == again
    assert first[0].labels == {"Consolidation": "stable", "Pleural Effusion": "worsening"}
    assert first[0].images == (mimic_tree.path(4), mimic_tree.path(2)), "previous first"
    assert (first[0].study, first[0].previous_study, first[0].subject) == (59999991, 59999990, 10999991)


def test_a_bare_dicom_id_is_found_too(tmp_path):
    rows = tree.image_rows()
    whole, _, _ = ms_cxr_t.read_pairs(tree.write_images(tmp_path, rows))
    for row in rows:
        for key in ("dicom_id", "previous_dicom_id"):
            row[key] = row[key].rpartition("/")[2]
    bare, _, _ = ms_cxr_t.read_pairs(tree.write_images(tmp_path, rows))
    assert bare == whole


def test_fingerprint(tmp_path):
    _, found, notes = ms_cxr_t.read_pairs(tree.write_images(tmp_path))
    assert (found["rows"], found["pairs"], found["labels"], found["patients"]) == (3, 3, 5, 2)
    assert found["labels_by_finding"]["Edema"] == 2 and found["labels_by_finding"]["Pneumonia"] == 0
    assert found["label_quality"] == {"disagreement": 1, "multiple_experts": 1, "one_expert": 1}
    assert len(found["sha256"]) == 64 and not notes


def test_a_table_without_label_quality_is_read(tmp_path):
    order = [column for column in tree.image_rows()[0] if not column.endswith("label_quality")]
    pairs, found, _ = ms_cxr_t.read_pairs(tree.write_images(tmp_path, order=order))
    assert len(pairs) == 3 and found["label_quality"] == {}


def test_optional_columns_of_a_gzip_table_are_read(tmp_path):
    def zipped(path):
        packed = path.with_name(path.name + ".gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        return packed

    path = tree.write_images(tmp_path)
    assert ms_cxr_t.read_pairs(zipped(path))[0] == ms_cxr_t.read_pairs(path)[0]
    path = tree.write_sentences(tmp_path)
    assert ms_cxr_t.read_sentences(zipped(path))[0] == ms_cxr_t.read_sentences(path)[0]
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(zipped(path).read_bytes()[:20])
    with pytest.raises(UserError, match="cut.csv.gz: the gzip file is cut off or damaged"):
        ms_cxr_t.read_sentences(cut)


def test_a_repeated_label_counts_once_and_is_told(tmp_path):
    rows = tree.image_rows()
    pairs, found, notes = ms_cxr_t.read_pairs(tree.write_images(tmp_path, [*rows, rows[1]]))
    assert (found["rows"], len(pairs), notes[0][:8]) == (4, 3, "1 labels")


def edited(column, value, row=0):
    rows = tree.image_rows()
    rows[row][column] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (edited("edema_progression", "better"), r":2: edema_progression is none of improving, stable, worsening"),
        (edited("edema_label_quality", "good", 1), r":3: edema_label_quality is none of"),
        (edited("study_id", "x"), r":2: study_id is not a whole number"),
        (edited("dicom_id", ""), r":2: dicom_id or previous_dicom_id is blank"),
        (
            [*tree.image_rows(), edited("consolidation_progression", "improving")[0]],
            r":5: consolidation has another progression",
        ),
        ([], "holds no row"),
    ],
)
def test_bad_rows(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        ms_cxr_t.read_pairs(tree.write_images(tmp_path, rows))


def test_a_wrong_header_names_the_missing_column(tmp_path):
    order = [column for column in tree.image_rows()[0] if column != "edema_progression"]
    with pytest.raises(UserError, match="no column edema_progression"):
        ms_cxr_t.read_pairs(tree.write_images(tmp_path, order=order))


def test_a_table_of_the_published_length_must_have_its_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(ms_cxr_t, "ROWS", 3)
    with pytest.raises(UserError, match="5 labels, 1 of consolidation.*1326 and 201"):
        ms_cxr_t.read_pairs(tree.write_images(tmp_path))
    monkeypatch.setattr(ms_cxr_t, "LABELS", 5)
    monkeypatch.setattr(ms_cxr_t, "CONSOLIDATIONS", 1)
    assert len(ms_cxr_t.read_pairs(tree.write_images(tmp_path))[0]) == 3
    with pytest.raises(UserError, match="4 rows where the published table has 3.*--set partial=yes"):
        ms_cxr_t.read_pairs(tree.write_images(tmp_path, [*tree.image_rows(), tree.image_rows()[0]]))


def test_sentences(tmp_path):
    rows, found = ms_cxr_t.read_sentences(tree.write_sentences(tmp_path))
    assert [row["subset"] for row in rows] == ["RadGraph", "RadGraph", "swaps", "swaps"]
    assert found["by_subset"]["swaps, contradiction"] == 1 and found["pairs"] == 4
    columns = ("sentence_1", "sentence_2", "category")
    rows, _ = ms_cxr_t.read_sentences(tree.write_sentences(tmp_path, [row[1:] for row in tree.SENTENCES], columns))
    assert {row["subset"] for row in rows} == {"all"}


def test_bad_sentences_are_named_by_line_not_by_text(tmp_path):
    rows = [*tree.SENTENCES, ("swaps", "Secret words.", " ", "contradiction"), ("swaps", "Secret.", "b", "same")]
    with pytest.raises(UserError, match=r"(?s):6: a sentence is empty.*:7: category is none of") as caught:
        ms_cxr_t.read_sentences(tree.write_sentences(tmp_path, rows))
    assert "Secret" not in str(caught.value)


def test_the_table_is_found_in_the_root_or_one_folder_below(tmp_path):
    with pytest.raises(UserError, match="no table MS_CXR_T_temporal_image.*--set table=FILE"):
        ms_cxr_t.find_table(tmp_path, ms_cxr_t.IMAGE_TABLE, None)
    (tmp_path / "ms-cxr-t").mkdir()
    path = tree.write_images(tmp_path / "ms-cxr-t")
    assert ms_cxr_t.find_table(tmp_path, ms_cxr_t.IMAGE_TABLE, None) == path
    tree.write_images(tmp_path)
    with pytest.raises(UserError, match="several tables"):
        ms_cxr_t.find_table(tmp_path, ms_cxr_t.IMAGE_TABLE, None)
    assert ms_cxr_t.find_table(tmp_path, ms_cxr_t.IMAGE_TABLE, str(path)) == path
