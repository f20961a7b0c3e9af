"""A small part of the fault matrix with every run of the tests, and that the matrix sees what is wrong.

The whole is `python -m tests.faults` (docs/faults.md).
"""

import json
import random
import shutil

import numpy
import pytest
from safetensors.numpy import save_file

from tests.faults import matrix
from tests.faults.__main__ import FAULTS, Row, table
from tests.faults.stages import STAGES, STEPS
from tests.faults.world import world_in

CASES = [("collect", "SIGKILL", seed) for seed in range(3)]
CASES += [("collect", fault, 0) for fault in ("SIGINT", "SIGTERM", "two at once")]
CASES += [("compare", "SIGKILL", 0), ("evaluate", "SIGKILL", 0)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with world_in(tmp_path_factory.mktemp("faults") / "world") as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(world):
    """A function: stage name -> its undisturbed run."""
    known = {}

    def of(name):
        if name not in known:
            known[name] = matrix.undisturbed(STAGES[name], world)
        return known[name]

    return of


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fault", "seed"), CASES)
def test_nothing_is_lost(name, fault, seed, world, undisturbed):
    draw = random.Random(f"{seed} {name} {fault}")
    assert FAULTS[fault](STAGES[name], world, undisturbed(name), draw) == []


@pytest.mark.slow
def test_a_lost_and_a_doubled_answer_are_seen(world, undisturbed, tmp_path):
    stage, calm = STAGES["collect"], undisturbed("collect").folder / "out"
    out = tmp_path / "out"
    shutil.copytree(calm, out)
    path = sorted(out.glob("studies.answers/answers/*.jsonl"))[0]
    lines = path.read_bytes().splitlines(keepends=True)
    assert list(stage.differences(out, calm)) == []
    path.write_bytes(b"".join(lines[:-1]))
    assert list(stage.differences(out, calm)) == [f"{path.name}: 1 rows lost"]
    path.write_bytes(b"".join([*lines, lines[0]]))
    assert list(stage.differences(out, calm)) == [f"{path.name}: 1 rows doubled or strange"]
    path.write_bytes(b"".join(lines))
    with open(out / "studies.jsonl", "ab") as file:
        file.write(lines[0])
    assert "studies.jsonl differs" in list(stage.differences(out, calm))


def trained(folder, *, steps=range(1, STEPS + 1), kept=(STEPS - 2, STEPS), loss=1.0, weight=0.0):
    """What a training run leaves, as far as it is looked at."""
    for step in kept:
        path = folder / f"checkpoint-{step}"
        path.mkdir(parents=True)
        save_file({"w": numpy.full(4, weight, dtype=numpy.float32)}, path / "model.safetensors")
        (path / "trainer_state.json").write_text("{}")
    rows = [{"loss": loss, "global_step/max_steps": f"{step}/{STEPS}"} for step in steps]
    (folder / "logging.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({}, None),
        ({"steps": [1, 2, 3, 4, 5, 6, 8]}, "step 7 stands there 0 times"),
        ({"steps": [1, 2, 3, 4, 5, 6, 6, 7, 8]}, "step 6 stands there 2 times"),
        ({"loss": 1.00001}, "step 1: loss 1.00001, undisturbed 1.0"),
        ({"weight": 1e-5}, "weights differ by up to 1.0e-05"),
        ({"kept": [STEPS]}, "checkpoints [8] are kept"),
    ],
)
def test_what_a_resumed_training_did_wrong_is_seen(tmp_path, changes, seen):
    found = list(STAGES["learn"].differences(trained(tmp_path / "a", **changes), trained(tmp_path / "b")))
    assert found == [] if seen is None else any(seen in one for one in found)


def test_a_checkpoint_cut_off_is_seen(tmp_path):
    mine, theirs = trained(tmp_path / "a"), trained(tmp_path / "b")
    (mine / f"checkpoint-{STEPS - 2}/trainer_state.json").unlink()
    assert any("cut off" in one for one in STAGES["critique"].differences(mine, theirs))


def test_the_table_counts_faults_and_not_complaints():
    rows = [
        Row("collect", "SIGKILL", 3, ["2: a row lost", "2: a row doubled"], None, 1.0),
        Row("learn", "SIGKILL", 2, [], None, 1.0),
        Row("learn", "rank killed", 1, [], None, 1.0),
        Row("collect", "disk full", 0, [], "no right to mount", 1.0),
    ]
    assert table(rows).splitlines()[2:] == [
        "| SIGKILL | 2 of 3 | 2 of 2 |",
        "| rank killed | does not apply | 1 of 1 |",
        "| disk full | skipped | does not apply |",
    ]
