"""Two ranks train like one: DDP, and DeepSpeed ZeRO-2 within bfloat16."""

import json

import pytest

from tests.apo.cases import column, make_many_rows, train, train_on_ranks, write_rows

pytestmark = pytest.mark.slow
# bfloat16 keeps 8 bits of mantissa, and the losses here are of the order of 1.
BFLOAT16 = 5e-3


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    return make_many_rows(folder, 3, studies=4, negatives=(7, 1, 3, 5), films=(1, 2, 1, 1)), folder


@pytest.fixture(scope="module")
def groups(studies):
    return write_rows(studies[1] / "groups.jsonl", studies[0])


def assert_same(two, one, loss=1e-5, grad=1e-3):
    assert len(two) == len(one) == 6
    assert column(two, "loss") == pytest.approx(column(one, "loss"), abs=loss)
    assert column(two, "grad_norm") == pytest.approx(column(one, "grad_norm"), rel=grad)


@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_critique_on_two_ranks(groups, student_dir, tmp_path, tuner):
    flags = {"tuner_type": tuner, "learning_rate": 1e-4, "rpo_alpha": 0.5}
    one, _ = train(student_dir, groups, tmp_path / "one", **flags)
    # unequal layouts, too: one rank shares what two ranks lay out as rows
    rows = {"apo_layout": "rows"}
    two, _ = train_on_ranks(
        2, student_dir, groups, tmp_path / "two", per_device_train_batch_size=1, model_kwargs=rows, **flags
    )
    assert_same(two, one)
    for key in ("rewards/margins", "rewards/rejected_hardest", "logps/chosen", "nll_loss"):
        assert column(two, key) == pytest.approx(column(one, key), abs=1e-3), key


def test_learn_on_two_ranks(studies, student_dir, tmp_path):
    rows = [
        {**{k: v for k, v in row.items() if k != "negative_messages"}, "positive_messages": row["negative_messages"]}
        for row in studies[0]
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    flags = {"lora_dropout": 0, "learning_rate": 1e-4, "stage": "learn"}
    one, _ = train(student_dir, path, tmp_path / "one", **flags)
    two, _ = train_on_ranks(2, student_dir, path, tmp_path / "two", per_device_train_batch_size=1, **flags)
    # Studies have unequal numbers of tokens; ms-swift's mean is over those of all ranks.
    assert_same(two, one)


def test_zero2_in_bfloat16(groups, student_dir, tmp_path):
    one, _ = train(student_dir, groups, tmp_path / "one", learning_rate=1e-4)
    two, _ = train_on_ranks(
        2,
        student_dir,
        groups,
        tmp_path / "two",
        per_device_train_batch_size=1,
        learning_rate=1e-4,
        torch_dtype="bfloat16",
        deepspeed="zero2",
    )
    assert_same(two, one, loss=BFLOAT16, grad=2e-2)


@pytest.mark.parametrize("left_out", [0, 1])
def test_two_ranks_fill_one_reference_cache(studies, student_dir, tmp_path, left_out):
    """Also where two ranks cannot share the rows evenly."""
    groups = write_rows(tmp_path / "rows.jsonl", studies[0][left_out:])
    live, _ = train(student_dir, groups, tmp_path / "live")
    cache = {"apo_cache_dir": str(tmp_path / "cache")}
    train_on_ranks(
        2,
        student_dir,
        groups,
        tmp_path / "fill",
        per_device_train_batch_size=1,
        model_kwargs=cache | {"apo_cache_only": True},
    )
    assert (tmp_path / "cache" / "complete.json").exists()
    cached, _ = train(student_dir, groups, tmp_path / "cached", model_kwargs=cache)
    found = json.loads((tmp_path / "cache" / "complete.json").read_text())["responses"]
    assert found == sum(1 + len(row["negative_messages"]) for row in studies[0][left_out:])
    assert column(cached, "loss") == pytest.approx(column(live, "loss"), abs=1e-5)
