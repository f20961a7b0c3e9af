import pytest
from sklearn.metrics import roc_auc_score

from eval import similarity
from tests.eval import ms_cxr_t_tree as tree

DRAW = {"seed": 0, "resamples": 100}


def load(tmp_path, **more):
    tree.write_sentences(tmp_path)
    return similarity.load("ms-cxr-t-similarity", tmp_path, options={}, **more)


def answers(*values, mass=0.9):
    return [{"p_yes": value, "mass": mass} for value in values]


def test_pairs_become_questions_without_films(tmp_path):
    one = load(tmp_path)
    assert one.kind == "yesno" and [item.truth["paraphrase"] for item in one.items] == [1, 0, 1, 0]
    assert one.items[0].images == () and one.items[0].id == one.items[0].patient == "pair-2"
    assert "Sentence 2: The effusion is larger.\n" in one.items[0].prompt
    assert len(load(tmp_path, limit=3).items) == 3


def test_auc_and_accuracy_by_subset(tmp_path):
    one = load(tmp_path)
    values = (0.9, 0.2, 0.4, 0.45)
    scored = similarity.score(one, answers(*values), **DRAW)
    metrics = scored["rows"][0]["metrics"]
    assert metrics["AUC/all"]["value"] == pytest.approx(roc_auc_score([1, 0, 1, 0], values)) == 0.75
    assert (metrics["AUC/RadGraph"]["value"], metrics["AUC/swaps"]["value"], metrics["AUC/swaps"]["n"]) == (1, 0, 2)
    assert metrics["accuracy/all"]["value"] == 0.75 and metrics["accuracy/swaps"]["value"] == 0.5
    assert metrics["AUC/all"]["skipped_resamples"] > 0, "a resample with one category"
    majority = scored["rows"][1]
    assert majority["baseline"] and majority["metrics"]["AUC/all"]["value"] == 0.5
    assert scored["per_item"][3]["correct"] == {"paraphrase": True}
    assert not scored["notes"]


def test_low_mass_and_one_category_are_told(tmp_path):
    one = load(tmp_path, limit=1)
    scored = similarity.score(one, answers(0.7, mass=0.1), **DRAW)
    assert scored["rows"][0]["metrics"]["AUC/RadGraph"]["value"] is None
    assert any("1 of 1 answers put less than" in note for note in scored["notes"])
    assert any("one category only" in note for note in scored["notes"])
