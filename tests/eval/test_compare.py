import json
import re

import numpy as np
import pytest

from data.errors import UserError
from data.files import dump_line
from data.findings_lexicon import FIVE as FINDINGS
from eval import compare, statistics, text_metrics
from tests.eval.cases import tables_of

FIVE = ("Edema", "Pneumonia")


def rows(n=60, *, shift=0.0, seed=0):
    """Per-item rows of one run over `n` items of n / 2 patients: correctness, scores and a text metric."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (n, 2))
    noise = np.random.default_rng(seed).normal(size=(n, 2))
    out = []
    for i in range(n):
        score = truth[i] * (0.6 + shift) + noise[i]
        out.append(
            {
                "id": f"i{i}",
                "patient": f"p{i // 2}",
                "truth": {label: int(truth[i, j]) for j, label in enumerate(FIVE)},
                "correct": {label: bool((score[j] > 0.4) == truth[i, j]) for j, label in enumerate(FIVE)},
                "score": {label: float(score[j]) for j, label in enumerate(FIVE)},
                "text_metric": {"ROUGE-L": float(0.3 + shift / 5 + 0.05 * noise[i, 0])},
            }
        )
    return out


def write(folder, items, *, name="run", protocol=None, benchmark="phantom-x", decoding=None):
    (folder / benchmark).mkdir(parents=True, exist_ok=True)
    (folder / benchmark / "per_item.jsonl").write_bytes(b"".join(map(dump_line, items)))
    result = {
        "protocol": protocol or {"task": "t"},
        "decoding": decoding or {"method": "greedy"},
        "per_item_file": f"{benchmark}/per_item.jsonl",
    }
    (folder / "results.json").write_text(json.dumps({"name": name, "benchmarks": {benchmark: result}}))
    return folder / "results.json"


@pytest.fixture
def runs(tmp_path):
    a = write(tmp_path / "a", rows(shift=1.5, seed=1), name="critique")
    return a, write(tmp_path / "b", rows(seed=2), name="learn")


def tables(found):
    return {table["group"]: table for table in found["benchmarks"]["phantom-x"]["tables"]}


def test_every_group_gets_its_test(runs):
    found = compare.compare(runs, resamples=200, rounds=500)
    a, b = rows(shift=1.5, seed=1), rows(seed=2)
    by_group = tables(found)
    assert list(by_group) == ["accuracy", "macro accuracy", "AUC", "text"]
    accuracy = {row["name"]: row for row in by_group["accuracy"]["rows"]}
    p = {
        label: statistics.mcnemar([r["correct"][label] for r in a], [r["correct"][label] for r in b]) for label in FIVE
    }
    assert {label: accuracy[label]["p"] for label in FIVE} == pytest.approx(p)
    assert {label: accuracy[label]["p_holm"] for label in FIVE} == pytest.approx(statistics.holm(p))
    assert accuracy["Edema"]["a"] == pytest.approx(np.mean([r["correct"]["Edema"] for r in a]))
    assert accuracy["mean of 2"]["difference"] == pytest.approx(
        np.mean([accuracy[label]["difference"] for label in FIVE])
    )
    assert accuracy["mean of 2"]["p"] is None and accuracy["mean of 2"]["low"] < accuracy["mean of 2"]["difference"]
    for row in by_group["AUC"]["rows"][:2]:
        label = row["name"]
        expected = statistics.delong(
            *([r[key][label] for r in run] for run, key in ((a, "truth"), (a, "score"), (b, "score")))
        )
        assert row["p"] == pytest.approx(expected["p"]) and row["difference"] == pytest.approx(expected["difference"])
    (text,) = by_group["text"]["rows"]
    assert text["p"] == pytest.approx(1 / 501) and text["difference"] > 0.2
    assert found["benchmarks"]["phantom-x"]["notes"][0].startswith("60 items come from 30 patients")


def test_macro_accuracy_is_the_mean_of_recalls(runs):
    a = rows(shift=1.5, seed=1)
    right = np.array([r["correct"]["Edema"] for r in a])
    truth = np.array([r["truth"]["Edema"] for r in a])
    row = tables(compare.compare(runs, resamples=20, rounds=20))["macro accuracy"]["rows"][0]
    assert row["a"] == pytest.approx((right[truth == 0].mean() + right[truth == 1].mean()) / 2)
    assert row["p"] is None and row["low"] < row["high"]


def progressions(**labels):
    """Per-item rows of a run that is right: finding -> its labels, one item each."""
    return [
        {"id": f"{finding}{i}", "patient": f"p{i}", "truth": label, "correct": {finding: True}}
        for finding, given in labels.items()
        for i, label in enumerate(given)
    ]


ALL = ["improving", "stable", "worsening"] * 3


@pytest.mark.parametrize(
    ("items", "undefined"),
    [
        (progressions(Edema=ALL[1:3] * 4, **dict.fromkeys(FINDINGS[:-1], ALL)), ["Edema"]),
        (progressions(**dict.fromkeys(FINDINGS[:-1], ALL)), ["Edema"]),  # a finding without any item
        (progressions(**dict.fromkeys(FINDINGS, ALL)), []),
        ([row | {"truth": row["truth"] | {"Edema": 1}} for row in rows()], ["Edema"]),
        (rows(), []),
    ],
)
def test_macro_accuracy_needs_every_class_of_every_finding(tmp_path, items, undefined):
    runs = tuple(write(tmp_path / name, items, name=name) for name in "ab")
    found = compare.compare(runs, resamples=20, rounds=20)
    table = {row["name"]: row for row in tables(found)["macro accuracy"]["rows"]}
    expected = {*undefined, "mean"} & set(table) if undefined else set()
    assert {"mean", f"mean of {len(table) - 1}"} & set(table) == {"mean" if undefined else f"mean of {len(table) - 1}"}
    assert {name for name, row in table.items() if row["a"] is row["difference"] is row["low"] is None} == expected
    assert [one for one in found["benchmarks"]["phantom-x"]["notes"] if "not defined" in one and "class" in one] == [
        "not every class is among the compared items of Edema: their macro accuracy, and the mean, are not defined"
        for _ in undefined
    ]


def test_a_run_against_itself_shows_nothing(runs):
    found = tables(compare.compare((runs[0], runs[0]), resamples=50, rounds=50))
    for table in found.values():
        for row in table["rows"]:
            assert row["difference"] == row["low"] == row["high"] == 0
            assert row["p"] in (None, 1.0)


def test_the_interval_of_a_difference_is_paired_and_by_patient(runs):
    row = tables(compare.compare(runs, resamples=300, seed=4, rounds=20))["accuracy"]["rows"][0]
    a, b = rows(shift=1.5, seed=1), rows(seed=2)
    difference = np.array([float(x["correct"]["Edema"]) - y["correct"]["Edema"] for x, y in zip(a, b, strict=True)])
    patients = [r["patient"] for r in a]
    (expected,) = statistics.bootstrap(patients, lambda c: [c @ difference / c.sum()], resamples=300, seed=4)
    assert [row["low"], row["high"]] == pytest.approx([expected["low"], expected["high"]])


def test_items_in_one_run_only_are_counted(tmp_path, runs):
    fewer = write(tmp_path / "c", rows(seed=2)[:50], name="learn")
    found = compare.compare((runs[0], fewer), resamples=20, rounds=20)
    assert found["benchmarks"]["phantom-x"]["n"] == 50
    assert "10 items are in A only and 0 in B only; they are not compared" in found["benchmarks"]["phantom-x"]["notes"]
    none = write(tmp_path / "d", [row | {"id": "other"} for row in rows()[:1]])
    with pytest.raises(UserError, match="phantom-x: the two runs have no item in common"):
        compare.compare((runs[0], none))


def test_what_must_not_be_compared_is_refused(tmp_path, runs):
    other = write(tmp_path / "c", rows(), protocol={"task": "t", "question": "another"})
    with pytest.raises(UserError, match=r"differ in their protocol \(question\)"):
        compare.compare((runs[0], other))
    more = write(tmp_path / "d", rows(), protocol={"task": "t", "teachers": "no", "meteor": "yes"})
    assert compare.compare((runs[0], more), resamples=5, rounds=5)["benchmarks"], "what only adds rows is no protocol"
    flipped = rows()
    flipped[3]["truth"] = {"Edema": 1 - flipped[3]["truth"]["Edema"], "Pneumonia": flipped[3]["truth"]["Pneumonia"]}
    with pytest.raises(UserError, match="item i3: the two runs give it another truth"):
        compare.compare((runs[0], write(tmp_path / "d", flipped)))
    with pytest.raises(UserError, match="share no benchmark"):
        compare.compare((runs[0], write(tmp_path / "e", rows(), benchmark="phantom-y")))
    (tmp_path / "f.json").write_text("{}")
    with pytest.raises(UserError, match="not a results file"):
        compare.compare((runs[0], tmp_path / "f.json"))
    (tmp_path / "s.json").write_text('{"schema": 1, "rows": []}')
    with pytest.raises(UserError, match="s.json: scores study records .*; compare runs with --benchmark"):
        compare.compare((runs[0], tmp_path / "s.json"))
    with pytest.raises(UserError, match="holds no item"):
        compare.compare((runs[0], write(tmp_path / "g", [])))


def test_a_label_with_one_class_has_no_auc_and_is_not_in_the_mean(tmp_path):
    runs = []
    for number in (1, 2):
        items = rows(seed=number)
        for item in items:
            item["truth"]["Mass"], item["score"]["Mass"] = 0, 0.5
            del item["correct"], item["text_metric"]
        runs.append(write(tmp_path / str(number), items, name=str(number)))
    edema, pneumonia, mass, mean = tables(compare.compare(tuple(runs), resamples=50))["AUC"]["rows"]
    assert mass["a"] is mass["low"] is mass["p"] is mass["p_holm"] is None
    assert mean["difference"] == pytest.approx((edema["difference"] + pneumonia["difference"]) / 2)
    assert mean["low"] < mean["high"]
    expected = statistics.holm({"Edema": edema["p"], "Pneumonia": pneumonia["p"]})
    assert [edema["p_holm"], pneumonia["p_holm"]] == list(expected.values()), "what is not defined is not counted"


GIVEN = {"predictions": "a.jsonl", "sha256": "1"}


@pytest.mark.parametrize(
    ("decodings", "note"),
    [
        (({"method": "greedy"}, {"method": "greedy"}), None),
        (({"method": "greedy"}, {"method": "sampled"}), "the two runs were decoded differently"),
        # Files are named here, which says nothing of how their answers came about.
        ((GIVEN, GIVEN | {"sha256": "2"}), "how answers of --predictions were decoded is not known"),
        (({"method": "greedy"}, GIVEN), "how answers of --predictions were decoded is not known"),
    ],
)
def test_a_note_says_what_is_known_of_the_decoding(tmp_path, decodings, note):
    a, b = (write(tmp_path / str(i), rows(8), decoding=decoding) for i, decoding in enumerate(decodings))
    notes = compare.compare((a, b), resamples=5, rounds=5)["benchmarks"]["phantom-x"]["notes"]
    assert [one for one in notes if "decoded" in one] == [one for one in notes if note and one.startswith(note)]
    assert any("decoded" in one for one in notes) == (note is not None)


def test_text_metrics_are_exchanged_by_patient(tmp_path):
    # Four patients with ten items each: exchanged item by item, the difference would look far too certain.
    runs = []
    for number, lead in enumerate(((0.2, 0.2, 0.2, -0.1), (0.0, 0.0, 0.0, 0.0))):
        items = [
            {"id": f"{p}-{i}", "patient": f"p{p}", "truth": "d", "text_metric": {"ROUGE-L": 0.3 + lead[p] + i / 1000}}
            for p in range(4)
            for i in range(10)
        ]
        runs.append(write(tmp_path / str(number), items, name=str(number)))
    found = compare.compare(tuple(runs), resamples=50, rounds=2000)
    (row,) = tables(found)["text"]["rows"]
    assert not found["benchmarks"]["phantom-x"]["notes"], "nothing is said of tests that are not in the tables"
    # Of the 16 exchanges of whole patients, |+-.2 +-.2 +-.2 +-.1| reaches .5 in four.
    assert row["difference"] == pytest.approx(0.125) and row["p"] == pytest.approx(4 / 16, abs=0.03)


def texts(n, **more):
    metric = {"ROUGE-L": 0.5, text_metrics.CIDER: 1.0}
    return [{"id": f"i{i}", "patient": f"p{i}", "text_metric": metric} | more for i in range(n)]


def test_texts_of_other_references_are_not_compared_and_of_unknown_ones_with_a_note(tmp_path):
    runs = {name: write(tmp_path / name, texts(4, truth=name), name=name) for name in "ab"}
    with pytest.raises(UserError, match="item i0: the two runs give it another truth"):
        compare.compare((runs["a"], runs["b"]))
    older = write(tmp_path / "older", texts(4))
    for pair, unknown in (((runs["a"], older), 4), ((older, older), 4), ((runs["a"], runs["a"]), 0)):
        found = compare.compare(pair, resamples=5, rounds=5)["benchmarks"]["phantom-x"]
        assert sum(note.startswith("4 texts were scored before") for note in found["notes"]) == bool(unknown)


def test_cider_is_compared_over_the_same_items_only(tmp_path):
    whole, part = (write(tmp_path / str(n), texts(n, truth="d")) for n in (4, 3))
    for pair, compared in (((whole, whole), True), ((whole, part), False), ((part, whole), False)):
        found = compare.compare(pair, resamples=5, rounds=5)
        names = [row["name"] for row in tables(found)["text"]["rows"]]
        assert names == ["ROUGE-L", text_metrics.CIDER][: 1 + compared]
        said = [note for note in found["benchmarks"]["phantom-x"]["notes"] if note.startswith("CIDEr is not compared")]
        assert bool(said) != compared


def test_labels_that_one_run_has_no_study_of_are_left_out_and_named(tmp_path):
    whole, part = rows(), rows(seed=2)[:20]
    for row in whole:
        row["truth"]["Mass"], row["correct"]["Mass"] = 0, True
    runs = write(tmp_path / "a", whole), write(tmp_path / "b", part)
    for pair in (runs, runs[::-1]):
        found = compare.compare(pair, resamples=20, rounds=20)
        assert [row["name"] for row in tables(found)["macro accuracy"]["rows"]] == [*FIVE, f"mean of {len(FIVE)}"]
        assert tables(found)["macro accuracy"]["rows"][-1]["a"] is not None
        assert "scored in one run only, not compared: Mass" in found["benchmarks"]["phantom-x"]["notes"]


def test_a_negative_seed_is_refused():
    with pytest.raises(UserError, match="^--seed -1: must be at least 0$"):
        compare.main(["nowhere/a.json", "nowhere/b.json", "--seed", "-1"])


def test_prints_and_draws_a_page_that_loads_nothing(tmp_path, runs, capsys):
    out = tmp_path / "page" / "compare.html"
    compare.main([str(runs[0]), str(runs[1]), "--out", str(out), "--resamples", "50", "--rounds", "50"])
    printed = capsys.readouterr().out
    assert "| accuracy | n | critique | learn | difference | 95 % interval | p | p (Holm) |" in printed
    page = out.read_text()
    assert "<svg" in page and "critique" in page and "Research use only" in page
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|<script", page) and tables_of(page) == printed.count("test: ")
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert numbers["a"] == "critique" and numbers["benchmarks"]["phantom-x"]["n"] == 60


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (
            "a/results.html",
            "a/results.html: its numbers go to .*a/results.json, which is an input file; choose another",
        ),
        ("link/results.htm", "its numbers go to .*link/results.json, which is an input file"),
        ("b/results", "its numbers go to .*b/results.json, which is an input file"),
        ("a/named", "a/named: is the input file; choose another"),
        ("compare.json", "compare.json: must be the page, .*; name it PAGE.html"),
        ("compare.JSON", "compare.JSON: must be the page"),
        ("a", "a: must be the page"),
    ],
)
def test_neither_page_nor_numbers_replace_an_input_or_each_other(tmp_path, runs, monkeypatch, out, message):
    first = runs[0].rename(runs[0].with_name("named")) if out == "a/named" else runs[0]
    (tmp_path / "link").symlink_to(tmp_path / "a")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(compare, "compare", lambda *_, **__: pytest.fail("refused before anything is computed"))
    with pytest.raises(UserError, match=f"^--out .*{message}"):
        compare.main([str(first), str(runs[1]), "--out", str(tmp_path / out)])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_numbers_replace_those_of_a_comparison_alone(tmp_path, runs):
    third = write(tmp_path / "c", rows(), name="other")
    before = third.read_bytes()
    words = [*map(str, runs), "--resamples", "5", "--rounds", "5", "--out"]
    with pytest.raises(UserError, match=r"its numbers go to .*c/results\.json, which is no comparison; choose another"):
        compare.main([*words, str(tmp_path / "c/results.html")])
    assert third.read_bytes() == before
    for _ in range(2):
        compare.main([*words, str(tmp_path / "c/compared.html")])


def test_runs_of_one_name_are_told_apart(tmp_path, runs):
    twin = write(tmp_path / "c", rows(), name="critique")
    found = compare.compare((runs[0], twin), resamples=10, rounds=10)
    assert (found["a"], found["b"]) == ("A: critique", "B: critique")


def test_bleu_is_compared_as_a_corpus_metric_and_not_as_a_mean():
    def items(counts):
        return {str(i): {"patient": str(i), "text_metric": {"BLEU-1": one}} for i, one in enumerate(counts)}

    # Words of the answer, of the reference, unigrams, matches. As means of texts both would have .5.
    a, b = items([[1, 1, 1, 1], [9, 9, 9, 0]]), items([[1, 1, 1, 0], [9, 9, 9, 9]])
    table = compare.compare_benchmark(a, b, seed=0, resamples=20, rounds=200)["tables"][0]
    (row,) = table["rows"]
    assert (row["a"], row["b"]) == (pytest.approx(0.1), pytest.approx(0.9))
    assert row["difference"] == pytest.approx(-0.8)
    # Exchanging one of the two texts makes the difference 1, exchanging both or none leaves it at .8: never smaller.
    assert table["test"] == "approximate randomisation by patient" and row["p"] == 1
    # Means of the counts would be equal. Only exchanging none or all of four such texts leaves the difference: 2 / 16.
    a, b = items([[10, 10, 10, 4]] * 4), items([[9, 10, 9, 6]] * 4)
    (row,) = compare.compare_benchmark(a, b, seed=0, resamples=20, rounds=2000)["tables"][0]["rows"]
    assert row["p"] == pytest.approx(2 / 16, abs=0.03)
