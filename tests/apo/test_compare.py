"""scripts/compare.sh: files, resuming, failures, refusals; the engine is replaced except in the last test."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apo import compare, student_engine
from apo.self_prompt import self_prompt
from data import checkpoints, manifest
from data.draws import study_rng
from data.errors import UserError
from data.files import claimed
from data.records import read_studies
from scripts import side_by_side

ROOT = Path(__file__).parents[2]
TEXTS = ["Small left effusion. No edema.", "Left effusion noted. No pulmonary edema.", "No effusion. No edema."]


@pytest.fixture
def studies(tmp_path):
    (tmp_path / "films").mkdir()
    rows = []
    for i, split in enumerate(["train", "train", "validate", "test", "test", "train"]):
        pixels = np.random.default_rng(i).integers(0, 255, (56, 56), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"films/s{i}.png")
        trajectories = [{"teacher": t, "text": x, "status": "ok"} for t, x in zip("abc", TEXTS, strict=True)]
        rows.append({"id": f"s{i}", "patient": f"p{i}", "source": "test", "split": split, "images": [f"films/s{i}.png"],
                     "prompt": "A film <image>. Findings?", "trajectories": trajectories})  # fmt: skip
    rows[4]["trajectories"] = [{"teacher": "a", "text": "", "status": "empty"}]
    rows[5]["trajectories"] = rows[5]["trajectories"][:1] + [{"teacher": "b", "text": "I cannot.", "status": "refused"}]
    path = tmp_path / "studies.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


class FakeStudent:
    """Stands in for the loaded checkpoint; counts what it is asked."""

    asked: list = []
    finish = "stop"
    stop_after = None
    max_length = 4096

    def __init__(self, info, *, backend, device, batch_size):
        pass

    def length(self, prompt, images):
        return len(prompt.split()) + 4 * len(images)

    def answer(self, prompts, *, max_new_tokens, temperature, seed):
        for prompt, images in prompts:
            assert len(images) == 1 and Path(images[0]).is_absolute() and prompt.count("<image>") == 1
            FakeStudent.asked.append(images[0])
            if FakeStudent.stop_after is not None and len(FakeStudent.asked) > FakeStudent.stop_after:
                raise KeyboardInterrupt
        return [("Left pleural effusion. No pulmonary edema.", FakeStudent.finish) for _ in prompts]


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(FakeStudent, "asked", [])
    monkeypatch.setattr(FakeStudent, "finish", "stop")
    monkeypatch.setattr(FakeStudent, "stop_after", None)
    monkeypatch.setattr(FakeStudent, "max_length", 4096)
    monkeypatch.setattr(student_engine, "Student", FakeStudent)
    monkeypatch.setattr(checkpoints, "describe", lambda path, base=None: {"path": path, "kind": "full"})
    monkeypatch.setattr(checkpoints, "fingerprint", lambda path, base=None: f"weights of {path}")
    return FakeStudent


def run(studies, *flags, checkpoint="student", out="out.jsonl"):
    path = studies.parent / "made" / out
    status = compare.main([checkpoint, str(studies), "--out", str(path), "--device", "cpu", *flags])
    return status, path


def load(path, root):
    return list(read_studies(path, image_root=root))


@pytest.mark.parametrize("strategy", ["dawid_skene", "vote"])
def test_label_free_writes_every_study(studies, strategy, capsys):
    status, out = run(studies, "--strategy", strategy, checkpoint="-")
    rows = load(out, studies.parent)
    assert status == 0 and [r["id"] for r in rows] == [f"s{i}" for i in range(6)]
    assert [r.get("consensus") is not None for r in rows] == [True, True, True, True, False, True]
    assert {r["consensus"]["strategy"] for r in rows if r.get("consensus")} == {strategy}
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith(strategy))
    assert "6 studies, 5 with a consensus; without one: 1 no ok trajectory" in line
    assert "N = 1): 1" in line and "1 empty, 1 refused" in line


@pytest.mark.parametrize("more", [(), ("--processes", "2")])
def test_a_missing_film_is_named_before_anything_is_made(studies, fake, more):
    (studies.parent / "films/s2.png").unlink()
    with pytest.raises(UserError, match="s2.*films/s2.png"):
        run(studies, *more)
    assert not (studies.parent / "made").exists() and not fake.asked


def test_input_is_left_as_it_was(studies):
    before = studies.read_bytes()
    _, out = run(studies, "--strategy", "vote", checkpoint="-")
    assert studies.read_bytes() == before
    with pytest.raises(UserError, match="is the input file"):
        compare.main(["-", str(studies), "--out", str(studies), "--strategy", "vote"])
    old = {r["id"]: r for r in load(studies, None)}
    for row in load(out, studies.parent):
        row.pop("consensus", None)
        assert row == old[row["id"]]


def test_split_limits_who_gets_one(studies):
    _, out = run(studies, "--strategy", "vote", "--split", "test", checkpoint="-")
    assert [r["id"] for r in load(out, studies.parent) if r.get("consensus")] == ["s3"]


def test_labels_of_training_studies_are_used_and_told(studies, capsys):
    labels = studies.with_name("labels.jsonl")
    known = [{"id": f"s{n}", "findings": {"Edema": {"state": "present"}}} for n in (0, 1, 3)]
    labels.write_text("".join(json.dumps(one) + "\n" for one in known))
    flags = ("--strategy", "dawid_skene", "--labels", str(labels))
    _, out = run(studies, *flags, checkpoint="-")
    assert (
        "labels: 2 film(s); not used: 1 of held-out studies; turned round: Edema; confirmed: none; "
        "too few labels to tell: none" in capsys.readouterr().out
    )
    made = json.loads(manifest.sidecar(out).read_text())
    assert str(labels) in json.dumps(made), "an input of the consensus"
    run(studies, *flags, "--label-limit", "1", checkpoint="-")
    assert "labels: 1 film(s); not used: 1 over --label-limit, 1 of held-out" in capsys.readouterr().out
    for words, complaint in (
        (("--strategy", "vote", "--labels", str(labels)), "--labels: vote takes none"),
        (("--strategy", "dawid_skene", "--label-limit", "3"), "there are no --labels to limit"),
        ((*flags, "--label-limit", "0"), "--label-limit 0: must be at least 1"),
    ):
        with pytest.raises(UserError, match=complaint):
            run(studies, *words, checkpoint="-")
    with pytest.raises(UserError, match="is the input file"):
        compare.main(["-", str(studies), "--out", str(labels), *flags])


def test_what_a_strategy_does_not_use_is_said(studies, capsys):
    command = [str(studies), "--out", str(studies.parent / "o.jsonl"), "--strategy", "vote"]
    compare.main(["-", *command])
    assert "not used" not in capsys.readouterr().out
    unused = ["--temperature", "0.7", "--cut-off", "keep", "--base", "b", "--backend", "vllm", "--device", "cpu"]
    compare.main(["some/student", *command, *unused, "--batch-size", "4", "--allow-failures"])
    told = ", ".join(["some/student", *unused[::2], "--batch-size", "--allow-failures"])
    assert f"note: vote needs no model and draws nothing; not used: {told}\n" in capsys.readouterr().out


def test_quote_form_is_passed_on(studies):
    _, out = run(studies, "--strategy", "vote", "--compose", "quote", checkpoint="-")
    first = load(out, studies.parent)[0]["consensus"]
    assert first["audit"]["compose"] == "quote"
    assert first["text"].startswith(("Small left effusion.", "Left effusion noted."))


def test_medoid_takes_a_whole_trajectory_and_says_what_critique_needs(studies, capsys):
    status, out = run(studies, "--strategy", "medoid", checkpoint="-")
    rows = [r for r in load(out, studies.parent) if r.get("consensus")]
    assert status == 0 and len(rows) == 5
    assert all(r["consensus"]["text"] in [t["text"] for t in r["trajectories"]] for r in rows)
    printed = capsys.readouterr().out
    assert "--on_identical drop-negative" in printed and "equal to one of the trajectories: 5" in printed
    with pytest.raises(UserError, match="--compose quote: medoid does not compose"):
        run(studies, "--strategy", "medoid", "--compose", "quote", checkpoint="-")


def test_oracle_is_refused_for_any_source_but_the_phantom(studies, capsys):
    with pytest.raises(UserError, match="phantom cohort only"):
        run(studies, "--strategy", "oracle", checkpoint="-", out="refused.jsonl")
    assert not (studies.parent / "made/refused.jsonl").exists()
    rows = [json.loads(line) for line in studies.read_text().splitlines()]
    for row in rows:
        row |= {"source": "phantom", "findings": {"Edema": {"state": "present", "side": "bilateral"}}}
    studies.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, out = run(studies, "--strategy", "oracle", checkpoint="-")
    texts = {r["consensus"]["text"] for r in load(out, studies.parent) if r.get("consensus")}
    assert status == 0 and len(texts) == 1 and "Bilateral pulmonary edema." in texts.pop()
    assert "upper bound" in capsys.readouterr().out


def test_self_asks_each_study_once(studies, fake, capsys):
    status, out = run(studies, "--batch-size", "2")
    rows = load(out, studies.parent)
    assert status == 0 and len(fake.asked) == 5  # not the one without an ok trajectory
    assert sum(r.get("consensus") is not None for r in rows) == 5
    assert rows[0]["consensus"]["audit"]["order"] != [] and "self: 5/5 studies" in capsys.readouterr().out


def test_interrupted_run_goes_on_where_it_stopped(studies, fake):
    fake.stop_after = 4
    with pytest.raises(KeyboardInterrupt):
        run(studies, "--batch-size", "2")
    fake.stop_after = None
    partial = studies.parent / "made/out.jsonl.partial.jsonl"
    assert len(partial.read_text().splitlines()) == 4
    with open(partial, "a") as f:
        f.write('{"id": "s5", "key": "to')  # a torn last line
    fake.asked.clear()
    _, out = run(studies, "--batch-size", "2")
    assert [Path(p).name for p in fake.asked] == ["s5.png"]
    fake.asked.clear()
    again = out.read_bytes()
    run(studies, "--batch-size", "3")
    assert fake.asked == [] and out.read_bytes() == again


@pytest.fixture
def in_turn(monkeypatch):
    """Processes side by side become calls one after the other."""

    def one_after_the_other(module, argv, out, shard, processes, device):
        assert module == "apo.compare"
        for number in range(1, processes + 1):
            i, n = side_by_side.shard_of(shard, number, processes)
            part = side_by_side.part_of(out, number)
            compare.main([*argv, "--processes", "1", "--shard", f"{i}/{n}", "--out", str(part)])
        return 0

    monkeypatch.setattr(side_by_side, "run", one_after_the_other)


def test_a_process_whose_studies_give_no_consensus_does_not_stop_the_others(studies, fake, in_turn):
    """Of six processes the fifth has one study, without an ok trajectory."""
    _, whole = run(studies, out="whole.jsonl")
    status, out = run(studies, "--processes", "6")
    assert status == 0 and out.read_bytes() == whole.read_bytes()
    assert [row.get("consensus") is None for row in load(out, studies.parent)] == [False] * 4 + [True, False]
    rows = [json.loads(line) for line in studies.read_text().splitlines()]
    studies.write_text(json.dumps(rows[4]) + "\n")
    with pytest.raises(UserError, match="not one consensus"):
        run(studies, "--processes", "2", out="none.jsonl")
    assert not list(out.parent.glob("none.jsonl*"))


@pytest.mark.parametrize("then", ["1", "2", "3"])
def test_interrupted_processes_go_on_with_as_many_as_are_wanted(studies, fake, in_turn, then):
    _, whole = run(studies, "--batch-size", "1", out="whole.jsonl")
    fake.asked.clear()
    fake.stop_after = 4
    with pytest.raises(KeyboardInterrupt):
        run(studies, "--batch-size", "1", "--processes", "3")
    done = fake.asked[:4]
    fake.stop_after = None
    fake.asked.clear()
    _, out = run(studies, "--batch-size", "1", "--processes", then)
    assert out.read_bytes() == whole.read_bytes()
    assert len(fake.asked) == 1 and not {*fake.asked} & {*done}
    assert not list(out.parent.glob("[!.]*.part-*"))


@pytest.mark.parametrize(
    "flags, checkpoint",
    [
        (["--seed", "1"], "student"),
        (["--temperature", "0.5"], "student"),
        ([], "other"),
        (["--max-length", "4000"], "student"),
    ],
)
def test_other_settings_are_never_resumed_from(studies, fake, flags, checkpoint, capsys):
    run(studies)
    fake.asked.clear()
    run(studies, *flags, checkpoint=checkpoint)
    assert len(fake.asked) == 5 and "5 of other settings" in capsys.readouterr().out


def test_a_changed_film_is_asked_again(studies, fake):
    run(studies)
    fake.asked.clear()
    Image.new("L", (56, 56), 7).save(studies.parent / "films/s1.png")
    run(studies, "--batch-size", "2")
    assert [Path(p).name for p in fake.asked] == ["s0.png", "s1.png"]  # its batch


def test_batches_do_not_depend_on_interruptions(studies, fake, monkeypatch):
    """A student whose texts depend on what shares the batch, as rounding makes them do now and then."""

    def answer(self, prompts, **_):
        batch = " ".join(Path(images[0]).stem for _, images in prompts)
        return [(f"{batch} {Path(images[0]).stem}", "stop") for _, images in prompts]

    monkeypatch.setattr(FakeStudent, "answer", answer)
    _, whole = run(studies, "--batch-size", "3", out="whole.jsonl")
    _, out = run(studies, "--batch-size", "3")
    rows = out.with_name("out.jsonl.partial.jsonl")
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join(lines[:1] + lines[4:]))  # two of the first batch are missing, one of the second
    out.unlink()
    run(studies, "--batch-size", "3")
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(json.loads(line)["id"] for line in rows.read_bytes().splitlines()) == ["s0", "s1", "s2", "s3", "s5"]


def test_a_second_run_on_one_file_is_refused(studies, fake, tmp_path):
    (tmp_path / "made").mkdir()
    with (
        claimed(tmp_path / "made/out.jsonl"),
        pytest.raises(UserError, match=r"out.jsonl: another run is writing it; wait"),
    ):
        run(studies)
    assert fake.asked == []
    assert run(studies)[0] == 0


def test_failed_generations_are_counted_and_the_exit_status_says_so(studies, fake, monkeypatch, capsys):
    answer = FakeStudent.answer

    def some_fail(self, prompts, **kw):
        texts = answer(self, prompts, **kw)
        for k, (_, images) in enumerate(prompts):
            if "s1.png" in images[0]:
                texts[k] = ("  ", "stop")
            if "s3.png" in images[0]:
                texts[k] = ("No edema. <image>", "stop")
            if "s2.png" in images[0]:
                texts[k] = (texts[k][0], "length")
        return texts

    monkeypatch.setattr(FakeStudent, "answer", some_fail)
    status, out = run(studies)
    assert status == 1
    rows = {r["id"]: r for r in load(out, studies.parent)}
    assert [bool(r.get("consensus")) for r in rows.values()] == [True, False, False, False, False, True]
    printed = capsys.readouterr().out
    assert "1 empty" in printed and "1 cut off at --max-new-tokens" in printed and "1 no ok trajectory" in printed
    assert "1 a special token in the text" in printed
    asked = len(fake.asked)
    assert run(studies, "--allow-failures")[0] == 0 and len(fake.asked) == asked, "greedy: it would fail again"
    told = capsys.readouterr()
    assert "1 empty" in told.out and "1 cut off at --max-new-tokens" in told.out and told.err == ""
    for _ in range(2):
        asked = len(fake.asked)
        assert run(studies, "--temperature", "0.5", out="drawn.jsonl")[0] == 1 and len(fake.asked) > asked
    assert "the output is written, without a consensus for these studies" in capsys.readouterr().err
    status, out = run(studies, "--cut-off", "keep", "--allow-failures", out="kept.jsonl")
    assert {r["id"]: r for r in load(out, studies.parent)}["s2"]["consensus"]


def test_long_contexts_lose_whole_trajectories_and_it_is_counted(studies, fake, capsys):
    whole = len(self_prompt(load(studies, None)[0], study_rng({"id": "s0"})).text.split()) + 4
    status, out = run(studies, "--max-length", str(whole - 1 + 8), "--max-new-tokens", "8")
    audits = [r["consensus"]["audit"] for r in load(out, studies.parent)[:4]]
    assert status == 0 and all(len(a["dropped"]) == 1 and len(a["order"]) == 2 for a in audits)
    assert "shortened by whole trajectories to fit the context: 4" in capsys.readouterr().out
    with pytest.raises(UserError, match="not one consensus"):
        run(studies, "--max-length", "20", "--max-new-tokens", "8", out="none.jsonl")


def test_shards_cover_everything_once(studies, fake):
    ids = []
    for i in (1, 2, 3):
        _, out = run(studies, "--shard", f"{i}/3", "--allow-failures", out=f"shard{i}.jsonl")
        ids += [r["id"] for r in load(out, studies.parent)]
    assert sorted(ids) == [f"s{i}" for i in range(6)]


def test_a_shard_without_a_study_of_the_split_is_written_as_it_is(studies, fake):
    status, out = run(studies, "--split", "validate", "--shard", "1/3")  # s0 and s3: train and test
    assert status == 0 and fake.asked == []
    assert [r["id"] for r in load(out, studies.parent)] == ["s0", "s3"]


@pytest.mark.parametrize(
    "flags, checkpoint, complaint",
    [
        ([], "-", "needs a checkpoint"),
        ([], "no/such/folder", "no such checkpoint"),
        (["--shard", "3/2"], "-", "i/n"),
        (["--strategy", "vote", "--shard", "1/2"], "-", "fitted on all studies"),
        (["--strategy", "vote", "--processes", "2"], "-", "--processes: vote is fitted on all studies"),
        (["--strategy", "vote", "--batch-size", "0"], "-", "at least 1"),
        (["--strategy", "vote", "--temperature", "-1"], "-", "must not be negative"),
        (["--strategy", "vote", "--out", "new/"], "-", "new/: is not a regular file; name a file to write"),
    ],
)
def test_bad_options_are_named(studies, flags, checkpoint, complaint):
    with pytest.raises(UserError, match=complaint):
        run(studies, *flags, checkpoint=checkpoint)


def test_a_missing_film_is_named_before_anything_is_loaded(studies, fake):
    (studies.parent / "films/s2.png").unlink()
    with pytest.raises(UserError, match="s2"):
        run(studies)
    assert fake.asked == []


def test_nothing_is_written_when_there_is_no_consensus_at_all(studies):
    rows = [json.loads(x) for x in studies.read_text().splitlines()]
    for r in rows:
        for t in r["trajectories"]:
            t["status"] = "refused"
    studies.write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(UserError, match="not one consensus"):
        run(studies, "--strategy", "vote", checkpoint="-")
    assert not (studies.parent / "made/out.jsonl").exists()


def test_launcher_reports_an_error_without_traceback(studies):
    command = [
        "bash",
        str(ROOT / "scripts/compare.sh"),
        "no/such",
        str(studies),
        "--out",
        str(studies.parent / "o.jsonl"),
    ]
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "VIRTUAL_ENV": str(Path(sys.executable).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=env)
    assert done.returncode == 2 and done.stderr.startswith("error: no/such: no such checkpoint"), done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def talkative_dir(student_dir, tmp_path_factory):
    """A student that answers any prompt with its vocabulary's first token, without end (all logits are equal)."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("talkative") / "student"
    shutil.copytree(student_dir, folder)
    weights = load_file(folder / "model.safetensors")
    (name,) = [n for n in weights if n.endswith("model.norm.weight") and "visual" not in n]
    weights[name].zero_()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
def test_with_the_real_engine(studies, talkative_dir, capsys):
    with pytest.raises(UserError, match="not one consensus"):
        run(studies, "--max-new-tokens", "4", "--batch-size", "4", checkpoint=str(talkative_dir))
    assert "5 cut off at --max-new-tokens" in capsys.readouterr().out
    status, path = run(studies, "--max-new-tokens", "4", "--cut-off", "keep", checkpoint=str(talkative_dir))
    texts = [r["consensus"]["text"] for r in load(path, studies.parent) if r.get("consensus")]
    assert status == 0 and texts == ["!!!!"] * 5
    student = student_engine.Student(checkpoints.describe(str(talkative_dir)))
    film = str(studies.parent / "films/s0.png")
    with_film, without = student.length("<image>Findings?", [film]), student.length("Findings?", [])
    assert with_film >= without + 4 and student.length("<image><image>Findings?", [film, film]) > with_film
