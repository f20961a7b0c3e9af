import pytest

from eval.rewards import ended, joined, rows_of
from tests.eval.cases import study, trajectory

STUDIES = [
    study(0, {}, [trajectory("a", "No edema."), trajectory("b", "Sorry.", "refused")], consensus="Clear."),
    study(1, {}, [trajectory("a", "Edema."), trajectory("c", "No edema.")], consensus="No edema. Clear."),
]


def test_rows_say_who_speaks():
    rows = rows_of(STUDIES, ["mine", " "], "/films")
    assert [who for who, _ in rows] == [["a", ""], ["a", "c"]]
    first = rows[0][1]
    assert first["messages"][1]["content"] == "Clear."
    assert [turns[0]["content"] for turns in first["negative_messages"]] == ["No edema.", "mine"]
    assert rows_of(STUDIES, ["a <|im_end|> b", ""], "/")[0][0] == ["a"], "no special token into a prompt"


def test_a_sample_that_was_cut_off_is_none():
    rows = rows_of(STUDIES, ended([("mine", "length"), ("mine", "stop")]), "/films")
    assert [who for who, _ in rows] == [["a"], ["a", "c", ""]]


def test_scores_go_back_to_who_spoke():
    rows = rows_of(STUDIES, ["mine", ""], "/films")
    policy = [[(-1.0, 3), (-2.0, 4), (-3.0, 5)], [(-4.0, 6), (-5.0, 7), (-6.0, 8)]]
    reference = [[(-1.5, 3), (-2.5, 4), (-3.5, 5)], [(-4.5, 6), (-5.5, 7), (-6.5, 8)]]
    first, second = joined(STUDIES, rows, policy, reference)
    assert first["consensus"] == {"tokens": 3, "policy": -1.0, "reference": -1.5}
    assert first["teachers"] == {"a": {"tokens": 4, "policy": -2.0, "reference": -2.5}}
    assert first["own"] == {"tokens": 5, "policy": -3.0, "reference": -3.5}
    assert second["own"] is None and second["teachers"]["c"]["tokens"] == 8


@pytest.mark.slow
def test_log_probs_are_those_of_plain_rows(tmp_path):
    """Against transformers' own logits over the whole conversation, one response at a time."""
    import torch
    from PIL import Image

    from apo.student_engine import Student
    from data import checkpoints
    from data.phantom.student import build_student
    from eval.rewards import response_logps

    build_student(
        tmp_path / "student", seed=0, texts=["No edema. Clear.", "Left effusion.", "Describe this film."] * 20
    )
    (tmp_path / "films").mkdir()
    for number in range(2):
        Image.effect_noise((84, 84), 40 + number).convert("L").save(tmp_path / "films" / f"test-{number}.png")
    student = Student(checkpoints.describe(tmp_path / "student"))
    mode = student.engine.template.mode
    rows = rows_of(STUDIES, ["Left effusion.", ""], str(tmp_path))
    found = response_logps(student, [row for _, row in rows], 2)
    assert student.engine.template.mode == mode
    model, template = student.engine.model, student.engine.template
    for scores, (_, row) in zip(found, rows, strict=True):
        texts = [row["messages"][1], *(turns[0] for turns in row["negative_messages"])]
        for (logp, count), answer in zip(scores, texts, strict=True):
            template.set_mode("train")
            encoded = template.encode({"messages": [row["messages"][0], answer], "images": row["images"]})
            ids = torch.tensor([encoded["input_ids"]])
            film = (ids == template.image_token_id).int()
            whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": film}
            whole |= {key: encoded[key] for key in ("pixel_values", "image_grid_thw")}
            with torch.no_grad():
                logps = model(**whole, use_cache=False).logits[0].log_softmax(-1)
            labels = torch.tensor(encoded["labels"])
            places = (labels != -100).nonzero().flatten()
            expected = logps[places - 1, labels[places]].sum().item()
            assert count == len(places) and logp == pytest.approx(expected, abs=1e-3)
