import math

import pytest

from data.errors import UserError
from data.files import append_jsonl
from scripts import ablate_report
from scripts.ablate import NAMED
from scripts.ablate_report import ANEW, ANEW_MEANS, APART_MEANS, BEGIN, END, NOTHING, cell, fixed, main, replaced
from scripts.ablation_figures import figures, sweep_points
from scripts.ablation_rows import Sizes, digest, read_rows, resolved
from scripts.ablation_tables import baselines, blocks, compare, compared_alone, mean_of, paired

ROWS = read_rows()
FULL = Sizes()


def line(row, seed, accuracy, *, world="published", best=0.7, sizes=FULL, **more):
    config = resolved(ROWS[row], sizes, ROWS)
    steps = {"step": [1, 2, 3], "logps/chosen": [-50.0, -49.0, -45.0], "logps/rejected": [-90.0, -95.0, -99.0]}
    metrics = {
        "mean_accuracy": accuracy,
        "mean_balanced_accuracy": accuracy - 0.1,
        "teachers": {"a": best - 0.1, "b": best},
        "best_teacher": best,
        "majority_class": 0.6,
        "consensus": {"mean_accuracy": 0.95},
        "laterality": None,
        "training": {"displacement_chosen": 5.0, "curve": steps},
    }
    return {
        "world": world,
        "row": row,
        "seed": seed,
        "config": digest(config),
        "commit": "c" * 40,
        "dirty": False,
        "made_by": [{"commit": "c" * 40, "dirty": False, "code": "x"}],
        "after": [],
        "resolved": {k: config[k] for k in NAMED if k in config},
        "metrics": metrics | more,
        "seconds": 100.0,
    }


def five(row, accuracies, **more):
    return [line(row, seed, accuracy, **more) for seed, accuracy in enumerate(accuracies)]


LEDGER = [
    *five("pl_nll", [0.90, 0.92, 0.94, 0.91, 0.93]),
    *five("pl", [0.80, 0.85, 0.84, 0.83, 0.83]),
    *five("learn", [0.50, 0.52]),
    *five("n3", [0.88]),
]


def test_mean_and_t_interval_by_hand():
    found = mean_of({0: 0.1, 1: 0.2, 2: 0.3})
    reach = 4.302653 * 0.1 / math.sqrt(3)
    assert found == (3, pytest.approx(0.2), pytest.approx(0.2 - reach), pytest.approx(0.2 + reach))
    assert mean_of({7: 0.4}) == (1, 0.4, None, None) and mean_of({}) is None
    assert mean_of({7: 0.4, 8: 0.6}) == (2, 0.5, None, None), "two seeds give no interval worth the name"


def test_paired_test_uses_the_seeds_that_both_have():
    difference, p = paired({0: 1.0, 1: 3.0, 2: 2.5, 9: 100.0}, {0: 0.0, 1: 1.0, 2: 1.5, 8: -100.0})
    assert difference.n == 3 and difference.value == pytest.approx(4 / 3)
    assert p == pytest.approx(0.05719, abs=1e-4)  # t = 4 with 2 degrees of freedom
    equal = dict.fromkeys(range(3), 0.0), dict.fromkeys(range(3), 1.0)
    assert paired(*equal)[1] is None, "without spread there is no test"
    assert paired({0: 1.0, 1: 3.0}, {0: 0.0, 1: 1.0}) == ((2, 1.5, None, None), None)
    assert paired({0: 1.0}, {0: 0.5})[1] is None


def test_blocks_take_current_lines_of_each_world_and_size():
    small = Sizes(train=200)
    lines = [*LEDGER, *five("pl", [0.7], world="drift"), *five("pl", [0.6], sizes=small)]
    lines += [line("pl", 9, 0.1) | {"config": "old"}, line("pl", 9, 0.1) | {"row": "gone"}]
    found, left = blocks(lines, ROWS)
    assert [(b.world, b.sizes) for b in found] == [("drift", Sizes()), ("published", Sizes()), ("published", small)]
    assert left == 2 and set(found[1].lines) == {"pl_nll", "pl", "learn", "n3"} and len(found[1].lines["pl"]) == 5


def test_baselines_are_what_no_row_trains():
    (block,), _ = blocks(LEDGER, ROWS)
    found = baselines(block)
    assert {name: values[0] for name, values in found.items()} == {
        "best teacher": 0.7,
        "majority class": 0.6,
        "teacher a": pytest.approx(0.6),
        "teacher b": 0.7,
        "consensus dawid_skene": 0.95,
    }
    assert len(found["best teacher"]) == 5


def test_a_consensus_without_a_student_is_a_baseline_and_no_row(tmp_path):
    accuracies = {"compare_dawid_skene": [0.90, 0.91, 0.92, 0.93, 0.94], "compare_vote": [0.60, 0.61, 0.62, 0.63, 0.64]}
    alone = [
        line(name, seed, number, consensus={"mean_accuracy": number})
        for name, numbers in accuracies.items()
        for seed, number in enumerate(numbers)
    ]
    (block,), _ = blocks([*LEDGER, *alone], ROWS)
    assert set(block.lines) == {"pl_nll", "pl", "learn", "n3"} and set(block.compared) == set(accuracies)
    assert baselines(block)["consensus vote"] == dict(enumerate(accuracies["compare_vote"]))
    text = document(tmp_path / "a", [*LEDGER, *alone])
    assert (
        "| consensus vote |  | 62.0 (60.0 to 64.0) |" in text and "`compare_vote`" not in text.partition("have none")[0]
    )
    assert "| world | best teacher | majority class | consensus dawid_skene | consensus vote | " in text
    assert "| 92.0 (90.0 to 94.0) | 62.0 (60.0 to 64.0) | +22.0 (20.0 to 24.0; p <.001, Holm <.001) |" in text
    assert (
        "results/phantom_consensus.svg" in text and "<svg" in (tmp_path / "a/results/phantom_consensus.svg").read_text()
    )
    plain = document(tmp_path / "b", LEDGER)
    assert "Consensus by world" not in plain and "phantom_consensus" not in plain
    (row,) = [one for one in plain.splitlines() if one.startswith("| `pl` |")][:1]
    assert row in text.splitlines(), "the tests of the rows are not corrected for it"
    only = document(tmp_path / "c", alone)
    assert "Beside accuracy" not in only and "### World published" in only
    assert "23 runs of 1 commit(s)" in text and f"Of {len(ROWS)} rows 4 have 5 seeds, 2 have fewer" in text


def test_holm_over_the_rows_of_a_block():
    (block,), _ = blocks([*LEDGER, *five("pl_length", [0.91, 0.92, 0.95, 0.92, 0.92])], ROWS)
    reference = {seed: one["metrics"]["mean_accuracy"] for seed, one in block.lines["pl_nll"].items()}
    found = compare(block, {name: reference for name in block.lines if name != "pl_nll"})
    tested = {name: one for name, one in found.items() if one.p is not None}
    assert set(found) == {"pl", "learn", "n3", "pl_length"} and found["n3"].p is None
    smallest = min(tested, key=lambda name: tested[name].p)
    assert tested[smallest].adjusted == pytest.approx(len(tested) * tested[smallest].p)


def write(folder, lines):
    (folder / "results").mkdir()
    (folder / "results" / "l.jsonl").touch()
    for one in lines:
        append_jsonl(folder / "results" / "l.jsonl", one)
    (folder / "evidence.md").write_text(f"Head\n\n{BEGIN}\nold\n{END}\n\nTail\n")
    return ["--ledger", str(folder / "results" / "l.jsonl"), "--doc", str(folder / "evidence.md")]


def document(folder, lines):
    folder.mkdir()
    main(write(folder, lines))
    return (folder / "evidence.md").read_text()


def test_the_document(tmp_path, capsys):
    words = write(tmp_path, [*LEDGER, *five("n1", [0.87])])
    assert main([*words, "--check"]) == 1 and "old" in (tmp_path / "evidence.md").read_text()
    assert main(words) == 0
    text = (tmp_path / "evidence.md").read_text()
    assert text.startswith(f"Head\n\n{BEGIN}") and text.endswith(f"{END}\n\nTail\n") and "\nold\n" not in text
    assert "| `pl_nll` | " in text and "| 92.0 (90.0 to 94.0) |" in text
    assert "| 51.0, n=2 |" in text and "88.0, n=1" in text
    assert "| -9.0 (-10.8 to -7.2; p <.001, Holm <.001) |" in text  # spread .0141 over 5 seeds
    assert "14 runs of 1 commit(s); 0 were made with uncommitted changes." in text
    rows = len(ROWS)
    assert f"Of {rows} rows 2 have 5 seeds, 3 have fewer, {rows - 5} have none: `beta_0.01`, " in text
    for kind in ("accuracy", "displacement", "sweeps"):
        name = f"results/phantom_published_{kind}.svg"
        assert f"]({name})" in text and "<svg" in (tmp_path / name).read_text()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    assert main([*words, "--check"]) == 0 and main(words) == 0
    assert {path: path.read_bytes() for path in before} == before, "the same numbers give the same bytes"


def test_rows_stand_against_learning_on_the_consensus(tmp_path):
    assert "Against learning" not in document(tmp_path / "without", LEDGER)
    scores = [0.88, 0.9, 0.87, 0.91, 0.89]
    text = document(tmp_path / "with", [*LEDGER, *five("sft_consensus_flops", scores)])
    table = text.split("Against learning on the consensus")[1].split("Beside accuracy")[0]
    (block,), _ = blocks(LEDGER, ROWS)
    critique = {seed: one["metrics"]["mean_accuracy"] for seed, one in block.lines["pl_nll"].items()}
    difference, _ = paired(critique, dict(enumerate(scores)))
    assert f"| `pl_nll` | {100 * difference.value:+.1f} (" in table
    assert "`n3`" not in table, "one seed is no test"


def test_an_empty_ledger_says_so(tmp_path):
    words = write(tmp_path, [])
    main(words)
    assert NOTHING in (tmp_path / "evidence.md").read_text()


def test_a_ledger_that_is_not_there_is_refused(tmp_path):
    words = write(tmp_path, [])
    before = (tmp_path / "evidence.md").read_text()
    (tmp_path / "results" / "l.jsonl").unlink()
    with pytest.raises(UserError, match=r"l\.jsonl: no such ledger; .*scripts/ablate\.sh"):
        main(words)
    assert (tmp_path / "evidence.md").read_text() == before


def test_lines_left_out_are_counted(tmp_path):
    words = write(tmp_path, [*LEDGER, line("pl", 7, 0.2) | {"config": "old"}])
    main(words)
    assert "1 line(s) of the ledger are left out" in (tmp_path / "evidence.md").read_text()


def test_a_document_without_markers_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no lines"):
        replaced("text", "x", tmp_path / "d.md")


def test_a_sweep_takes_the_reference_at_its_own_value():
    lines = [*LEDGER, *five("beta_0.3", [0.8, 0.82])]
    (block,), _ = blocks(lines, ROWS)
    assert [(value, len(found)) for value, found in sweep_points(block, ROWS, "beta")] == [(0.1, 5), (0.3, 2)]
    assert [value for value, _ in sweep_points(block, ROWS, "N")] == [3.0, 7.0]
    (again,), _ = blocks([*lines, *five("pl_nll_again", [0.8] * 5)], ROWS)
    assert [(value, len(found)) for value, found in sweep_points(again, ROWS, "beta")] == [(0.1, 10), (0.3, 2)]
    assert sweep_points(block, ROWS, "learning rate") == []
    picture = ("published", "phantom_published_sweeps.svg")
    assert picture not in figures([block], ROWS), "of two values there is no picture"
    (whole,), _ = blocks([*lines, *five("n1", [0.87])], ROWS)
    assert picture in figures([whole], ROWS)


def test_the_shipped_document_is_what_the_ledger_gives(capsys):
    assert ablate_report.main(["--check"]) == 0, "run python -m scripts.ablate_report"


def test_a_small_negative_number_keeps_its_sign():
    values = (-0.05, -0.001, 0.0, 0.051, -0.0849)
    assert [cell(mean_of({0: value}), 1, 2, 1) for value in values] == ["-0.05", "0.00", "0.00", "0.05", "-0.08"]
    assert cell(mean_of({0: -0.0004}), 100, 1, 1) == "0.0" and cell(None, 1, 2, 1) == ""


def test_halves_are_rounded_up_and_not_by_chance():
    shares = (0.8705, 0.8765, 0.8795, 0.0005, -0.0015, 0.87649)
    assert [fixed(100 * share, 1) for share in shares] == ["87.1", "87.7", "88.0", "0.1", "-0.2", "87.6"]
    assert fixed(3.14, 1, "+") == "+3.1" and fixed(-0.04, 1, "+") == "+0.0"


def test_a_number_of_fewer_seeds_than_its_row_says_so(tmp_path):
    thirds = {"drift": {"low": {"accuracy": {"student": 0.8}}}}
    text = document(
        tmp_path / "d", [line("pl", 0, 0.8), line("pl", 1, 0.8, **thirds), line("pl_nll", 1, 0.9, **thirds)]
    )
    assert "| `pl` | 80.0 (n=1) |" in text and "| `pl_nll` | 80.0 |" in text


def test_what_misleads_has_a_table_where_it_was_measured(tmp_path):
    looks = {"looks": {"misleading": {"accuracy": {"student": 0.4, "consensus": 0.5}}}}
    assert "films mislead" not in document(tmp_path / "without", [line("pl", 0, 0.8)])
    text = document(tmp_path / "with", [line("pl", 0, 0.8, **looks), line("pl_nll", 0, 0.9)])
    rows = text.partition("films mislead")[2].partition(":\n\n")[2].partition("\n\n")[0].split("\n")
    assert rows[0] == "| row | misleading % | plain % | consensus, misleading % | consensus, plain % |"
    assert rows[2:] == ["| `pl` | 40.0 |  | 50.0 |  |"], "and no line for a row without"


def test_a_row_from_another_training_of_learn_is_marked(tmp_path):
    reference = line("pl_nll", 0, 0.9) | {"ranks": 2, "start": "a"}
    same = line("pl", 0, 0.8) | {"ranks": 1, "start": "a"}
    assert "`pl`°" not in document(tmp_path / "same", [reference, same]), "the checkpoint decides where it is known"
    other = document(tmp_path / "other", [reference, same | {"start": "b"}])
    assert "| `pl`° |" in other and f"\n\n{ANEW} {ANEW_MEANS}\n" in other
    del same["start"]
    assert "`pl`°" in document(tmp_path / "unknown", [reference, same])
    again = line("pl_nll_again", 0, 0.88) | {"ranks": 1, "start": "b"}
    both = document(tmp_path / "both", [reference, again, same | {"start": "b"}])
    assert "| `pl` |" in both and "| -8.0 (no test) |" in both, "held against what started where it did"
    assert "| `pl_nll_again`° |" in both, "what retraining moves"
    first = document(tmp_path / "first", [again, reference, same | {"start": "a"}])
    assert "| -10.0 (no test) |" in first, "and against pl_nll where that did"
    unsure = {name: value for name, value in reference.items() if name != "start"} | {"ranks": 1}
    assert "| -8.0 (no test) |" in document(tmp_path / "sure", [unsure, again, same | {"start": "b"}]), "known is surer"
    second = line("two_rounds", 0, 0.9) | {"after": ["pl_nll"], "ranks": 1, "start": "z"}
    assert "`two_rounds`°" in document(tmp_path / "second", [reference, second]), "its start is no Learn"
    known = document(tmp_path / "known", [reference, second | {"learn": "a"}])
    assert "| `two_rounds` |" in known, "where it is known, Learn decides"
    sighted = line("seeing_pl_nll", 0, 0.9) | {"ranks": 1, "start": "s"}
    assert "`seeing_pl_nll`°" not in document(tmp_path / "seeing", [reference, sighted]), "another Learn by design"


def test_the_supervised_table_marks_other_trainings_of_learn(tmp_path):
    def text(folder, start):
        tuned = [one | {"start": "a"} for one in five("sft_consensus_flops", [0.88, 0.9, 0.87, 0.91, 0.89])]
        others = [one | {"start": "a"} for one in LEDGER if one["row"] == "pl_nll"]
        others[3] |= {"start": start}
        whole = document(tmp_path / folder, [*tuned, *others])
        return whole.split("Against learning on the consensus")[1].split("Beside accuracy")[0]

    assert ANEW not in text("same", "a")
    assert f"){ANEW} |" in text("other", "b") and f"{ANEW} {APART_MEANS}" in text("again", "b")


def test_where_a_run_comes_from(tmp_path):
    clean, dirty = ({"commit": name, "dirty": name == "d", "code": "x"} for name in "cd")
    plain = line("pl", 0, 0.8)
    del plain["made_by"]
    told = [plain | {"seed": 1, "made_by": [clean, dirty]}, plain | {"seed": 2, "made_by": [clean]}]
    text = document(tmp_path / "told", told)
    assert "2 runs of 2 commit(s); 1 were made with uncommitted changes." in text
    text = document(tmp_path / "old", [*told, plain, plain | {"seed": 3, "dirty": None}])
    assert "4 runs of 3 commit(s); 1 were made with uncommitted changes, of 1 it is not known (of 2 only the" in text
    text = document(tmp_path / "part", [plain | {"made_by": [None, clean]}])
    assert "(of 1 only the commit is known at which they were begun)" in text, "a stage without a note"


def test_comparisons_across_worlds(tmp_path):
    assert "### Across rows" not in document(tmp_path / "without", five("pl", [0.8, 0.85, 0.84]))
    gains = {"correlated": ([0.8, 0.8, 0.8], [0.86, 0.87, 0.85]), "looks": ([0.8, 0.8, 0.8], [0.81, 0.83, 0.83])}
    lines = [
        one
        for world, (first, second) in gains.items()
        for one in (*five("n1", first, world=world), *five("two_rounds_n1", second, world=world))
    ]
    text = document(tmp_path / "with", [*lines, line("n1", 4, 0.1, world="looks")])
    table = text.split("### Across rows and worlds")[1]
    (apart,) = [one for one in table.splitlines() if "correlated minus looks" in one and "misleading" not in one]
    by_hand, p = paired({0: 0.05, 1: 0.04, 2: 0.02}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert f"| {100 * by_hand.value:+.1f} ({100 * by_hand.low:.1f} to {100 * by_hand.high:.1f}; p .0" in apart and p
    assert "published" not in table.split("runs of")[0], "and none without its rows"


def test_a_figure_that_is_not_the_ledgers_is_found(tmp_path, capsys):
    words = write(tmp_path, LEDGER)
    main(words)
    picture = tmp_path / "results/phantom_published_accuracy.svg"
    picture.write_text("x")
    assert main([*words, "--check"]) == 1 and str(picture) in capsys.readouterr().out and picture.read_text() == "x"
    picture.unlink()
    assert main([*words, "--check"]) == 1


def test_a_seed_that_agrees_does_not_hide_one_that_does_not():
    from scripts.ablation_tables import apart, by_seed, own_reference, same_start

    lines = [line("pl_nll", seed, 0.9) | {"start": "a"} for seed in range(2)]
    lines += [line("pl", seed, 0.8) | {"start": start} for seed, start in enumerate("ba")]
    lines += [line("seeing_pl_nll", seed, 0.0) | {"start": "s"} for seed in range(2)]
    (block,), _ = blocks(lines, ROWS)
    assert own_reference(block, "pl") == ({0: 0.9, 1: 0.9}, True), "the second seed began where its reference did"
    assert apart(block, "pl", "pl_nll") and not apart(block, "seeing_pl_nll", "pl_nll"), "another Learn by design"
    assert by_seed(block.lines["seeing_pl_nll"], "mean_accuracy") == {0: 0.0, 1: 0.0}, "0 is a number"
    second = line("two_rounds", 0, 0.9) | {"after": ["pl_nll"], "start": "a"}
    assert same_start(second, lines[0]) == 1, "what a second round starts from is no Learn"


def test_comparisons_take_the_seeds_of_all_terms_and_cohorts_of_full_size():
    from scripts.ablation_pairs import compared_pairs

    lines = [*five("n1", [0.8] * 3, world="looks"), *five("two_rounds_n1", [0.81, 0.83, 0.83, 0.9], world="looks")]
    small = {"world": "looks", "sizes": Sizes(train=200)}
    lines += [*five("n1", [0.1] * 3, **small), *five("two_rounds_n1", [0.9, 0.8, 0.7], **small)]
    found, _ = blocks(lines, ROWS)
    difference = compared_pairs(found)["second round minus first, looks"].difference
    assert difference.n == 3 and difference.value == pytest.approx(0.07 / 3)


def test_a_consensus_that_was_told_labels_stands_beside_the_one_that_was_not(tmp_path):
    rows = {"compare_labels": 0.92, "compare_vote": 0.6, "compare_dawid_skene": 0.7}
    lines = [line(name, 0, number, consensus={"mean_accuracy": number}) for name, number in rows.items()]
    lines.append(line("n1_labels", 1, 0.9, consensus={"mean_accuracy": 0.93}))
    found, left = blocks(lines, ROWS)
    assert left == 0 and compared_alone(found) == [
        "consensus dawid_skene",
        "consensus dawid_skene, 20 labelled",
        "consensus vote",
    ]
    known = baselines(found[0])
    assert known["consensus dawid_skene, 20 labelled"] == {0: 0.92, 1: 0.93}
    assert known["consensus dawid_skene"] == {0: 0.7}
    table = document(tmp_path / "a", lines).split("### Consensus by world")[1]
    assert "| consensus dawid_skene | consensus dawid_skene, 20 labelled | consensus vote |" in table


def test_a_second_round_gives_no_baseline_of_its_consensus():
    again = five("two_rounds", [0.9] * 5, consensus={"mean_accuracy": 0.99}, teachers={"a": 0.6, "student": 0.9})
    (block,), _ = blocks([*LEDGER, *(one | {"after": ["pl_nll"]} for one in again)], ROWS)
    found = baselines(block)
    assert set(found["consensus dawid_skene"].values()) == {0.95} and "teacher student" not in found
