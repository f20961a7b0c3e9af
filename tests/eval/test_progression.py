import warnings
from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from data.errors import UserError
from data.findings_lexicon import FIVE
from data.phantom import cohort
from data.records import PROGRESSIONS, write_studies
from eval import progression
from eval.items import Benchmark, Item
from tests.data import mimic_tree
from tests.eval import ms_cxr_t_tree as tree

ORDER = ("worsening", "improving", "stable")
DRAW = {"seed": 0, "resamples": 50}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("B", "improving"),
        ("(b)", "improving"),
        ("B. improving", "improving"),
        ("**C**", "stable"),
        ("The answer is C.", "stable"),
        ("Option A: worsening", "worsening"),
        ("(C) stable. The heart has worsened.", "stable"),
        ("C\nThe effusion improved before.", "stable"),
        ("A stable effusion.", "stable"),
        ("It is unchanged, no improvement.", "stable"),
        ("There is no significant change.", "stable"),
        ("The effusion has worsened since.", "worsening"),
        ("Improved.", "improving"),
        ("(C) worsening", None),
        ("No worsening.", None),
        ("Not stable", None),
        ("not improved", None),
        ("There is no evidence of worsening.", None),
        ("No sign of improvement.", None),
        ("no definite interval improvement", None),
        ("There is no improvement or worsening.", None),
        ("No definite improvement or interval worsening.", None),
        ("Neither improved nor worsened", None),
        ("It hasn't improved.", None),
        ("No evidence of improvement or worsening; stable.", "stable"),
        ("Stable, without evidence of interval worsening.", "stable"),
        ("(C) stable, no evidence of worsening", "stable"),
        ("No change", "stable"),
        ("No change or worsening.", "stable"),
        ("No significant interval change.", "stable"),
        ("No effusion, and no change.", "stable"),
        ("No pneumothorax but worsening edema.", "worsening"),
        ("No, it has worsened.", "worsening"),
        ("Not only stable but improving.", "improving"),
        ("improving or stable", None),
        ("A pleural effusion is seen.", None),
        ("Consolidation.", None),
        ("D", None),
        ("", None),
        ("Choice: B", "improving"),
        ("\\boxed{B}", "improving"),
        ("<answer>C</answer>", "stable"),
        ('{"answer": "C"}', "stable"),
        ("Both films look alike, so the answer is (C).", "stable"),
        ("It has worsened, so the answer is C.", None),
    ],
)
def test_reading_an_answer(text, said):
    assert progression.read_choice(text, ORDER) == said


def test_option_order_depends_on_seed_and_question_and_is_even():
    ids = [f"question-{i}" for i in range(1200)]
    one = [progression.shown_order(1, id_) for id_ in ids]
    assert one == [progression.shown_order(1, id_) for id_ in ids]
    assert one != [progression.shown_order(2, id_) for id_ in ids]
    counts = Counter(one)
    assert len(counts) == 6 and min(counts.values()) > 150, "each order about 200 times"


def question(number, finding, label, order=ORDER, patient=None):
    truth = {"finding": finding, "progression": label, "order": list(order)}
    return Item(str(number), patient or f"p{number}", "", (), "", truth)


def benchmark(items):
    return Benchmark("phantom-progression", "generate", tuple(items), {}, {}, ())


def random_benchmark(size=200, seed=4):
    rng = np.random.default_rng(seed)
    items = [
        question(i, FIVE[i % 5], PROGRESSIONS[rng.choice(3, p=[0.25, 0.6, 0.15])], patient=f"p{i // 3}")
        for i in range(size)
    ]
    said = [(*PROGRESSIONS, "cannot say")[rng.choice(4, p=[0.3, 0.3, 0.3, 0.1])] for _ in items]
    return items, said


def test_numbers_are_those_of_scikit_learn():
    items, said = random_benchmark()
    scored = progression.score(benchmark(items), [{"text": word} for word in said], **DRAW)
    metrics = scored["rows"][0]["metrics"]
    macro = []
    for finding in FIVE:
        chosen = [i for i, item in enumerate(items) if item.truth["finding"] == finding]
        truth, answers = [items[i].truth["progression"] for i in chosen], [said[i] for i in chosen]
        with warnings.catch_warnings():  # "cannot say" is no class of the truth
            warnings.simplefilter("ignore")
            macro.append(balanced_accuracy_score(truth, answers))
        assert metrics[f"macro accuracy/{finding}"]["value"] == pytest.approx(macro[-1])
        assert metrics[f"macro accuracy/{finding}"]["n"] == len(chosen)
        assert metrics[f"accuracy/{finding}"]["value"] == pytest.approx(accuracy_score(truth, answers))
    mean = metrics["macro accuracy/mean of five"]
    assert mean["value"] == pytest.approx(np.mean(macro)) and mean["low"] < mean["value"] < mean["high"]
    unread = said.count("cannot say")
    assert metrics["share of answers/no option"]["value"] == pytest.approx(unread / len(said))
    assert scored["notes"][0] == f"{unread} of 200 answers name no one option and count as wrong"


def test_a_constant_answer_gets_one_third():
    items, _ = random_benchmark()
    row = progression.score(benchmark(items), [{"text": "stable"}] * 200, **DRAW)["rows"][1]
    assert row["name"] == "majority class" and row["baseline"]
    assert row["metrics"]["macro accuracy/mean of five"]["value"] == pytest.approx(1 / 3)
    assert row["metrics"]["accuracy/mean of five"]["value"] > 0.5


def test_a_finding_without_one_of_the_classes_has_no_macro_accuracy():
    items = [
        question(i, finding, label) for i, (finding, label) in enumerate((f, p) for f in FIVE for p in PROGRESSIONS)
    ]
    answers = [{"text": item.truth["progression"]} for item in items]
    assert (
        progression.score(benchmark(items), answers, **DRAW)["rows"][0]["metrics"]["macro accuracy/Edema"]["value"] == 1
    )
    less = progression.score(benchmark(items[:-1]), answers[:-1], **DRAW)
    metrics = less["rows"][0]["metrics"]
    assert metrics["macro accuracy/Edema"]["value"] is metrics["macro accuracy/mean of five"]["value"] is None
    assert metrics["accuracy/Edema"]["value"] == 1
    assert "Edema: no question with the label worsening" in less["notes"][0]


def test_per_item_tells_what_was_read():
    items = [question(0, "Edema", "improving"), question(1, "Edema", "stable")]
    rows = progression.score(benchmark(items), [{"text": "B"}, {"text": "B"}], **DRAW)["per_item"]
    assert rows[0] == {
        "id": "0",
        "finding": "Edema",
        "truth": "improving",
        "said": "improving",
        "correct": {"Edema": True},
    }
    assert rows[1]["correct"] == {"Edema": False}


def load(root, name="ms-cxr-t-progression", **options):
    return progression.load(name, root, seed=0, options=options)


def test_questions_of_ms_cxr_t(tmp_path):
    root = tree.make(tmp_path / "mimic")
    one = load(root)
    assert len(one.items) == 5 and one.kind == "generate"
    first = one.items[0]
    assert first.images == (str(root / mimic_tree.path(4)), str(root / mimic_tree.path(2))), "previous first"
    assert first.id == f"{mimic_tree.dicom(4)}>{mimic_tree.dicom(2)}:Consolidation"
    assert (first.patient, first.study) == ("p10999991", "s59999991")
    order = first.truth["order"]
    assert f"(A) {order[0]}, (B) {order[1]}, (C) {order[2]}" in first.prompt and "consolidation" in first.prompt
    assert "<image>" not in first.prompt and "stable" in order
    kept = load(root, disagreement="drop")
    assert len(kept.items) == 4 and any("1 labels on which the experts disagreed" in note for note in kept.notes)
    assert load(root, images=str(tmp_path / "films")).items[0].images[0].startswith(str(tmp_path / "films"))
    assert len(progression.load("ms-cxr-t-progression", root, limit=1, options={}).items) == 2, "a pair is not torn"


def test_disagreement_cannot_be_dropped_where_the_table_names_none(tmp_path):
    root = tree.make(tmp_path / "mimic")
    order = [column for column in tree.image_rows()[0] if not column.endswith("label_quality")]
    table = tree.write_images(root, order=order)
    with pytest.raises(UserError, match=r"v1.0.0.csv: names no label quality.*--set disagreement=keep"):
        load(root, disagreement="drop")
    assert len(load(root, table=str(table)).items) == 5


def test_an_unknown_option_is_answered_with_the_nearest(tmp_path):
    root = tree.make(tmp_path / "mimic")
    with pytest.raises(UserError, match="did you mean 'disagreement'"):
        load(root, disagrement="drop")
    with pytest.raises(UserError, match="--set disagreement=dropp: did you mean 'drop'"):
        load(root, disagreement="dropp")


def test_questions_of_a_phantom_cohort(tmp_path):
    studies = cohort.plan("test", 40, seed=3, world="balanced")
    write_studies(tmp_path / "studies.jsonl", studies)
    one = load(tmp_path, "phantom-progression")
    second = [study for study in studies if study["prior"]]
    labels = [
        (study["id"], label, study["findings"][label]["progression"])
        for study in second
        for label in FIVE
        if study["findings"][label]["progression"]
    ]
    assert [(item.study, item.truth["finding"], item.truth["progression"]) for item in one.items] == labels
    assert one.items[0].images[0].endswith(f"{second[0]['prior']}.png")
    unlabelled = len(second) - len({study for study, *_ in labels})
    assert one.fingerprint["pairs"] == len(second) and unlabelled == 1
    assert "1 pairs of films without any label were left out" in one.notes
    write_studies(tmp_path / "studies.jsonl", [study for study in studies if study["id"] != second[0]["prior"]])
    assert any("1 studies were left out: their prior" in note for note in load(tmp_path, "phantom-progression").notes)


def test_a_cohort_that_is_none(tmp_path):
    with pytest.raises(UserError, match="studies.jsonl: no such file; name a cohort folder"):
        load(tmp_path, "phantom-progression")


def test_the_order_of_options_follows_its_own_seed_and_never_that_of_the_bootstrap(tmp_path):
    root = tree.make(tmp_path / "mimic")
    first = load(root)
    second = load(root, order_seed="1")
    orders = [[item.truth["order"] for item in one.items] for one in (first, second)]
    assert orders[0] != orders[1] and second.protocol["option_order"] == "drawn for each question from seed 1"
    with pytest.raises(
        UserError, match="^--seed 1: is of the bootstrap alone; say .* --set ms-cxr-t-progression:order"
    ):
        progression.load("ms-cxr-t-progression", root, seed=1, options={})
    for told, expected in (("0", first), ("1", second)):
        assert progression.load("ms-cxr-t-progression", root, seed=1, options={"order_seed": told}) == expected
    with pytest.raises(UserError, match="^--set order_seed=-1: must be a whole number from 0$"):
        load(root, order_seed="-1")


def test_the_majority_class_is_that_of_each_finding():
    items = [question(0, "Edema", "stable"), question(1, "Edema", "stable"), question(2, "Pneumonia", "worsening")]
    row = progression.score(benchmark(items), [{"text": "stable"}] * 3, **DRAW)["rows"][1]
    assert row["metrics"]["accuracy/Edema"]["value"] == row["metrics"]["accuracy/Pneumonia"]["value"] == 1
