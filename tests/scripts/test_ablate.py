"""The ablation matrix: what runs, in which order, and what happens when it fails. Stages are stand-ins but for one."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data import checkpoints, manifest
from data.errors import UserError
from scripts import ablate, stages
from scripts import ablation_ledger as ledger
from scripts.ablation_plan import Place, Stage, compared, row_stages, train_settings
from scripts.ablation_rows import Sizes, read_row, read_rows
from scripts.plan import ROOT

METRICS = {"mean_accuracy": 0.5}


def args(tmp_path, *words):
    return ablate.parse_args(["--out", str(tmp_path / "out"), "--ledger", str(tmp_path / "l.jsonl"), *words])


def rows(*names):
    return read_rows([ROOT / "configs/ablation" / f"{name}.yaml" for name in names])


def cohort(place):
    (place.out / "cohort").mkdir(parents=True, exist_ok=True)
    (place.out / "cohort" / "studies.jsonl").write_text("{}\n")
    learnt = place.out / "learn" / "checkpoint-3"
    learnt.mkdir(parents=True, exist_ok=True)
    (learnt / "made-by").write_text(f"learn of seed {place.seed}")


def make_row(done):
    def one(place, row, _):
        cohort(place)
        done.append((place.world, place.seed, row.name))
        return METRICS

    return one


class Recorder:
    """Stands for stages.run_stage: notes each stage and makes its outputs, trainings with a checkpoint."""

    def __init__(self, refuse=None):
        self.ran, self.commands, self.refuse = [], {}, refuse

    def __call__(self, out, chain, name, commands, *, outputs, keep, made_by):
        assert {"commit", "dirty", "code"} == made_by.keys()
        if name == self.refuse:
            raise UserError(f"stage {name} failed")
        assert chain.index(name) == len(self.ran), "in the order of the chain"
        self.ran.append(name)
        self.commands[name] = commands
        for output in outputs:
            (out / output / "checkpoint-3").mkdir(parents=True, exist_ok=True)
            (out / output / "checkpoint-3" / "made-by").write_text(name)
        if name.endswith(".score"):
            (out / outputs[0] / "metrics.json").write_text(json.dumps(METRICS))
        return True


@pytest.fixture(autouse=True)
def fingerprints(monkeypatch):
    """The stand-ins' checkpoints hold no weights: the stage that made one tells it from others."""
    monkeypatch.setattr(checkpoints, "fingerprint", lambda path: (path / "made-by").read_text())


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "out/published/seed-3", "published", 3, Sizes(), 2, 1)


def flag(command, name):
    return command[command.index(name) + 1]


def test_words_of_the_command_line(tmp_path):
    found = args(tmp_path, "--world", "published,drift", "--world", "balanced", "--seed", "0-2,7", "--train", "100")
    assert found.world == ["published", "drift", "balanced"] and found.seed == [0, 1, 2, 7]
    assert found.sizes == Sizes(train=100)
    assert args(tmp_path).seed == [0, 1, 2, 3, 4] and args(tmp_path, "--smoke").seed == [0]
    assert ablate.parse_args(["--smoke"]).ledger.parent == ROOT / "runs/ablation-smoke"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--world", "publishd"], "did you mean 'published'"),
        (["--seed", "x"], "--seed x: write whole numbers"),
        (["--seed", "3-1"], "--seed 3-1"),
        (["--train", "0"], "--train 0: must be at least 1"),
        (["--smoke", "--ledger", str(ledger.LEDGER)], "stay out of the real ledger"),
    ],
)
def test_bad_words_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        ablate.parse_args(words)


def test_the_stages_of_a_critique(place):
    run = Recorder()
    assert ablate.run_row(place, read_row(ROOT / "configs/ablation/n3.yaml"), {}, run) == METRICS
    own = ["n3.variant", "n3.train", "n3.answer", "n3.score"]
    assert run.ran == ["cohort", "student", "learn", "compare-dawid_skene", *own]
    (train,) = run.commands["n3.train"]
    assert str(ROOT / "APO-Qwen2.5.sh") in train and str(ROOT / "configs/apo_phantom.yaml") in train
    assert flag(train, "--model") == str(place.out / "learn/checkpoint-3")
    assert flag(train, "--dataset") == str(place.out / "rows/n3/variant/studies.jsonl")
    assert flag(train, "--seed") == flag(train, "--data_seed") == "3"
    assert json.loads(flag(train, "--model_kwargs")) == {"apo_cache_dir": str(place.out / "reference/learn")}
    (variant,) = run.commands["n3.variant"]
    assert flag(variant, "--negatives") == "first-3" and flag(variant, "--seed") == "3"
    predict, sure, rewards = run.commands["n3.answer"]
    assert flag(sure, "--answers") == flag(predict, "--out") and sure[4] == predict[4], "the student that answered"
    score = run.commands["n3.score"][-1]
    assert (flag(score, "--calibration"), flag(score, "--rewards")) == (flag(sure, "--out"), flag(rewards, "--out"))
    assert flag(predict, "--split") == "test" and flag(rewards, "--reference").endswith("learn/checkpoint-3")
    assert flag(predict, "--studies") == str(place.out / "compare-dawid_skene/studies.jsonl"), (
        "as it was, not the variant"
    )


def test_a_row_of_few_films_takes_no_more_than_there_are(place):
    row = read_row(ROOT / "configs/ablation/few_pl_nll.yaml")
    for films in (1500, 16):
        run = Recorder()
        ablate.run_row(place._replace(sizes=place.sizes._replace(train=films)), row, {}, run)
        assert flag(run.commands["few_pl_nll.variant"][0], "--films") == str(min(films, 300))


def test_a_row_without_training_scores_the_learnt_student(place):
    run = Recorder()
    ablate.run_row(place, read_row(ROOT / "configs/ablation/learn.yaml"), {}, run)
    assert run.ran[-2:] == ["learn.answer", "learn.score"]
    assert [command[3] for command in run.commands["learn.answer"]] == ["eval.predict", "eval.calibration"]
    assert str(place.out / "learn/checkpoint-3") in run.commands["learn.answer"][0]


def test_a_consensus_alone_needs_films_and_no_student(place):
    run = Recorder()
    row = read_row(ROOT / "configs/ablation/compare_medoid.yaml")
    ablate.run_row(place, row, {}, run)
    assert run.ran == ["cohort", "compare_medoid.compare", "compare_medoid.score"]
    (compare,) = run.commands["compare_medoid.compare"]
    assert compare[4] == "-" and flag(compare, "--strategy") == "medoid"
    for command in run.commands["compare_medoid.score"]:
        assert flag(command, "--studies") == flag(compare, "--out")
        assert "--predictions" not in command and "--answers" not in command


def test_labels_reach_every_consensus_of_a_row_and_no_other_row(place):
    all_rows, commands = read_rows(), {}
    for name in ("two_rounds_n1_labels", "compare_labels", "n1"):
        run = Recorder()
        ablate.run_row(place, all_rows[name], all_rows, run)
        commands |= run.commands
    told = ("compare-dawid_skene-labels-20", "two_rounds_n1_labels.compare", "compare_labels.compare")
    for stage in told:
        words = commands[stage][0]
        assert (
            flag(words, "--labels") == str(place.out / "cohort/studies.jsonl") and flag(words, "--label-limit") == "20"
        )
    (train,) = commands["n1_labels.train"]
    variant = commands["n1_labels.variant"][0]
    assert str(place.out / told[0] / "studies.jsonl") in variant and flag(train, "--dataset") == flag(variant, "--out")
    others = [words for stage, each in commands.items() if stage not in told for words in each]
    assert others and not any("--labels" in words for words in others)
    head = ablate.head_of(place, all_rows["n1_labels"], all_rows)
    assert head["resolved"]["labels"] == 20
    assert "labels" not in ablate.head_of(place, all_rows["n1"], all_rows)["resolved"]


def test_the_best_checkpoint_of_another_row_answers(place):
    run = Recorder()
    all_rows = read_rows()
    state = place.row("sft_consensus_flops") / "train/checkpoint-3/trainer_state.json"
    best = state.parent.parent / "checkpoint-2"
    best.mkdir(parents=True)
    state.parent.mkdir()
    state.write_text(json.dumps({"best_model_checkpoint": f"elsewhere/{best.name}"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scripts.ablation_plan.equal_epochs", lambda *_: (37, {}))
        ablate.run_row(place, all_rows["sft_consensus_flops_best"], all_rows, run)
    own = ["sft_consensus_flops_best.answer", "sft_consensus_flops_best.score"]
    assert run.ran[-3:] == ["sft_consensus_flops.train", *own], "the other row's training, shared, and no other"
    for command in run.commands[own[0]]:
        assert str(best) in command and str(state.parent) not in command


def test_a_second_round_of_learning_on_the_consensus(place):
    run = Recorder()
    all_rows = read_rows()
    ablate.run_row(place, all_rows["two_rounds_sft"], all_rows, run)
    (train,) = run.commands["two_rounds_sft.train"]
    assert str(ROOT / "SFT-Qwen2.5.sh") in train
    assert flag(train, "--model") == str(place.out / "rows/sft_consensus_samples/train/checkpoint-3")
    assert flag(train, "--dataset") == str(place.out / "rows/two_rounds_sft/variant/studies.jsonl")
    variant = run.commands["two_rounds_sft.variant"][0]
    assert str(place.out / "rows/two_rounds_sft/compare/studies.jsonl") in variant, "of the new consensus"


def test_a_second_round_starts_from_the_first(place):
    run = Recorder()
    all_rows = read_rows()
    ablate.run_row(place, all_rows["two_rounds"], all_rows, run)
    assert [name for name in run.ran if "." in name] == [
        "pl_nll.train",
        "two_rounds.voice",
        "two_rounds.compare",
        "two_rounds.train",
        "two_rounds.answer",
        "two_rounds.score",
    ]
    first, second = run.commands["pl_nll.train"][0], run.commands["two_rounds.train"][0]
    assert flag(first, "--model") == str(place.out / "learn/checkpoint-3")
    assert flag(second, "--model") == str(place.out / "rows/pl_nll/train/checkpoint-3")
    caches = [json.loads(flag(command, "--model_kwargs"))["apo_cache_dir"] for command in (first, second)]
    assert caches == [str(place.out / "reference" / name) for name in ("learn", "pl_nll.train")], (
        "one for each reference"
    )
    again = Recorder()
    ablate.run_row(place, all_rows["pl_nll"], all_rows, again)
    assert again.commands["pl_nll.train"] == run.commands["pl_nll.train"], "shared with the row itself"


def test_a_taught_student_has_stages_of_its_own(place):
    run = Recorder()
    ablate.run_row(place, read_row(ROOT / "configs/ablation/consensus_self.yaml"), {}, run)
    shared = ["cohort", "student", "lessons", "teach", "learn-taught", "compare-self-taught"]
    assert run.ran[:6] == shared
    assert flag(run.commands["learn-taught"][0], "--model") == str(place.out / "teach/checkpoint-3")
    assert flag(run.commands["consensus_self.train"][0], "--model") == str(place.out / "learn-taught/checkpoint-3")


def test_a_plain_student_learns_from_rewritten_trajectories(place):
    run = Recorder()
    ablate.run_row(place, read_row(ROOT / "configs/ablation/pl_content_reference.yaml"), {}, run)
    assert run.ran[:5] == ["cohort", "student", "plain", "learn-plain", "compare-dawid_skene-plain"]
    rewritten = str(place.out / "plain/studies.jsonl")
    assert flag(run.commands["plain"][0], "--negatives") == "consensus-style"
    assert flag(run.commands["plain"][0], "--out") == flag(run.commands["learn-plain"][0], "--dataset") == rewritten
    start = str(place.out / "learn-plain/checkpoint-3")
    assert flag(run.commands["pl_content_reference.train"][0], "--model") == start
    assert run.commands["compare-dawid_skene-plain"][0][5] == str(place.out / "cohort/studies.jsonl"), "as they spoke"


def test_a_seeing_student_is_taught_before_learn(place):
    row = read_row(ROOT / "configs/ablation/pl_nll.yaml")._replace(name="seen", student="seeing")
    run = Recorder()
    ablate.run_row(place, row, {}, run)
    assert run.ran[:6] == ["cohort", "student", "sight", "see", "learn-seeing", "compare-dawid_skene-seeing"]
    see = run.commands["see"][0]
    assert flag(see, "--model") == str(place.out / "student") and flag(see, "--dataset").endswith("sight/rows.jsonl")
    assert flag(run.commands["learn-seeing"][0], "--model") == str(place.out / "see/checkpoint-3")
    assert flag(run.commands["seen.train"][0], "--model") == str(place.out / "learn-seeing/checkpoint-3")


def test_processes_of_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(ablate.os, "cpu_count", lambda: 2)

    def shape(*words):
        place = ablate.place_of(ablate.parse_args(["--out", str(tmp_path), *words]), "published", 0)
        return place.ranks, place.threads

    assert shape() == (2, 1) and shape("--processes", "1") == (1, 1), "a core is left for a command beside it"
    monkeypatch.setattr(ablate.os, "cpu_count", lambda: 16)
    assert shape() == (2, 8) and shape("--processes", "1") == (1, 8) and shape("--processes", "4") == (4, 4)
    monkeypatch.setattr(ablate.os, "cpu_count", lambda: 1)
    assert shape() == (1, 1)
    with pytest.raises(UserError, match="--processes"):
        ablate.parse_args(["--processes", "0"])


@pytest.mark.parametrize(("name", "shared"), [("pl", ["learn"]), ("seeing_pl_nll", ["see", "learn-seeing"])])
def test_rows_of_a_seed_start_from_the_same_student_whatever_their_processes(place, name, shared):
    shapes, row = {}, read_row(ROOT / f"configs/ablation/{name}.yaml")
    for ranks, threads in ((1, 1), (4, 4)):
        run = Recorder()
        ablate.run_row(place._replace(ranks=ranks, threads=threads), row, {}, run)
        shapes[ranks] = {stage: run.commands[stage][0][1:3] for stage in (*shared, f"{name}.train")}
    for stage in shared:
        assert shapes[1][stage] == shapes[4][stage] == ["NPROC_PER_NODE=2", "OMP_NUM_THREADS=1"]
    assert shapes[1][f"{name}.train"] == ["NPROC_PER_NODE=1", "OMP_NUM_THREADS=1"]
    assert shapes[4][f"{name}.train"] == ["NPROC_PER_NODE=4", "OMP_NUM_THREADS=4"]
    run = Recorder()
    args = ablate.parse_args(["--shared-processes", "1", "--processes", "2", "--out", str(place.out)])
    ablate.run_row(ablate.place_of(args, "published", 3), row, {}, run)
    for stage in shared:
        assert run.commands[stage][0][1:3] == ["NPROC_PER_NODE=1", "OMP_NUM_THREADS=1"], "a seed that was begun so"
    assert run.commands[f"{name}.train"][0][1] == "NPROC_PER_NODE=2"


def test_smoke_runs_a_few_steps(place):
    run = Recorder()
    ablate.run_row(place._replace(sizes=ablate.SMOKE), read_row(ROOT / "configs/ablation/pl.yaml"), {}, run)
    assert flag(run.commands["cohort"][0], "--train") == "48"
    assert all(flag(run.commands[name][0], "--max_steps") == "4" for name in ("learn", "pl.train"))


def test_options_of_ours_join_the_cache(place):
    row = read_row(ROOT / "configs/ablation/pl_length.yaml")
    start = place.out / "checkpoint-1"
    start.mkdir(parents=True)
    (start / "made-by").write_text("learn")
    settings = train_settings(place, row, place.out / "x", place.out / "x", start)
    assert settings["model_kwargs"] == {
        "apo_cache_dir": str(place.out / "reference/learn"),
        "apo_length_normalised": True,
    }


@pytest.mark.parametrize(("name", "own"), [("n1_flops", True), ("sft_consensus_flops", False)])
def test_equal_flops_are_counted_on_what_the_row_trains_on(place, monkeypatch, name, own):
    asked = []

    def counted(student, studies, epochs, max_pixels, critique=None):
        asked.append((student, studies, epochs, critique))
        return 27, {}

    monkeypatch.setattr("scripts.ablation_plan.equal_epochs", counted)
    run = Recorder()
    ablate.run_row(place, read_row(ROOT / f"configs/ablation/{name}.yaml"), {}, run)
    assert flag(run.commands[f"{name}.train"][0], "--num_train_epochs") == "27"
    variant = place.row(name) / "variant/studies.jsonl"
    whole = place.out / "compare-dawid_skene/studies.jsonl"
    assert asked == [(place.out / "student", whole, 10.0, variant if own else None)]


def test_without_a_reference_there_is_no_cache_and_no_displacement(place):
    run = Recorder()
    row = read_row(ROOT / "configs/ablation/pl_content.yaml")
    ablate.run_row(place, row, {}, run)
    assert json.loads(flag(run.commands["pl_content.train"][0], "--model_kwargs")) == {"apo_reference_free": True}
    assert "--beta" not in run.commands["pl_content.score"][1]


def test_rewards_by_token_say_nothing_of_whole_texts(place):
    run = Recorder()
    ablate.run_row(place, read_row(ROOT / "configs/ablation/pl_length.yaml"), {}, run)
    assert "--beta" not in run.commands["pl_length.score"][1]


def test_the_best_checkpoint_stands_against_its_own_consensus():
    all_rows = read_rows()
    place = Place(Path("out"), "published", 3, Sizes(), 2, 1)
    best, own = (compared(place, all_rows[name], all_rows) for name in ("two_rounds_n1_best", "two_rounds_n1"))
    assert best == own == place.row("two_rounds_n1") / "compare/studies.jsonl"
    assert compared(place, all_rows["pl_nll_best"], all_rows) == place.out / "compare-dawid_skene/studies.jsonl"


def test_every_row_has_a_plan(place):
    all_rows = read_rows()
    for row in all_rows.values():
        shared, own = row_stages(place, row, all_rows)
        names = [stage.name for stage in (*shared, *own)]
        assert len(set(names)) == len(names) and names[-1] == f"{row.name}.score"


def test_each_run_is_done_once_and_a_failed_one_later_again(tmp_path, capsys, monkeypatch):
    given = args(tmp_path, "--world", "published,drift", "--seed", "0-1")
    chosen, done = rows("pl", "learn"), []

    def failing(place, row, all_rows):
        if (place.world, place.seed, row.name) == ("drift", 0, "pl"):
            raise UserError("stage pl.train failed\nRead x.log")
        return make_row(done)(place, row, all_rows)

    monkeypatch.setattr(ablate, "run_row", failing)
    failures = ablate.run_matrix(given, chosen)
    assert [(f.world, f.seed, f.row) for f in failures] == [("drift", 0, "pl")]
    assert len(done) == 7 and "FAILED: pl, world drift, seed 0: stage pl.train failed" in capsys.readouterr().out
    monkeypatch.setattr(ablate, "run_row", make_row(done))
    assert not ablate.run_matrix(given, chosen)
    assert done[7:] == [("drift", 0, "pl")], "only what is missing"
    lines = ledger.read(given.ledger)
    assert len(lines) == 8
    line = next(iter(lines.values()))
    assert line["metrics"] == METRICS and line["resolved"]["films"] == Sizes()._asdict()
    assert {"commit", "dirty", "code", "seconds", "shared_seconds", "cohort_sha256", "films_sha256"} <= line.keys()
    assert all(one["learn"] == one["start"] for one in lines.values()), "the first round starts from Learn"
    assert [one["start"] for one in lines.values()] == [f"learn of seed {one['seed']}"[:16] for one in lines.values()]
    assert "Nothing was run" not in capsys.readouterr().out
    ablate.run_matrix(given, rows("pl"))
    assert len(done) == 8 and f"--out {ROOT / 'runs/again'} --ledger" in capsys.readouterr().out
    ablate.run_matrix(given, rows("compare_vote"))
    alone = [one for one in ledger.read(given.ledger).values() if one["row"] == "compare_vote"]
    assert len(alone) == 4 and {one["start"] for one in alone} == {None}


def test_a_line_names_the_code_of_every_stage(tmp_path):
    names = ["cohort", "train", "answer", "score"]
    own = [Stage(name, list, [name]) for name in names]
    old, new = {"commit": "a", "dirty": True, "code": "x"}, {"commit": "b", "dirty": False, "code": "y"}
    for name, maker in zip(names, [None, old, old, new], strict=True):
        stages.run_stage(tmp_path, names, name, [["mkdir", str(tmp_path / name)]], made_by=maker)
    assert ablate.made_by(tmp_path, own) == [None, old, new], "not that of the last stage alone"


def test_code_is_read_anew_for_every_stage(monkeypatch, tmp_path):
    (tmp_path / "apo").mkdir()
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1"\n')
    monkeypatch.setattr(manifest, "ROOT", tmp_path)
    before = ablate.code_here()["code"]
    (tmp_path / "apo" / "new.py").touch()
    assert ablate.code_here()["code"] != before, "HEAD may move under a running matrix"


def test_films_are_the_same_by_their_pixels(tmp_path):
    def drawn(name, value, **how):
        folder = tmp_path / name / "images"
        folder.mkdir(parents=True)
        Image.new("L", (4, 4), value).save(folder / "a.png", **how)
        return ablate.films_digest(tmp_path / name)

    assert drawn("one", 7, compress_level=0) == drawn("two", 7, compress_level=9) != drawn("three", 8)


def test_failures_end_in_status_one_and_name_the_logs(tmp_path, monkeypatch, capsys):
    def failing(place, row, all_rows):
        raise UserError("stage learn failed with status 3\nmore")

    monkeypatch.setattr(ablate, "run_row", failing)
    words = ["--out", str(tmp_path / "out"), "--ledger", str(tmp_path / "l.jsonl"), "--seed", "0"]
    assert ablate.main([*words, str(ROOT / "configs/ablation/pl.yaml")]) == 1
    printed = capsys.readouterr().out
    assert "1 run(s) failed" in printed and f"logs: {tmp_path}/out/published/seed-0/logs" in printed
    assert not (tmp_path / "l.jsonl").exists()


def test_a_broken_stage_stops_its_row(place):
    with pytest.raises(UserError, match="stage learn failed"):
        ablate.run_row(place, read_row(ROOT / "configs/ablation/pl.yaml"), {}, Recorder(refuse="learn"))


def test_two_runs_on_one_folder_are_refused(tmp_path):
    folder = tmp_path / "out/published/seed-1"
    folder.mkdir(parents=True)
    words = ["--out", str(tmp_path / "out"), "--ledger", str(tmp_path / "l.jsonl"), "--seed", "0-1"]
    with open(folder / ".ablate.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="seed-1: another run is at work there"):
            ablate.main([*words, str(ROOT / "configs/ablation/pl.yaml")])


def test_an_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="--out .*out is not a folder; choose another"):
        ablate.main(["--out", str(tmp_path / "out"), str(ROOT / "configs/ablation/pl.yaml")])


def test_list_runs_nothing(tmp_path, capsys, monkeypatch):
    given = args(tmp_path, "--seed", "0-2")
    monkeypatch.setattr(ablate, "run_row", make_row([]))
    ablate.run_matrix(args(tmp_path, "--seed", "1"), rows("pl"))
    words = ["--out", str(tmp_path / "none"), "--ledger", str(given.ledger), "--seed", "0-2", "--list"]
    capsys.readouterr()
    assert ablate.main([*words, *(str(ROOT / f"configs/ablation/{name}.yaml") for name in ("learn", "pl"))]) == 0
    printed = capsys.readouterr().out
    assert "published: - 1 -" in printed and "published: - - -" in printed and not (tmp_path / "none").exists()


def bash(*words):
    env = os.environ | {"VIRTUAL_ENV": sys.prefix}
    call = ["bash", ROOT / "scripts/ablate.sh", *words]
    return subprocess.run(call, capture_output=True, text=True, env=env, check=False)


@pytest.mark.slow
def test_a_smoke_row_from_films_to_ledger(tmp_path):
    words = ("--smoke", "--out", str(tmp_path / "out"), str(ROOT / "configs/ablation/pl_weighted.yaml"))
    done = bash(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = ledger.read(tmp_path / "out/ledger.jsonl").values()
    metrics = line["metrics"]
    assert len(metrics["teachers"]) == 7 and 0 <= metrics["mean_accuracy"] <= 1
    assert metrics["training"]["curve"]["step"] == [1, 2, 3, 4]
    assert metrics["rewards"]["studies"] > 0 and metrics["rewards"]["margin_length"] is not None
    assert metrics["style_auc"] > 0.5
    assert "in the ledger already" in bash(*words).stdout
    more = bash(*words[:3], str(ROOT / "configs/ablation/compare_dawid_skene.yaml"))
    assert more.returncode == 0 and "cohort: finished before" in more.stdout, more.stdout + more.stderr
    _, alone = ledger.read(tmp_path / "out/ledger.jsonl").values()
    assert alone["metrics"]["mean_accuracy"] == metrics["consensus"]["mean_accuracy"], "the same consensus, as a row"
    assert alone["metrics"]["teachers"] == metrics["teachers"] and alone["metrics"]["consensus_form"] == 1


def test_what_a_row_says_reaches_its_commands(place):
    all_rows = read_rows()

    def commands(name, at=place):
        run = Recorder()
        ablate.run_row(at, all_rows[name], all_rows, run)
        return run.commands

    made = commands("n3")
    cohort, train, rewards = made["cohort"][0], made["n3.train"][0], made["n3.answer"][2]
    assert (flag(cohort, "--world"), flag(cohort, "--seed")) == ("published", "3")
    assert flag(train, "--image_root") == str(place.out / "cohort")
    assert flag(train, "--resume_from_checkpoint") == "last"
    assert (flag(rewards, "--split"), flag(rewards, "--seed")) == ("validate", "3")
    results, metrics = made["n3.score"]
    assert (flag(results, "--split"), flag(results, "--seed")) == ("test", "3")
    assert flag(metrics, "--trained-on") == str(place.row("n3") / "variant/studies.jsonl")
    assert flag(metrics, "--beta") == "0.1"
    assert flag(commands("beta_0.3")["beta_0.3.score"][1], "--beta") == "0.3"
    assert flag(commands("pl_weighted")["pl_weighted.variant"][0], "--weights") == "error"
    assert "--learn-consensus" in commands("sft_consensus_samples")["sft_consensus_samples.variant"][0]
    alone = commands("compare_vote")["compare_vote.score"][0]
    assert (flag(alone, "--split"), flag(alone, "--seed")) == ("test", "3")
    smoke = place._replace(sizes=ablate.SMOKE, out=place.out / "smoke")
    assert flag(commands("consensus_self", smoke)["compare-self-taught"][0], "--cut-off") == "keep"
