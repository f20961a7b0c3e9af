import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from data.errors import UserError
from eval import zeroshot
from eval.items import Benchmark, Item
from tests.eval import sets_tree
from tests.eval.cases import study


def benchmark(labels, *, films=40, share=0.4, seed=1, patients=None):
    """`films` films with random truth, and answers that lean towards it."""
    rng = np.random.default_rng(seed)
    items, answers = [], []
    for film in range(films):
        for label in labels:
            present = int(rng.random() < share)
            patient = f"p{film // 2}" if patients is None else patients[film]
            items.append(
                Item(f"{film}#{label}", patient, "", (f"/{film}.png",), label, {"label": label, "present": present})
            )
            score = 1 / (1 + np.exp(-(present + rng.normal())))
            answers.append({"p_yes": round(float(score), 2), "mass": float(rng.uniform(0.2, 1))})
    return Benchmark("phantom-zeroshot", "yesno", tuple(items), {}, {}, ()), answers


def test_auc_and_macro_are_those_of_scikit_learn():
    found, answers = benchmark(["Edema", "Mass", "Hernia"])
    scored = zeroshot.score(found, answers, seed=0, resamples=100)
    metrics = scored["rows"][0]["metrics"]
    expected = {}
    for label in ("Edema", "Mass", "Hernia"):
        rows = [
            (i.truth["present"], a["p_yes"])
            for i, a in zip(found.items, answers, strict=True)
            if i.truth["label"] == label
        ]
        expected[label] = roc_auc_score(*zip(*rows, strict=True))
        cell = metrics[f"AUC/{label}"]
        assert cell["value"] == pytest.approx(expected[label], abs=1e-12) and cell["n"] == 40
        assert cell["low"] < cell["value"] < cell["high"] and cell["skipped_resamples"] == 0
    assert metrics["AUC/macro"]["value"] == pytest.approx(np.mean(list(expected.values())))
    assert metrics["AUC/macro"]["n"] == 40
    assert metrics["AUC/macro"]["low"] < metrics["AUC/macro"]["value"] < metrics["AUC/macro"]["high"]
    width = metrics["AUC/macro"]["high"] - metrics["AUC/macro"]["low"]
    assert width < metrics["AUC/Edema"]["high"] - metrics["AUC/Edema"]["low"]
    low = sum(a["mass"] < 0.25 for a in answers)
    assert metrics["answers/share with mass below 0.25"]["value"] == pytest.approx(low / 120)
    assert any(note.startswith(f"{low} of 120 answers put less than 0.25") for note in scored["notes"])
    assert scored["per_item"][0] == {
        "id": "0#Edema",
        "score": {"Edema": answers[0]["p_yes"]},
        "truth": {"Edema": found.items[0].truth["present"]},
        "mass": answers[0]["mass"],
    }


def test_the_interval_is_the_bootstrap_by_patient():
    found, answers = benchmark(["Edema"])
    cell = zeroshot.score(found, answers, seed=3, resamples=200)["rows"][0]["metrics"]["AUC/Edema"]
    patients = np.array([item.patient for item in found.items])
    truth = np.array([item.truth["present"] for item in found.items])
    scores = np.array([answer["p_yes"] for answer in answers])
    names = np.unique(patients)
    rng, values = np.random.default_rng(3), []
    for _ in range(200):
        counts = dict(zip(names, rng.multinomial(len(names), np.full(len(names), 1 / len(names))), strict=True))
        values.append(roc_auc_score(truth, scores, sample_weight=[counts[p] for p in patients]))
    assert [cell["low"], cell["high"]] == pytest.approx(list(np.quantile(values, [0.025, 0.975])))


def test_a_label_with_one_class_is_counted_out():
    found, answers = benchmark(["Edema"])
    empty, more = benchmark(["Mass"], share=0.0)
    both = Benchmark("x", "yesno", (*found.items, *empty.items), {}, {}, ())
    scored = zeroshot.score(both, [*answers, *more], seed=0, resamples=50)
    metrics = scored["rows"][0]["metrics"]
    mass = metrics["AUC/Mass"]
    assert mass["value"] is mass["low"] is mass["high"] is None and mass["n"] == 40
    assert metrics["AUC/macro"]["value"] == metrics["AUC/Edema"]["value"]
    assert scored["notes"][0].startswith("1 of 2 labels have one class only") and scored["notes"][0].endswith("Mass")
    nothing = zeroshot.score(empty, more, seed=0, resamples=50)
    assert nothing["rows"][0]["metrics"]["AUC/macro"]["value"] is None


def test_skipped_resamples_of_a_rare_label_are_counted():
    found, answers = benchmark(["Edema"], films=20, share=0.0)
    items = [*found.items]
    items[0] = Item("0#Edema", "p0", "", ("/0.png",), "q", {"label": "Edema", "present": 1})
    scored = zeroshot.score(Benchmark("x", "yesno", tuple(items), {}, {}, ()), answers, seed=0, resamples=400)
    cell = scored["rows"][0]["metrics"]["AUC/Edema"]
    assert abs(cell["skipped_resamples"] - 400 * 0.9**10) < 45 and cell["value"] is not None
    single = benchmark(["Edema"], films=3, share=0.0, patients=["a", "b", "c"])
    items = [*single[0].items]
    items[0] = Item("0#Edema", "a", "", ("/0.png",), "q", {"label": "Edema", "present": 1})
    few = zeroshot.score(Benchmark("x", "yesno", tuple(items), {}, {}, ()), single[1], seed=0, resamples=400)
    assert (
        few["rows"][0]["metrics"]["AUC/Edema"]["skipped_resamples"]
        == few["rows"][0]["metrics"]["AUC/macro"]["skipped_resamples"]
    )


def test_a_question_without_its_film_gives_one_half():
    found, _ = benchmark(["Edema", "Mass"])
    same = [{"p_yes": 0.7 if item.truth["label"] == "Edema" else 0.2, "mass": 1.0} for item in found.items]
    metrics = zeroshot.score(found, same, seed=0, resamples=50)["rows"][0]["metrics"]
    assert metrics["AUC/macro"]["value"] == metrics["AUC/macro"]["low"] == metrics["AUC/macro"]["high"] == 0.5
    assert metrics["answers/mean P(yes)"]["value"] == pytest.approx(0.45)


def test_limit_counts_films_and_the_question_can_be_chosen(tmp_path):
    root = sets_tree.nih(tmp_path)
    found = zeroshot.load("chestx-ray14", root, limit=2, options={"question": "Is there {finding}?"})
    assert len(found.items) == 2 * 14 and found.items[0].prompt == "Is there atelectasis?"
    assert found.protocol["question"] == "Is there {finding}?"
    for bad in ("Is there anything?", "{finding} or {finding}?", "{x} {finding}"):
        with pytest.raises(UserError, match="must have {finding} once"):
            zeroshot.load("chestx-ray14", root, options={"question": bad})


def test_the_phantom_cohort_offers_the_same(make_file, tmp_path):
    studies = [
        study(0, {"Edema": None}),
        study(1, {"Pneumothorax": "left", "Cardiomegaly": None}),
        study(2, {}, split="train"),
    ]
    make_file(studies)
    found = zeroshot.load("phantom-zeroshot", tmp_path, options={})
    present = {item.id for item in found.items if item.truth["present"]}
    assert present == {"test-0#Edema", "test-1#Pneumothorax", "test-1#Cardiomegaly"}
    assert len(found.items) == 2 * 6 and {item.patient for item in found.items} == {"test-patient-0"}
    assert found.items[0].images[0] == str(tmp_path / "films" / "test-0.png")
    assert found.fingerprint["positives"]["Edema"] == 1


def test_a_resample_without_a_rare_label_has_no_macro_auc():
    found, answers = benchmark(["Edema", "Mass"], films=20)
    items = [
        Item(i.id, i.patient, "", i.images, "q", {"label": "Mass", "present": int(i.id == "0#Mass")})
        if i.truth["label"] == "Mass"
        else i
        for i in found.items
    ]
    scored = zeroshot.score(Benchmark("x", "yesno", tuple(items), {}, {}, ()), answers, seed=0, resamples=200)
    metrics = scored["rows"][0]["metrics"]
    skipped = {name: metrics[f"AUC/{name}"]["skipped_resamples"] for name in ("Mass", "Edema", "macro")}
    assert skipped["macro"] == skipped["Mass"] > skipped["Edema"] == 0, "never a mean over fewer labels"


def test_every_question_shows_the_film_that_it_is_about(tmp_path):
    found = zeroshot.load("chestx-ray14", sets_tree.nih(tmp_path), limit=2, options={"prefix": "a\\nb"})
    assert len({item.images for item in found.items[:14]}) == 1 and len({item.images for item in found.items}) == 2
    assert found.protocol["answer_prefix"] == "a\nb"
