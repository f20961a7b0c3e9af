import numpy as np
import pytest

from data import mimic_tables
from data.errors import UserError
from data.findings_lexicon import FIVE
from eval import presence, presence_films
from eval.items import Benchmark, Item
from tests.data import mimic_tree
from tests.eval import ms_cxr_t_tree as tree
from tests.eval.cases import ALL_CLEAR, report, study

DRAW = {"seed": 0, "resamples": 50}
ORDER = ["Consolidation", "Pleural Effusion", "Pneumonia", "Pneumothorax", "Edema"]


def load(root, name="ms-cxr-t-presence", **options):
    return presence_films.load(name, root, options=options)


def truths(benchmark):
    return {item.study: [item.truth[label] for label in ORDER] for item in benchmark.items}


@pytest.fixture
def root(tmp_path):
    return tree.make(tmp_path / "mimic")


def test_truth_by_chexpert_labels(root):
    # s59999991: Edema -1, Pneumonia 0, Pneumothorax 0; s59999995: only No Finding; s59999993 has no row.
    one = load(root)
    assert truths(one) == {"s59999991": [0, 0, 0, 0, 1], "s59999995": [0, 0, 0, 0, 0]}
    assert any("1 films were left out: truth=chexpert" in note for note in one.notes)
    assert truths(load(root, uncertain="absent"))["s59999991"][4] == 0
    strict = load(root, uncertain="exclude", blank="exclude")
    assert truths(strict) == {"s59999991": [None, None, 0, 0, None]}
    assert any("1 films were left out: the truth has none" in note for note in strict.notes)
    assert one.fingerprint["labels_table"]["table"] == "mimic-cxr-2.0.0-chexpert.csv.gz"
    assert "chexpert.csv" in one.protocol["truth_rule"]
    film = one.items[0]
    assert film.images == (str(root / mimic_tree.path(2)),) and film.id == mimic_tree.dicom(2)
    assert film.prompt.count("<image>") == 1


def test_truth_by_progression_labels(root):
    one = load(root, truth="progression")
    assert truths(one) == {"s59999991": [1, 1, 0, 0, 0], "s59999993": [0, 0, 0, 0, 1], "s59999995": [0, 0, 0, 1, 1]}
    assert any("blank may be unlabelled" in note for note in one.notes)


def test_blanks_are_the_only_negatives_of_progression_labels(root):
    assert load(root, truth="progression", blank="absent").protocol["blank"] == "absent"
    with pytest.raises(UserError, match="--set blank=exclude: truth=progression has no negatives but the blank ones"):
        load(root, truth="progression", blank="exclude")


def test_truth_by_reports(root):
    # "Left basal atelectasis. No effusion. Atelectasis." and "Clear lungs."; s59999993 has no report.
    one = load(root, truth="report", blank="exclude")
    assert truths(one)["s59999991"] == [None, 0, None, None, None]
    (root / "mimic-cxr-reports.zip").unlink()
    with pytest.raises(UserError, match="no mimic-cxr-reports.zip"):
        load(root, truth="report")


def test_a_film_in_two_pairs_is_one_item(root):
    rows = tree.image_rows([*tree.PAIRS, (2, 3, {"edema": "stable"}, {})])
    tree.write_images(root, rows)
    one = load(root, truth="progression")
    assert len(one.items) == 3 and truths(one)["s59999991"] == [1, 1, 0, 0, 1]


def test_missing_labels_are_an_error(root):
    (root / "mimic-cxr-2.0.0-chexpert.csv.gz").unlink()
    with pytest.raises(UserError, match="no table mimic-cxr-2.0.0-chexpert.csv.gz .* with --set tables=DIR$"):
        load(root)


def test_a_table_that_is_not_the_published_one_is_accepted_by_an_option_of_the_benchmark(root, monkeypatch):
    monkeypatch.setattr(mimic_tables, "LABELLED", 2)
    with pytest.raises(UserError, match="3 studies where the published table has 2; .*, or say --set partial=yes if"):
        load(root)
    assert len(load(root, partial="yes").items) == 2


@pytest.mark.parametrize("prompt", ["", "What is there?", "<image> <image> What is there?"])
def test_a_prompt_shows_the_film_once(root, prompt):
    with pytest.raises(UserError, match="^--set prompt: write <image> exactly once"):
        load(root, prompt=prompt)
    assert load(root, prompt="<image> What is there?").items[0].prompt == "<image> What is there?"


def test_phantom_films(make_file, tmp_path):
    make_file([study(0, {"Edema": None}), study(1, {}), study(2, {}, split="train")])
    one = load(tmp_path, "phantom-presence")
    assert [item.id for item in one.items] == ["test-0", "test-1"]
    assert one.items[0].truth == dict.fromkeys(FIVE, 0) | {"Edema": 1}
    assert one.items[0].prompt == "This is a patient's chest DR image <image>. Please describe it."
    assert [item.id for item in load(tmp_path, "phantom-presence", split="train").items] == ["train-2"]
    with pytest.raises(UserError, match="has no such option"):
        load(tmp_path, "phantom-presence", truth="report")


def item(number, truth, patient=None):
    return Item(str(number), patient or f"p{number}", "", (), "", dict(zip(ORDER, truth, strict=True)))


def benchmark(items, uncertain="present"):
    return Benchmark("phantom-presence", "generate", tuple(items), {}, {"uncertain_answer": uncertain}, ())


def test_numbers_are_those_of_the_presence_rules():
    rng = np.random.default_rng(5)
    truth = rng.random((60, 5)) < 0.4
    items = [item(i, [int(x) for x in row], f"p{i // 2}") for i, row in enumerate(truth)]
    texts = []
    for row in truth:
        states = {
            label.replace(" ", ""): "present" if is_there != (rng.random() < 0.3) else "absent"
            for label, is_there in zip(ORDER, row, strict=True)
        }
        texts.append("I cannot help." if rng.random() < 0.1 else report(**states))
    scored = presence_films.score(benchmark(items), [{"text": text} for text in texts], **DRAW)
    metrics = scored["rows"][0]["metrics"]
    readings = [presence.read_answer(text) for text in texts]
    states = [
        {label: ("present" if x else "absent", None) for label, x in zip(ORDER, row, strict=True)} for row in truth
    ]
    expected = presence.score_answers(states, readings)
    for ours, theirs in (
        ("accuracy", "accuracy"),
        ("balanced accuracy", "balanced_accuracy"),
        ("F1", "f1"),
        ("positive rate", "positive_rate"),
    ):
        for label in FIVE:
            assert metrics[f"{ours}/{label}"]["value"] == pytest.approx(expected[theirs][label]), (ours, label)
    assert metrics["accuracy/mean of five"]["value"] == pytest.approx(expected["mean_accuracy"])
    assert metrics["balanced accuracy/mean of five"]["value"] == pytest.approx(expected["mean_balanced_accuracy"])
    assert metrics["malformed answers"]["value"] == pytest.approx(expected["malformed_rate"]) and expected["malformed"]


def test_what_is_not_scored_enters_no_number():
    items = [item(0, [1, 0, 0, 0, None]), item(1, [0, 1, 1, 1, 1])]
    answers = [{"text": report(Consolidation="present", Edema="present")}, {"text": ALL_CLEAR}]
    scored = presence_films.score(benchmark(items), answers, **DRAW)
    metrics = scored["rows"][0]["metrics"]
    assert metrics["accuracy/Edema"] == {"value": 0.0, "n": 1, "low": 0.0, "high": 0.0, "skipped_resamples": 12}
    assert metrics["accuracy/Consolidation"]["value"] == 1.0
    assert scored["per_item"][0]["correct"] == dict.fromkeys(ORDER[:4], True)
    assert metrics["balanced accuracy/Edema"]["value"] is None
    assert any("Edema: the truth has one class only" in note for note in scored["notes"])


def test_the_majority_class_is_plain_to_see():
    items = [item(i, [1, 0, 0, 0, int(i < 3)]) for i in range(4)]
    row = presence_films.score(benchmark(items), [{"text": ALL_CLEAR}] * 4, **DRAW)["rows"][1]
    assert row["baseline"] and row["metrics"]["accuracy/Edema"]["value"] == 0.75
    assert row["metrics"]["balanced accuracy/Edema"]["value"] == 0.5
    assert row["metrics"]["malformed answers"]["value"] == 0


def test_a_hedged_answer_counts_as_the_policy_says():
    items, answers = [item(0, [0, 0, 0, 0, 1])], [{"text": report(Edema="uncertain")}]
    for policy, value in (("present", 1.0), ("absent", 0.0)):
        row = presence_films.score(benchmark(items, policy), answers, **DRAW)["rows"][0]
        assert row["metrics"]["accuracy/Edema"]["value"] == value
