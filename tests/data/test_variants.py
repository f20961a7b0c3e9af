import json

import numpy as np
import pytest

from data import manifest
from data.errors import UserError
from data.findings import read_findings, summarise
from data.findings_lexicon import FIVE
from data.phantom import styles
from data.phantom.cohort import plan
from data.records import read_studies, write_studies
from data.rows import apo_row, ok_trajectories
from data.variants import add_voice, change, contradicts, error_weights, learn_consensus, main, plain_text

CONSENSUS = "Left pleural effusion. No edema."
TEXTS = {
    "agrees": "There is a left pleural effusion.",
    "denies": "No pleural effusion.",
    "wrong-side": "Right pleural effusion. No edema.",
    "silent": "No edema.",
    "extra": "Left effusion. Pulmonary edema.",
}


def study(number=0, texts=TEXTS, split="train", consensus=CONSENSUS, audit=None):
    return {
        "id": f"{split}-{number}",
        "patient": f"p{number}",
        "source": "phantom",
        "split": split,
        "images": ["a.png"],
        "prompt": "Look. <image>",
        "trajectories": [{"teacher": name, "text": text, "status": "ok"} for name, text in texts.items()],
        "consensus": {"text": consensus, "strategy": "vote", "audit": audit or {}},
    }


def cohort(count=30, split="train"):
    """Studies of the simulated teachers, each with an empty consensus text of its own."""
    studies = plan(split, count, seed=0, world="refusing")
    for one in studies:
        one["consensus"] = {"text": "No pneumothorax.", "strategy": "vote"}
    return studies


def speakers(one):
    return [t["teacher"] for t in ok_trajectories(one)]


def read(text):
    return summarise(read_findings(text))


def test_all_changes_nothing():
    studies, before = cohort(), json.dumps(cohort())
    counts = change(studies, "all")
    assert json.dumps(studies) == before
    assert counts["negatives before"] == counts["negatives after"] == sum(len(speakers(s)) for s in studies)


def test_first_n_is_nested_drawn_anew_for_each_film_and_seeded():
    drawn = {}
    for n in (1, 2, 3, 7):
        studies = cohort()
        change(studies, f"first-{n}", seed=4)
        drawn[n] = [set(speakers(one)) for one in studies]
        assert all(
            len(names) == min(n, len(full)) for names, full in zip(drawn[n], map(speakers, cohort()), strict=True)
        )
    assert all(a <= b <= c <= d for a, b, c, d in zip(*drawn.values(), strict=True))
    assert len({name for names in drawn[1] for name in names}) > 3, "not always the same teacher"
    one, other = cohort(), cohort()[::-1]
    change(one, "one", seed=4)
    change(other, "first-1", seed=4)
    assert [set(speakers(s)) for s in one] == [set(speakers(s)) for s in other[::-1]] == drawn[1]
    other = cohort()
    change(other, "one", seed=5)
    assert [set(speakers(s)) for s in other] != drawn[1]


def test_conflicting_keeps_those_that_contradict():
    one = study()
    counts = change([one], "conflicting")
    assert speakers(one) == ["denies", "wrong-side", "silent", "extra"]
    assert counts["negatives after"] == 4 and counts["studies without a negative"] == 0


@pytest.mark.parametrize(
    ("said", "consensus", "expected"),
    [
        ("Possible edema.", "Pulmonary edema.", False),
        ("Pleural effusion.", "Left pleural effusion.", False),
        ("Bilateral pleural effusion.", "Left pleural effusion.", True),
        ("No edema.", "No edema. No pneumothorax.", False),
    ],
)
def test_contradiction(said, consensus, expected):
    assert contradicts(read(said), read(consensus)) is expected


def test_random_film_keeps_every_teachers_texts_and_no_film_its_own():
    def films():
        return [study(n, {name: f"{name} says {n}" for name in ("a", "b", "c")[: 2 + n % 2]}) for n in range(12)]

    studies = films()
    change(studies, "random-film", seed=1)
    after = {}
    for new, old in zip(studies, films(), strict=True):
        assert speakers(new) == speakers(old)
        for mine, theirs in zip(ok_trajectories(new), ok_trajectories(old), strict=True):
            assert mine["text"] != theirs["text"] and mine["text"].startswith(mine["teacher"])
            after.setdefault(mine["teacher"], []).append(int(mine["text"].split()[-1]))
    assert sorted(after["a"]) == list(range(12)) and sorted(after["c"]) == list(range(1, 12, 2))
    assert [n - film for film, n in enumerate(after["a"])] != [after["a"][0]] * 12, "not simply the next film"
    other = films()
    change(other, "random-film", seed=2)
    assert other != studies
    with pytest.raises(UserError, match="one ok trajectory in a split"):
        change([study()], "random-film")


def test_random_film_never_crosses_splits():
    train, validate = cohort(), cohort(20, "validate")
    texts = {
        split: {t["text"] for s in part for t in ok_trajectories(s)} for split, part in (("a", train), ("b", validate))
    }
    change([*train, *validate], "random-film")
    assert {t["text"] for s in train for t in ok_trajectories(s)} == texts["a"]


def test_consensus_style_keeps_what_is_said_and_takes_the_wording():
    studies, before = cohort(), cohort()
    change(studies, "consensus-style")
    for new, old in zip(studies, before, strict=True):
        for mine, theirs in zip(ok_trajectories(new), ok_trajectories(old), strict=True):
            assert read(mine["text"]) == read(theirs["text"]), mine["teacher"]
            claims = [c for c in read_findings(theirs["text"]) if c.label in FIVE or c.state == "present"]
            unique = list({c.label: c for c in claims}.values())
            plain = styles.teacher_text(unique, "consensus", np.random.default_rng(0))
            assert sorted(mine["text"].split(". ")) == sorted(plain.split(". ")) or len(unique) != len(claims)
    assert plain_text({}) == ""
    denied = {"Atelectasis": ("absent", None), "Edema": ("absent", None), "Fracture": ("uncertain", None)}
    assert plain_text(denied) == "No pulmonary edema. Possible fracture."


def test_an_unreadable_trajectory_is_left_out_and_counted():
    one = study(texts={"a": "Hello there.", "b": "No edema."})
    counts = change([one], "consensus-style")
    assert speakers(one) == ["b"] and counts["negatives without a readable claim, left out"] == 1


def test_refusals_become_negatives():
    studies, before = cohort(), cohort()
    counts = change(studies, "refusals-kept")
    refused = sum(t["status"] == "refused" for s in before for t in s["trajectories"])
    assert counts["refusals that are negatives now"] == refused > 3
    assert counts["negatives after"] - counts["negatives before"] == refused


def test_weights_by_hand():
    audit = {"findings": {"Pleural Effusion": {"posterior": 0.9}, "Edema": {"posterior": 0.2}}}
    weights = error_weights(study(audit=audit))
    # the five: effusion .9, edema .2, the other three absent; wrong side counts 1
    raw = {"agrees": 0.3, "denies": 1.1, "wrong-side": 1.2, "silent": 1.1, "extra": 0.9}
    mean = sum(raw.values()) / 5
    assert weights == pytest.approx({name: value / mean for name, value in raw.items()}, abs=1e-6)


def test_a_hedge_is_half_wrong():
    texts = {"hedges": "Left pleural effusion. Possible edema.", "wrong": "Left pleural effusion. Pulmonary edema."}
    weights = error_weights(study(texts=texts))
    assert weights["wrong"] == pytest.approx(2 * weights["hedges"], abs=1e-5)


@pytest.mark.parametrize("findings", [5, {"Edema": 5}, {"Edema": {"posterior": "x"}}, None])
def test_an_audit_of_any_shape_leaves_the_decision(findings):
    assert error_weights(study(audit={"findings": findings})) == error_weights(study(audit={}))


def test_weights_reach_the_row_in_the_order_of_its_negatives():
    one = study()
    change([one], "all", weights="error")
    row = apo_row(one, "/")
    weights = error_weights(study())
    assert row["negative_weights"] == [weights[name] for name in TEXTS]
    assert min(row["negative_weights"]) > 0
    assert "negative_weights" not in apo_row(study(), "/")


def test_learning_the_consensus():
    studies = [study(), study(1, split="test")]
    learn_consensus(studies)
    assert [t["text"] for t in studies[0]["trajectories"]] == [CONSENSUS]
    assert len(studies[1]["trajectories"]) == len(TEXTS), "what is scored stays"


def test_fewer_films_are_the_first_and_only_training_ones(tmp_path):
    studies = [study(0), study(1, split="test"), study(2), study(3, split="validate"), study(4)]
    path, out = tmp_path / "studies.jsonl", tmp_path / "few.jsonl"
    write_studies(path, studies)
    main([str(path), "--out", str(out), "--films", "2"])
    assert list(read_studies(out)) == studies[:4]
    with pytest.raises(UserError, match="--films 4: the file has 3 studies of split train"):
        main([str(path), "--out", str(out), "--films", "4"])
    with pytest.raises(UserError, match="--films"):
        main([str(path), "--out", str(out), "--films", "0"])


def test_a_voice_is_added_from_several_files(tmp_path):
    studies = [study(0), study(1, split="test"), study(2)]
    files = []
    for name, rows in (("a", [{"id": "train-0", "text": "No edema."}]), ("b", [{"id": "test-1", "text": " "}])):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = add_voice(studies, "student", files)
    wanted = {"answers of student added": 1, "answers of student not heard: empty": 1, "studies without an answer": 1}
    assert counts == wanted
    assert [one["trajectories"][-1]["status"] for one in studies[:2]] == ["ok", "empty"]
    with pytest.raises(UserError, match="choose another name"):
        add_voice(studies, "student", files)
    with pytest.raises(UserError, match="answered twice"):
        add_voice([study(0)], "student", [files[0], files[0]])


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"text": "No edema.", "finish_reason": "stop"}, "ok"),
        ({"text": "No edema. No", "finish_reason": "length"}, "truncated"),
        ({"text": "No <|vision_start|> edema.", "finish_reason": "stop"}, "empty"),
    ],
)
def test_a_voice_that_breaks_off_or_babbles_is_counted_and_not_heard(tmp_path, answer, status):
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "train-0", **answer}) + "\n")
    studies = [study(0)]
    counts = add_voice(studies, "student", [tmp_path / "a.jsonl"])
    assert studies[0]["trajectories"][-1]["status"] == status
    assert counts == {f"answers of student {'added' if status == 'ok' else f'not heard: {status}'}": 1}
    write_studies(tmp_path / "s.jsonl", studies)  # a record as any other


@pytest.mark.parametrize(
    "row",
    [
        '{"id": "train-0"}',
        '{"text": "No edema."}',
        '{"id": "train-0", "text": 3}',
        '{"id": ["train-0"], "text": "No edema."}',
        "[]",
    ],
)
def test_a_row_that_is_no_answer_is_refused(tmp_path, row):
    (tmp_path / "a.jsonl").write_text(row + "\n")
    with pytest.raises(UserError, match=r'a\.jsonl:1: an answer needs strings "id" and "text"'):
        add_voice([study(0)], "student", [tmp_path / "a.jsonl"])


def test_command_line(tmp_path, capsys):
    path, out = tmp_path / "studies.jsonl", tmp_path / "out.jsonl"
    write_studies(path, [study(0), study(1, split="test")])
    main([str(path), "--out", str(out), "--negatives", "conflicting", "--weights", "error"])
    train, test = read_studies(out)
    assert len(train["trajectories"]) == 4 and len(test["trajectories"]) == 5
    assert set(train["consensus"]["audit"]["negative_weights"]) == set(speakers(train))
    printed = capsys.readouterr().out
    assert "negatives before: 5" in printed and "negatives after: 4" in printed and "--image-root" not in printed
    main([str(path), "--out", str(tmp_path / "elsewhere/out.jsonl")])
    assert f"give later commands the same --image-root ({tmp_path} if it needed none)\n" in capsys.readouterr().out
    first = out.read_bytes()
    main([str(path), "--out", str(out), "--negatives", "conflicting", "--weights", "error"])
    assert out.read_bytes() == first
    for words, message in (
        (["--negatives", "first-0"], "--negatives first-0: write one of"),
        (["--negatives", "random"], "--negatives random: write one of"),
        (["--add-voice", "x"], "write NAME=FILE"),
        (["--drop-voice", "Extra1"], "studies.jsonl: no study has a trajectory of 'Extra1' .*did you mean 'extra'"),
    ):
        with pytest.raises(UserError, match=message):
            main([str(path), "--out", str(out), *words])
    for words in ([str(path)], [str(out), "--add-voice", f"a={path}"]):
        with pytest.raises(UserError, match="is the input file"):
            main([*words, "--out", str(path)])
    assert out.read_bytes() == first


def test_the_manifest_names_every_file_of_answers(tmp_path):
    path, out = tmp_path / "studies.jsonl", tmp_path / "out.jsonl"
    write_studies(path, [study(0), study(1)])
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for number, file in enumerate(files):
        file.write_text(json.dumps({"id": f"train-{number}", "text": "No edema."}) + "\n")
    main([str(path), "--out", str(out), *(word for file in files for word in ("--add-voice", f"student={file}"))])
    assert manifest.stale(out) == []
    files[1].write_text(json.dumps({"id": "train-1", "text": "Edema."}) + "\n")
    assert manifest.stale(out) == [f"{out}: its input {files[1]} has changed since; make {out} anew"]


@pytest.mark.parametrize(
    ("text", "agreed", "expected"),
    [
        ("Pulmonary edema.", "Possible edema.", False),
        ("No acute cardiopulmonary abnormality.", "No edema.", False),
        ("Left pleural effusion. Pulmonary edema.", "Left pleural effusion.", True),
    ],
)
def test_what_contradicts(text, agreed, expected):
    assert contradicts(read(text), read(agreed)) is expected


def test_validation_films_change_as_training_films_do_and_test_films_never():
    films = [study(n, split=split) for n, split in enumerate(("train", "validate", "test"))]
    change(films, "first-2", weights="error")
    assert [len(one["trajectories"]) for one in films] == [2, 2, len(TEXTS)]
    assert ["negative_weights" in one["consensus"]["audit"] for one in films] == [True, True, False]


def test_a_faultless_trajectory_weighs_a_twentieth_of_a_finding_less_one():
    weights = error_weights(study(texts={"right": CONSENSUS, "one wrong": "Left effusion. Pulmonary edema."}))
    assert weights["one wrong"] / weights["right"] == pytest.approx((1 / 5) / 0.05, rel=1e-5)


def test_the_order_of_the_trajectories_draws_nothing():
    films, turned = ([study(n) for n in range(20)] for _ in range(2))
    for one in turned:
        one["trajectories"].reverse()
    change(films, "first-2")
    change(turned, "first-2")
    assert [set(speakers(one)) for one in films] == [set(speakers(one)) for one in turned]


def test_random_films_do_not_follow_the_file_and_differ_by_teacher():
    def films():
        return [study(n, {name: f"{name} {n}" for name in "abc"}) for n in range(12)]

    one, turned = films(), films()[::-1]
    change(one, "random-film", seed=1)
    change(turned, "random-film", seed=1)
    texts = [[t["text"] for t in s["trajectories"]] for s in one]
    assert texts == [[t["text"] for t in s["trajectories"]] for s in turned[::-1]]
    assert any(len({text.split()[1] for text in row}) == 3 for row in texts), "not all from one other film"


def test_studies_without_a_consensus_are_left_as_they_are_and_counted():
    alone = study()
    del alone["consensus"]
    counts = change([alone], "conflicting", weights="error")
    assert speakers(alone) == list(TEXTS) and counts["studies without a consensus"] == 1
    assert counts["studies with weights"] == 0
    assert learn_consensus([alone]) == {"studies that teach nothing": 1}
    assert [one["status"] for one in alone["trajectories"]] == ["empty"]


def test_weights_of_other_negatives_do_not_stay():
    one = study()
    change([one], "all", weights="error")
    assert "negative_weights" in one["consensus"]["audit"]
    assert change([one], "first-2")["studies whose weights are taken out"] == 1
    assert one["consensus"]["audit"] == {} and "negative_weights" not in apo_row(one, "/")
    assert not change([one], "all")["studies whose weights are taken out"]


def test_weights_join_the_audit_and_an_empty_refusal_stays_one():
    one = study(audit={"findings": {}, "compose": "plain"})
    one["trajectories"].append({"teacher": "shy", "text": " ", "status": "refused"})
    change([one], "refusals-kept", weights="error")
    assert set(one["consensus"]["audit"]) == {"findings", "compose", "negative_weights"}
    assert one["trajectories"][-1]["status"] == "refused", "an ok trajectory has words"


def test_the_seed_of_the_command_draws(tmp_path):
    path, drawn = tmp_path / "s.jsonl", set()
    write_studies(path, [study(n) for n in range(12)])
    for seed in range(2):
        main([str(path), "--out", str(tmp_path / "out.jsonl"), "--negatives", "one", "--seed", str(seed)])
        drawn.add(tuple(name for one in read_studies(tmp_path / "out.jsonl") for name in speakers(one)))
    assert len(drawn) == 2
