import json

import pytest

from data.errors import UserError
from eval import phantom
from eval.presence import FIVE
from tests.eval.cases import ALL_CLEAR, report, study, trajectory

REFUSAL = "I'm sorry, but I can't help with interpreting medical images."


def cohort():
    """Four test films (edema on two), two teachers: "good" right but for one refusal, "blind" always clear."""
    edema = report(Edema="present")
    test = [
        study(0, {"Edema": None}, [trajectory("good", edema), trajectory("blind", ALL_CLEAR)], consensus=edema),
        study(1, {"Edema": None}, [trajectory("good", edema), trajectory("blind", ALL_CLEAR)], consensus=edema),
        study(2, {}, [trajectory("good", ALL_CLEAR), trajectory("blind", ALL_CLEAR)], consensus=ALL_CLEAR),
        study(3, {}, [trajectory("good", REFUSAL, "refused"), trajectory("blind", ALL_CLEAR)], consensus=ALL_CLEAR),
    ]
    train = [study(i, {"Pneumonia": "left"} if i else {}, split="train") for i in range(3)]
    return train, test


def rows_by_name(results):
    return {row["name"]: row for row in results["rows"]}


def test_rows_of_everyone_on_the_same_films():
    train, test = cohort()
    good = [report(Edema="present"), report(Edema="present"), ALL_CLEAR, ALL_CLEAR]
    results = phantom.evaluate(test, {"learn": [ALL_CLEAR] * 4, "critique": good}, train=train)
    rows = rows_by_name(results)
    assert [r["kind"] for r in results["rows"]] == ["teacher", "teacher", "baseline", "consensus", "student", "student"]
    assert {r["n"] for r in results["rows"]} == {4}
    assert rows["blind"]["mean_accuracy"] == pytest.approx(0.9)
    assert rows["good"]["mean_accuracy"] == pytest.approx(0.75), "the refusal is wrong for all five"
    assert rows["good"]["malformed_rate"] == 0.25
    assert rows["consensus"]["mean_accuracy"] == 1.0
    assert rows["student, critique"]["stage"] == "critique" and rows["student, learn"]["stage"] == "learn"
    assert rows["student, critique"]["beats_all_teachers"] and not rows["student, learn"]["beats_all_teachers"]
    first = results["comparisons"][0]
    assert (first["a"], first["b"]) == ("student, critique", "student, learn")
    assert first["mean_accuracy_difference"] == pytest.approx(0.1)


def test_a_second_round_is_a_row_with_its_consensus_and_is_compared_with_the_first():
    _, test = cohort()
    good = [report(Edema="present"), report(Edema="present"), ALL_CLEAR, ALL_CLEAR]
    said = {"learn": [ALL_CLEAR] * 4, "second round": good, "critique": [*good[:1], *[ALL_CLEAR] * 3], "other": good}
    results = phantom.evaluate(test, said, rounds={"second round": [*good[:3], None]})
    rows = rows_by_name(results)
    assert rows["student, second round"]["stage"] == "second round" and "stage" not in rows["other"]
    again = rows["consensus, second round"]
    assert again["kind"] == "consensus" and again["mean_accuracy"] == pytest.approx(0.75) and again["malformed"] == 1
    pairs = {(c["a"], c["b"]): c["mean_accuracy_difference"] for c in results["comparisons"]}
    assert pairs["student, second round", "student, critique"] == pytest.approx(0.05)
    assert pairs["student, critique", "student, learn"] == pytest.approx(0.05)
    assert ("student, second round", "student, learn") not in pairs
    assert list(pairs)[2:] == [
        (name, "blind")
        for name in ("consensus", "consensus, second round", "student, learn", "student, second round")
        + ("student, critique", "other")
    ]


def test_the_consensus_of_another_round_is_matched_by_id_and_must_be_whole(make_file, tmp_path):
    train, test = cohort()
    again = [one | {"consensus": {"text": f"No edema. {one['id']}", "strategy": "vote"}} for one in reversed(test)]
    del again[0]["consensus"]
    path = make_file(again, "again.jsonl")
    assert phantom.read_consensus(path, test) == [f"No edema. test-{i}" for i in range(3)] + [None]
    results = run(make_file, tmp_path, "--consensus", f"second round={path}")
    assert rows_by_name(results)["consensus, second round"]["malformed"] == 1
    with pytest.raises(UserError, match=r"again.jsonl: 3 of the 7 studies that are scored are not there, as 'train-0'"):
        phantom.read_consensus(path, train + test)
    with pytest.raises(UserError, match="again.jsonl: none of the studies that are scored has a consensus"):
        phantom.read_consensus(path, test[-1:])
    with pytest.raises(UserError, match="--consensus again.jsonl: write NAME=FILE"):
        run(make_file, tmp_path, "--consensus", "again.jsonl")


def test_majority_class_is_counted_on_the_training_films():
    train, test = cohort()
    results = phantom.evaluate(test, {}, train=train)
    row = rows_by_name(results)["majority class"]
    # Pneumonia is on 2 of 3 training films and on no test film: always said, always wrong.
    assert row["accuracy"] == {
        "Consolidation": 1.0,
        "Pleural Effusion": 1.0,
        "Pneumonia": 0.0,
        "Pneumothorax": 1.0,
        "Edema": 0.5,
    }
    assert row["balanced_accuracy"]["Edema"] == 0.5
    assert row["malformed_rate"] == 0.0


def test_an_even_split_is_no_majority():
    train = [study(0, {"Edema": None}, split="train"), study(1, {}, split="train")]
    assert phantom.majority_reading(train, FIVE, "present")["Edema"][0] == "absent"


def test_absent_rows_are_said_never_silent():
    _, test = cohort()
    for one in test:
        del one["consensus"]
    results = phantom.evaluate(test, {}, train=[])
    assert not {"consensus", "majority class"} & set(rows_by_name(results))
    assert len(results["notes"]) == 2


def test_a_film_without_consensus_or_trajectory_counts_as_malformed():
    _, test = cohort()
    del test[0]["consensus"]
    test[1]["trajectories"] = test[1]["trajectories"][:1]
    rows = rows_by_name(phantom.evaluate(test, {}))
    assert rows["consensus"]["malformed"] == 1
    assert rows["blind"]["malformed"] == 1 and rows["blind"]["n"] == 4


def test_the_status_decides_whether_a_text_is_an_answer():
    texts = [("ok", 0), ("truncated", 0), ("refused", 1), ("filtered", 1), ("empty", 1)]
    for status, malformed in texts:
        one = [study(0, {}, [trajectory("t", ALL_CLEAR, status)])]
        assert rows_by_name(phantom.evaluate(one, {}))["t"]["malformed"] == malformed, status


def run(make_file, tmp_path, *extra):
    train, test = cohort()
    path = make_file(train + test)
    answers = tmp_path / "critique.jsonl"
    answers.write_text("".join(json.dumps({"id": s["id"], "text": s["consensus"]["text"]}) + "\n" for s in test))
    out = tmp_path / "results.json"
    phantom.main(["--studies", str(path), "--predictions", f"critique={answers}", "--out", str(out), *extra])
    return json.loads(out.read_text())


def test_results_schema(make_file, tmp_path, capsys):
    stages = tmp_path / "stages.json"
    stages.write_text('{"stages": {"cohort": {"seconds": 3.5}, "learn": {"seconds": 10}}}')
    results = run(make_file, tmp_path, "--seed", "5", "--seconds", "learn=142", "--stages-file", str(stages))
    assert results["seed"] == 5 and results["seconds"] == {"cohort": 3.5, "learn": 142.0}
    assert results["versions"]["python"] and results["environment"]["cpus"]
    for row in results["rows"]:
        assert row["kind"] in ("teacher", "baseline", "consensus", "student")
        assert set(row["accuracy"]) == set(row["balanced_accuracy"]) == set(FIVE)
        assert row["mean_accuracy"] == pytest.approx(sum(row["accuracy"].values()) / 5)
        low, high = row["mean_accuracy_ci95"]
        assert low <= row["mean_accuracy"] <= high
        assert {"n", "malformed_rate", "laterality", "other_findings", "mean_balanced_accuracy"} <= set(row)
    majority = rows_by_name(results)["majority class"]
    assert majority["train_studies"] == 3 and majority["accuracy"]["Pneumonia"] == 0.0
    assert str(tmp_path) not in json.dumps(results), "results name no path of the machine"
    printed = capsys.readouterr().out
    assert "Mean accuracy above every teacher: consensus; student, critique" in printed


def test_same_input_same_numbers(make_file, tmp_path):
    one, two = run(make_file, tmp_path), run(make_file, tmp_path)
    for results in (one, two):
        results["environment"].pop("made")
    assert one == two


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "no prediction"),
        ('{"id": "test-0", "text": "No edema."}\n', "3 of 4 studies have no answer"),
        ('{"id": "other", "text": "No edema."}\n', ":1: id other is not among"),
        ('{"id": "test-0", "text": "a"}\n{"id": "test-0", "text": "b"}\n', ":2: id test-0 stands here twice"),
        ('{"id": "test-0"}\n', ":1: a prediction needs"),
        ('{"id": "test-0", "text": "No edema. \\ud83d"}\n', ":1: the text holds half a character"),
    ],
)
def test_bad_predictions(tmp_path, lines, message):
    path = tmp_path / "p.jsonl"
    path.write_text(lines)
    with pytest.raises(UserError, match=message):
        phantom.read_predictions(path, cohort()[1])


def test_predictions_are_matched_by_id_not_by_order(tmp_path):
    test = cohort()[1]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"id": s["id"], "text": s["id"]}) + "\n" for s in reversed(test)))
    assert phantom.read_predictions(path, test) == [s["id"] for s in test]


def test_studies_without_findings_are_left_out_counted_and_said(make_file, tmp_path, capsys):
    train, test = cohort()
    del test[1]["findings"]
    path, answers, out = make_file(train + test), tmp_path / "p.jsonl", tmp_path / "results.json"
    words = ["--studies", str(path), "--predictions", f"x={answers}", "--out", str(out)]
    phantom.main([*words, "--check"])
    said = '1 of 4 studies of split "test" have no findings and are left out of the score'
    assert said in capsys.readouterr().err and not out.exists(), "before any answer is there"
    answers.write_text("".join(json.dumps({"id": s["id"], "text": s["consensus"]["text"]}) + "\n" for s in test))
    phantom.main(words)
    results = json.loads(out.read_text())
    assert {row["n"] for row in results["rows"]} == {3} and results["studies"]["scored"] == 3
    assert said in results["notes"] and f"Note: {said}." in capsys.readouterr().out
    without = [s for s in test if "findings" in s]
    texts = {"x": [s["consensus"]["text"] for s in without]}
    assert results["rows"] == json.loads(json.dumps(phantom.evaluate(without, texts, train=train)["rows"]))


def test_numbers_do_not_need_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert phantom.environment()["commit"] is None


def test_a_file_without_anyone_to_score_is_refused_before_anything_is_written(make_file, tmp_path):
    path = make_file([study(i, {"Edema": None}) for i in range(3)])
    with pytest.raises(UserError, match="studies.jsonl: nobody to score: .*--predictions NAME=FILE"):
        phantom.main(["--studies", str(path), "--out", str(tmp_path / "r.json")])
    assert not (tmp_path / "r.json").exists()


def test_the_table_names_its_films(make_file, tmp_path, capsys):
    train = [study(i, {}, [trajectory("good", ALL_CLEAR)], split="train") for i in range(3)]
    phantom.main(["--studies", str(make_file(train)), "--split", "train", "--out", str(tmp_path / "r.json")])
    assert "over 3 films of split train, the same for every row" in capsys.readouterr().out


def test_a_split_without_any_findings_is_refused(make_file, tmp_path):
    test = cohort()[1]
    for one in test[:2]:
        del one["findings"]
    words = ["--studies", str(make_file(test)), "--out", str(tmp_path / "r.json")]
    phantom.main([*words, "--check"])
    with pytest.raises(UserError, match='studies.jsonl: none of the 2 studies of split "test" has findings; make'):
        phantom.main([*words, "--check", "--limit", "2"])


@pytest.mark.parametrize("name", ["good", "Blind", "consensus", "majority class"])
def test_a_student_under_the_name_of_another_row_is_refused(make_file, tmp_path, name):
    train, test = cohort()
    words = ["--studies", str(make_file(train + test)), "--out", str(tmp_path / "r.json")]
    with pytest.raises(UserError, match=f"^the name {name} is that of a teacher or another row; give another"):
        phantom.main([*words, "--predictions", f"{name}={tmp_path / 'p.jsonl'}", "--check"])


def test_a_negative_seed_is_refused_before_a_file_is_read(tmp_path):
    with pytest.raises(UserError, match="^--seed -1: must be at least 0$"):
        phantom.main(["--studies", str(tmp_path / "none"), "--out", str(tmp_path / "r.json"), "--seed", "-1"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "r.json", "--table", "./r.json"], "--table ./r.json: is the file of --out; choose another"),
        (["--out", "s.json", "--stages-file", "s.json"], "--out s.json: is the input file; choose another"),
        (["--out", "s.json"], r"--out s.json: holds the results of benchmarks \(eval.run\); choose another"),
    ],
)
def test_an_output_replaces_neither_the_other_nor_what_is_not_its_own(make_file, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.json").write_text('{"benchmarks": {}, "stages": {}}')
    before = (tmp_path / "s.json").read_bytes()
    with pytest.raises(UserError, match=f"^{message}$"):
        phantom.main(["--studies", str(make_file(cohort()[1])), *words])
    assert (tmp_path / "s.json").read_bytes() == before and not (tmp_path / "r.json").exists()


@pytest.mark.parametrize("bad", [["learn"], ["=x"], ["learn=a", "learn=b"], [" =x"], ["a\nb=x"]])
def test_bad_named_files(bad):
    with pytest.raises(UserError, match="--predictions"):
        phantom.named_files(bad)


def test_an_empty_split_is_an_error(make_file, tmp_path):
    # Not every caller has an option --split.
    with pytest.raises(UserError, match='^s.jsonl: no study of split "validate"; name') as error:
        phantom.split_of(cohort()[1], "validate", "s.jsonl")
    assert "--split" not in str(error.value)
    path = make_file(cohort()[1])
    with pytest.raises(UserError, match=f'^{path}: no study of split "validate"; check --split and --studies'):
        phantom.main(["--studies", str(path), "--split", "validate", "--out", str(tmp_path / "results.json")])
