"""Learning on whole studies against learning on their separate rows, by ms-swift's own trainer."""

import pytest

from tests.apo.cases import column, make_many_rows, make_rows, train, write_rows

N = 3


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """The same trajectories as studies, and as separate rows in the same order."""
    folder = tmp_path_factory.mktemp("cohort")
    studies, rows = [], []
    for row in make_many_rows(folder, 4, studies=4, negatives=(N - 1,) * 4, films=(1, 2, 1, 1)):
        others = row.pop("negative_messages")
        studies.append({**row, "positive_messages": others})
        user = row["messages"][0]
        rows += [{**row, "messages": m} for m in [row["messages"], *([user, *other] for other in others)]]
    return write_rows(folder / "studies.jsonl", studies), write_rows(folder / "rows.jsonl", rows)


def learn(student_dir, rows, out, **flags):
    # Dropout draws other numbers for other shapes, so the comparison is made without it.
    settings = {"max_steps": 8, "learning_rate": 1e-3, "lora_dropout": 0} | flags
    return train(student_dir, rows, out, stage="learn", **settings)


@pytest.fixture(scope="module")
def separate(cohort, student_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("separate") / "out"
    return learn(student_dir, cohort[1], out, per_device_train_batch_size=2 * N)[0]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) == 8
    assert column(ours, "loss") == pytest.approx(column(theirs, "loss"), abs=1e-5)
    assert column(ours, "grad_norm") == pytest.approx(column(theirs, "grad_norm"), rel=1e-3)


@pytest.mark.parametrize("layout", ["shared", "rows"])
def test_studies_train_like_their_separate_rows(cohort, student_dir, separate, tmp_path, layout):
    ours, _ = learn(student_dir, cohort[0], tmp_path / "out", model_kwargs={"apo_layout": layout})
    assert_same(ours, separate)


def test_accumulation_keeps_the_token_mean(cohort, student_dir, separate, tmp_path):
    ours, _ = learn(
        student_dir, cohort[0], tmp_path / "out", per_device_train_batch_size=1, gradient_accumulation_steps=2
    )
    assert_same(ours, separate)


def test_full_fine_tuning_with_a_trained_vision_tower(cohort, student_dir, tmp_path):
    flags = {"tuner_type": "full", "freeze_vit": "false", "learning_rate": 1e-4}
    ours, _ = learn(student_dir, cohort[0], tmp_path / "ours", **flags)
    theirs, _ = learn(student_dir, cohort[1], tmp_path / "theirs", per_device_train_batch_size=2 * N, **flags)
    assert_same(ours, theirs)


def test_evaluation_loss(cohort, student_dir, tmp_path):
    flags = {"eval_strategy": "steps", "eval_steps": 8, "per_device_eval_batch_size": 2}
    _, ours = learn(student_dir, cohort[0], tmp_path / "ours", val_dataset=cohort[0], **flags)
    flags["per_device_eval_batch_size"] = 2 * N
    _, theirs = learn(
        student_dir, cohort[1], tmp_path / "theirs", val_dataset=cohort[1], per_device_train_batch_size=2 * N, **flags
    )
    assert ours[0]["eval_loss"] == pytest.approx(theirs[0]["eval_loss"], abs=1e-5)


def test_a_study_of_one_trajectory_and_unequal_studies(student_dir, tmp_path):
    rows = make_rows(tmp_path, studies=4, negatives=(1, 4, 1, 2), films=(1, 1, 2, 1))
    for row in rows:
        row["positive_messages"] = row.pop("negative_messages")
    rows[0]["positive_messages"] = []
    logs, _ = learn(student_dir, write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out", max_steps=2)
    assert len(logs) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"truncation_strategy": "right"}, "would cut what all responses share"),
        ({"loss_type": "cross_entropy"}, "loss_type cross_entropy is not read for whole studies"),
        ({"enable_channel_loss": "true"}, "enable_channel_loss true is not read for whole studies"),
    ],
)
def test_refuses_what_would_cut_studies_or_not_be_read(cohort, student_dir, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        learn(student_dir, cohort[0], tmp_path / "out", **flags)
