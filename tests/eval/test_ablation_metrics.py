import json
import math

import pytest

from apo.consensus import dawid_skene
from data.errors import UserError
from data.phantom.cohort import plan
from eval import presence
from eval.ablation_metrics import (
    accuracy_by_looks,
    conflict_by_film,
    content_words,
    drift_strata,
    errors,
    fit_style,
    in_consensus_form,
    main,
    read_all,
    result_metrics,
    reward_metrics,
    rounded,
    training_curve,
)
from eval.phantom import evaluate
from eval.phantom import main as phantom_main
from tests.eval.cases import report, study, trajectory


def compared(train=120, validate=30):
    studies = [
        one
        for split, n in (("train", train), ("validate", validate))
        for one in plan(split, n, seed=0, world="balanced")
    ]
    for one, consensus in zip(studies, dawid_skene(studies), strict=True):
        one["consensus"] = consensus
    return studies


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Left pleural effusion. No pulmonary edema.", True),
        ("Left  pleural effusion.\nNo pulmonary edema.", True),
        ("No pulmonary edema. Left pleural effusion.", False),  # its order is fixed
        ("There is a left pleural effusion.", False),
        ("Left pleural effusion. Left pleural effusion.", False),
        ("I cannot help.", False),
        ("", False),
    ],
)
def test_consensus_form(text, expected):
    assert in_consensus_form(text) is expected


def test_every_consensus_has_its_own_form():
    assert all(in_consensus_form(one["consensus"]["text"]) for one in compared(40, 0))


def test_errors_by_hand():
    truths = [
        presence.read_truth(study(n, truth)) for n, truth in enumerate([{"Edema": None}, {}, {"Pneumonia": "left"}])
    ]
    answers = [presence.read_answer(report(Pneumonia="present")), presence.read_answer(report(Edema="present")), None]
    found = errors(truths, answers)
    assert found["hallucinated"] == pytest.approx(2 / 3) and found["missed"] == pytest.approx(2 / 3)
    assert found["hallucination_rate"] == pytest.approx(2 / 13) and found["miss_rate"] == 1.0


def test_drift_strata_by_hand():
    edema, none = report(Edema="present"), report()
    said = [(none, none, none, none), (edema, edema, none, none), (edema, none, none, "I cannot help.")]
    films = [
        study(n, {"Edema": None}, [trajectory(name, text) for name, text in zip("abcd", texts, strict=True)])
        for n, texts in enumerate(said)
    ]
    teachers = {name: read_all(texts) for name, texts in zip("abcd", zip(*said, strict=True), strict=True)}
    conflict = conflict_by_film(list(teachers.values()))
    assert conflict == pytest.approx([0, 0.1, 1 / 15])  # 2 of 4 and 1 of 3 in the minority, on one finding of five
    truths = [presence.read_truth(film) for film in films]
    strata = drift_strata(truths, teachers, {"student": read_all([edema, edema, none])})
    for one in strata.values():
        assert one["accuracy"].keys() == {"a", "b", "c", "d", "student"}
        one["accuracy"] = {name: one["accuracy"][name] for name in ("student", "a")}
    assert list(strata) == ["low", "middle", "high"]
    low, middle, high = strata.values()
    assert [one["n"] for one in (low, middle, high)] == [1, 1, 1]
    assert low["accuracy"] == {"student": 1.0, "a": pytest.approx(0.8)} and low["conflict"] == 0
    assert middle["accuracy"] == {"student": pytest.approx(0.8), "a": 1.0}
    assert high["accuracy"] == {"student": 1.0, "a": 1.0}
    assert drift_strata(truths[:2], {}, {}) == {}


def test_looks_by_hand():
    films = [study(0, {"Edema": None}), study(1, {"Cardiomegaly": None}), study(2, {"Edema": None})]
    films[0]["findings"]["Edema"]["severity"] = "small"
    films[2]["findings"]["Edema"]["severity"] = "large"
    said = {"misled": [report(), report(Edema="present"), report(Edema="present")], "deaf": ["", "", ""]}
    truths = [presence.read_truth(film) for film in films]
    found = accuracy_by_looks(films, truths, {name: read_all(texts) for name, texts in said.items()})
    assert found["misleading"] == {"n": 2, "accuracy": {"misled": 0.0, "deaf": 0.0}}
    assert found["plain"] == {"n": 13, "accuracy": {"misled": 1.0, "deaf": 0.0}}
    none = accuracy_by_looks(films[2:], truths[2:], {})
    assert none["misleading"]["n"] == 0
    nobody = accuracy_by_looks(films[2:], truths[2:], {"student": read_all([report()])})
    assert nobody["misleading"]["accuracy"] == {"student": None}, "of no pair there is no accuracy"


def test_training_curve_and_displacement():
    log = [
        {"step": 10 * n, "loss": 1.0, "rewards/chosen": -0.1 * n, "rewards/rejected": -n, "logps/chosen": -50.0 - n}
        for n in range(1, 51)
    ]
    found = training_curve([*log, {"step": 500, "eval_loss": 2.0}], beta=0.1)
    assert found["displacement_chosen"] == pytest.approx(-48.0)  # mean of steps 460 to 500, over beta
    assert found["displacement_rejected"] == pytest.approx(-480.0)
    assert found["first"]["logps/chosen"] == pytest.approx(-53.0)
    assert len(found["curve"]["step"]) == 20 and found["curve"]["step"][-1] == 500
    assert training_curve([], 0.1) == {}
    assert training_curve([{"step": 1, "loss": 2.0}], 0.1)["displacement_chosen"] is None  # supervised: no rewards


def test_style_tells_teachers_from_the_consensus_but_not_what_is_written_in_its_form():
    from data.variants import change

    studies = compared()
    _, auc = fit_style(studies)
    assert auc > 0.95
    change(studies, "consensus-style")
    _, auc = fit_style(studies)
    assert auc < 0.7
    content = [
        study(n, {}, [trajectory("a", "No edema.")], split=split, consensus="Left effusion.")
        for split in ("train", "validate")
        for n in range(4)
    ]
    assert fit_style(content)[1] == 0.5, "what is said is no style"
    assert {"effusion", "left", "no"} <= content_words() and "small" not in content_words()
    assert fit_style([]) == (None, None)


def score(policy, reference=-10.0, tokens=10):
    return {"tokens": tokens, "policy": policy, "reference": reference}


def test_reward_metrics_by_hand():
    texts = {"right": report(Edema="present"), "wrong": report(), "worst": report(Pneumonia="present")}
    one = study(0, {"Edema": None}, [trajectory(*item) for item in texts.items()], consensus=report(Edema="present"))
    row = {
        "id": one["id"],
        "consensus": score(-5.0),
        "teachers": {"right": score(-9.0, tokens=30), "wrong": score(-13.0, tokens=20), "worst": score(-20.0)},
        "own": score(-7.0, tokens=6),
    }
    found = reward_metrics([row], [one], None)
    assert found["margin_nats"] == pytest.approx((4 + 8 + 15) / 3)
    assert found["margin_errors"] == pytest.approx(1.0) and found["margin_length"] == pytest.approx(1.0)
    assert found["beats_all"] == 1.0 and found["margin_style"] is None
    assert found["kl"] == 3.0 and found["kl_per_token"] == 0.5


def test_reward_metrics_without_anything():
    found = reward_metrics(
        [{"id": "test-0", "consensus": score(-5.0), "teachers": {}, "own": None}], [study(0, {})], None
    )
    assert found["kl"] is found["margin_nats"] is found["beats_all"] is None


def test_results_of_eval_phantom_are_read():
    films = [
        study(n, {"Edema": None}, [trajectory("a", report()), trajectory("b", report(Edema="present"))])
        for n in range(4)
    ]
    train = [study(n, {}, split="train") for n in range(3)]
    results = evaluate(films, {"student": [report(Edema="present")] * 4}, train=train, resamples=20)
    found = result_metrics(results)
    assert found["mean_accuracy"] == 1.0 and found["best_teacher"] == 1.0
    assert found["teachers"] == {"a": pytest.approx(0.8), "b": 1.0}
    assert found["majority_class"] == pytest.approx(0.8) and "consensus" not in found
    assert found["laterality"] is None and found["laterality_n"] == 0


def test_without_answers_the_consensus_is_scored_as_a_student_would_be(make_file, tmp_path):
    texts = ["No pulmonary edema.", "Pulmonary edema.", "Pulmonary edema.", None]
    films = [study(n, {"Edema": None}, [trajectory("a", report())]) for n in range(4)]
    for film, text in zip(films, texts, strict=True):
        if text:
            film["consensus"] = {"text": text, "strategy": "vote"}
    results, made, answers = (tmp_path / name for name in ("results.json", "metrics.json", "answers.jsonl"))
    studies = make_file([study(9, {}, split="train"), *films])
    read = ["--studies", str(studies), "--results", str(results), "--out", str(made)]
    phantom_main(["--studies", str(studies), "--out", str(results)])
    main(read)
    alone = json.loads(made.read_text())
    assert alone["mean_accuracy"] == pytest.approx((0.8 + 1 + 1 + 0) / 4) and alone["malformed_rate"] == 0.25
    assert alone["missed"] == 0.5 and alone["consensus"]["mean_accuracy"] == alone["mean_accuracy"]
    rows = [{"id": film["id"], "text": text or ""} for film, text in zip(films, texts, strict=True)]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    phantom_main(["--studies", str(studies), "--out", str(results), "--predictions", f"student={answers}"])
    main([*read, "--answers", str(answers)])
    assert json.loads(made.read_text()) == alone, "as a student that says the same"
    phantom_main(["--studies", str(studies), "--out", str(results)])
    with pytest.raises(UserError, match=f"{results}: holds 0 rows of kind student, not one"):
        main([*read, "--answers", str(answers)])
    blank = study(8, {}, split="validate") | {"findings": None}
    unlabelled = make_file([*films, blank], "unlabelled.jsonl")
    with pytest.raises(UserError, match=f"{unlabelled}: study validate-8: no findings to score against; name"):
        main(["--studies", str(unlabelled), *read[2:]])
    results.unlink()
    with pytest.raises(UserError, match=f"{results}: not readable .*make it with python -m eval.phantom"):
        main(read)


def test_what_is_not_finite_is_null():
    assert rounded({"a": [math.nan, 1.0000049], "b": (math.inf, 2)}) == {"a": [None, 1.0], "b": [None, 2]}


def test_two_voices_are_enough_for_a_conflict():
    said = [[report(Edema="present")], [report()], ["I cannot help."]]
    assert conflict_by_film([read_all(one) for one in said]) == pytest.approx([0.1])
    assert conflict_by_film([read_all(one) for one in said[1:]]) == pytest.approx([0.0])


def test_margins_against_style_and_the_hardest_trajectory():
    import numpy as np

    class Given:
        def scores(self, texts):
            return np.array([{"C": 0.0, "A": -1.0, "B": -2.0, "D": -5.0}[text[0]] for text in texts])

    said = [trajectory(name, f"{name} no edema.") for name in "ABD"]
    one = study(0, {}, said, consensus="C no edema.")
    row = {
        "id": one["id"],
        "consensus": score(-5.0),
        "teachers": {"A": score(-4.0), "B": score(-9.0), "D": score(-20.0)},
        "own": score(-7.0, tokens=6),
    }
    found = reward_metrics([row, row | {"own": score(-9.0, tokens=10)}], [one], Given())
    assert found["beats_all"] == 0.0, "one trajectory is above the consensus"
    assert found["margin_style"] == pytest.approx(1.0), (
        "the more the consensus stands out in style, the larger the margin"
    )
    assert found["kl"] == 2.0 and found["kl_per_token"] == pytest.approx(4 / 16), "by token, not the mean of two rates"


def test_style_is_judged_on_films_that_it_was_not_fitted_on():
    texts = {"train": ("Hello there.", "Goodbye now."), "validate": ("Goodbye now.", "Hello there.")}
    films = [
        study(n, {}, [trajectory("a", other)], split=split, consensus=agreed)
        for split, (agreed, other) in texts.items()
        for n in range(4)
    ]
    assert fit_style(films)[1] == 0.0


def test_answers_that_were_cut_off_are_counted(make_file, tmp_path):
    films = [study(n, {}, [trajectory("a", report())]) for n in range(4)]
    studies, results, made = make_file(films), tmp_path / "results.json", tmp_path / "metrics.json"
    answers = tmp_path / "answers.jsonl"
    reasons = ("length", "stop", "stop", "stop")
    rows = [{"id": f["id"], "text": report(), "finish_reason": r} for f, r in zip(films, reasons, strict=True)]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    phantom_main(["--studies", str(studies), "--out", str(results), "--predictions", f"student={answers}"])
    main(["--studies", str(studies), "--results", str(results), "--out", str(made), "--answers", str(answers)])
    assert json.loads(made.read_text())["cut_off"] == 0.25
