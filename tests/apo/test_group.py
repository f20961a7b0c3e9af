"""Encoding of a study, and both layouts against each other: values and every gradient."""

import pytest
import torch
from swift.template.base import MaxLengthError

from apo import group
from apo.attention import SHAPES_KEY, refuse_sliding_window, row_segments, shared_mask, use_split_attention
from apo.forward import sum_responses
from apo.head import logps_head
from apo.loss import plackett_luce
from apo.options import Options
from tests.apo.cases import load, make_rows


def encode(template, rows):
    return [dict(template.encode(row)) for row in rows]


def conversations(row):
    """Each response of a row as the full conversation that stock ms-swift would train on."""
    user = row["messages"][0]
    for message in [row["messages"][1], *(negative[-1] for negative in row["negative_messages"])]:
        yield {"messages": [user, message], "images": row["images"]}


def test_token_ids_equal_stock_encoding(student, tmp_path):
    _, template = student
    for row in make_rows(tmp_path):
        encoded = template.encode(row)
        template.set_mode("train")
        stock = [template.encode(conversation) for conversation in conversations(row)]
        template.set_mode("rlhf")
        assert len(stock) == len(encoded["responses"])
        for response, full in zip(encoded["responses"], stock, strict=True):
            assert [*encoded["input_ids"], *response] == full["input_ids"]
            start = len(encoded["input_ids"])
            assert full["labels"] == [-100] * start + response


def test_negatives_as_full_conversations_or_alone_are_the_same(student, tmp_path):
    _, template = student
    (row,) = make_rows(tmp_path, studies=1)
    full = {**row, "negative_messages": [[row["messages"][0], *n] for n in row["negative_messages"]]}
    assert template.encode(row)["responses"] == template.encode(full)["responses"]


def run(student, groups, collate, *, float64=False, attention="mask", reference=None):
    """Loss, token log-probs by response, and gradients of all parameters under one layout; `reference`: log-probs of
    all responses alike, instead of a row of different ones."""
    model, template = student
    model = model.double() if float64 else model.float()
    inputs, batch = collate(template, [dict(g) for g in groups])
    length = inputs["input_ids"].shape[1]
    inputs = template._post_encode(model, inputs) | {
        key: inputs[key] for key in ("position_ids", "attention_mask") if key in inputs
    }
    if batch.shapes is not None and attention == "split":
        inputs[SHAPES_KEY] = batch.shapes
    elif batch.shapes is not None:
        segments = row_segments(batch.shapes, length, model.device)
        inputs["attention_mask"] = shared_mask(segments, model.dtype if attention == "eager" else None)
    model.zero_grad()
    with logps_head(model, batch.index, batch.targets, 16):
        logps = sum_responses(model(**inputs, use_cache=False).logits.flatten(), batch)
    if reference is None:
        reference = -5.0 * logps.counts.double() + torch.arange(len(logps.counts))
    else:
        reference = torch.full_like(logps.sums, reference).detach()
    loss = plackett_luce(logps.sums, reference, batch.group_sizes, beta=0.1).losses.mean()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    order = torch.argsort(batch.response, stable=True)
    return loss.detach(), logps.tokens.detach()[order], gradients, inputs


def worst_relative(ours, theirs):
    assert ours.keys() == theirs.keys()
    return max(((ours[k] - theirs[k]).norm() / theirs[k].norm().clamp_min(1e-30)).item() for k in ours)


@pytest.mark.parametrize("negatives", [(7, 1, 3), (9, 4, 2)])
def test_shared_equals_rows(student, tmp_path, negatives):
    groups = encode(student[1], make_rows(tmp_path, negatives=negatives))
    loss_rows, logps_rows, grads_rows, _ = run(student, groups, group.collate_rows)
    loss, logps, grads, _ = run(student, groups, group.collate_shared)
    torch.testing.assert_close(logps, logps_rows, rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, loss_rows, rtol=0, atol=1e-6)
    assert any("visual" in name for name in grads), "the vision tower must have been trained here"
    assert worst_relative(grads, grads_rows) < 1e-5


@pytest.mark.parametrize("collate", [group.collate_shared, group.collate_rows])
def test_order_of_studies_in_a_batch_does_not_matter(student, tmp_path, collate):
    groups = encode(student[1], make_rows(tmp_path))
    sizes = [sum(map(len, one["responses"])) for one in groups]

    def by_study(order):
        loss, logps, gradients, _ = run(student, [groups[i] for i in order], collate, reference=0.0)
        pieces = logps.split([sizes[i] for i in order])
        return loss, torch.cat([pieces[order.index(i)] for i in range(3)]), gradients

    loss, logps, gradients = by_study([0, 1, 2])
    turned_loss, turned, turned_gradients = by_study([2, 0, 1])
    torch.testing.assert_close(turned, logps, rtol=0, atol=1e-5)
    torch.testing.assert_close(turned_loss, loss, rtol=0, atol=1e-6)
    assert worst_relative(turned_gradients, gradients) < 1e-5


def test_layout_is_chosen_by_the_token_ratio(student, tmp_path):
    _, template = student
    groups = encode(template, make_rows(tmp_path, studies=2, negatives=(7, 5), films=(1, 1)))
    ratio = group.token_ratio(groups)
    assert ratio > 1.3

    def shares(**chosen):
        inputs = group.collate(template, [dict(one) for one in groups], Options(**chosen))
        return inputs[group.BATCH_KEY].get("shapes") is not None

    assert shares()
    assert shares(shared_min_ratio=ratio - 0.01) and not shares(shared_min_ratio=ratio + 0.01)
    assert shares(layout="shared", shared_min_ratio=99.0) and not shares(layout="rows")


def test_shared_equals_rows_in_float64(student, tmp_path):
    groups = encode(student[1], make_rows(tmp_path))
    _, logps_rows, grads_rows, _ = run(student, groups, group.collate_rows, float64=True)
    _, logps, grads, _ = run(student, groups, group.collate_shared, float64=True)
    student[0].float()
    torch.testing.assert_close(logps, logps_rows, rtol=0, atol=1e-10)
    # rotary frequencies and the loss itself stay float32
    assert worst_relative(grads, grads_rows) < 1e-6


def test_eager_attention_takes_an_additive_mask(student_dir, tmp_path):
    eager = load(student_dir, attn_impl="eager")
    groups = encode(eager[1], make_rows(tmp_path))
    _, logps_rows, grads_rows, _ = run(eager, groups, group.collate_rows)
    _, logps, grads, _ = run(eager, groups, group.collate_shared, attention="eager")
    torch.testing.assert_close(logps, logps_rows, rtol=0, atol=1e-5)
    assert worst_relative(grads, grads_rows) < 1e-5


@pytest.fixture(scope="module")
def split_student(student_dir):
    model, template = load(student_dir)
    use_split_attention(model)
    return model, template


@pytest.mark.parametrize("float64", [False, True])
def test_split_attention_equals_rows(student, split_student, tmp_path, float64):
    groups = encode(student[1], make_rows(tmp_path, negatives=(9, 1, 3)))
    loss_rows, logps_rows, grads_rows, _ = run(student, groups, group.collate_rows, float64=float64)
    loss, logps, grads, _ = run(split_student, groups, group.collate_shared, float64=float64, attention="split")
    student[0].float()
    torch.testing.assert_close(logps, logps_rows, rtol=0, atol=1e-10 if float64 else 1e-5)
    torch.testing.assert_close(loss, loss_rows, rtol=0, atol=1e-6)
    assert worst_relative(grads, grads_rows) < (1e-6 if float64 else 1e-5)


def test_plain_rows_under_split_attention_are_causal(student, split_student, tmp_path):
    groups = encode(student[1], make_rows(tmp_path))
    _, logps_rows, grads_rows, _ = run(student, groups, group.collate_rows)
    _, logps, grads, _ = run(split_student, groups, group.collate_rows)
    torch.testing.assert_close(logps, logps_rows, rtol=0, atol=1e-5)
    assert worst_relative(grads, grads_rows) < 1e-5


def test_split_attention_leaves_the_vision_tower_alone(split_student):
    model, _ = split_student
    assert model.visual.config._attn_implementation == "sdpa"


def test_sliding_window_layers_are_refused(student_dir):
    model, _ = load(student_dir)
    refuse_sliding_window(model)
    model.config.get_text_config().layer_types[1] = "sliding_attention"
    with pytest.raises(ValueError, match="sliding_attention"):
        refuse_sliding_window(model)


def test_film_is_encoded_once_when_shared(student, tmp_path):
    groups = encode(student[1], make_rows(tmp_path))
    _, template = student
    once, _ = group.collate_shared(template, [dict(g) for g in groups])
    every, _ = group.collate_rows(template, [dict(g) for g in groups])
    assert len(once["image_grid_thw"]) == 1 + 2 + 1
    assert len(every["image_grid_thw"]) == 8 * 1 + 2 * 2 + 4 * 1


def test_responses_restart_behind_the_largest_prefix_position(student, tmp_path):
    _, template = student
    (encoded,) = encode(template, make_rows(tmp_path, studies=1, negatives=(2,)))
    inputs, batch = group.collate_shared(template, [dict(encoded)])
    prefix = len(encoded["input_ids"])
    first = inputs["position_ids"][:, 0, :prefix].max() + 1
    assert first < prefix, "a film takes more tokens than positions"
    for number in range(3):
        segments = row_segments(batch.shapes, inputs["input_ids"].shape[1], "cpu")
        own = inputs["position_ids"][:, 0, segments[0] == number + 1]
        assert (own == torch.arange(first, first + own.shape[1])).all()


def test_mask_by_hand():
    segments = row_segments(((2, 2, 1), (1, 5)), 6, "cpu")
    assert segments.tolist() == [[0, 0, 1, 1, 2, -1], [0, 1, 1, 1, 1, 1]]
    expected = torch.tensor(
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0],
            [1, 1, 0, 0, 1, 0],
            [0, 0, 0, 0, 0, 1],
        ],
        dtype=torch.bool,
    )
    assert torch.equal(shared_mask(segments, None)[0, 0], expected)
    assert torch.equal(shared_mask(segments, None)[1, 0], torch.ones(6, 6, dtype=torch.bool).tril())
    additive = shared_mask(segments, torch.float32)[0, 0]
    assert torch.equal(additive == 0, expected)


def test_token_ratio_by_hand():
    groups = [{"input_ids": [0] * 100, "responses": [[0] * 20] * 8}]
    assert group.token_ratio(groups) == 8 * 120 / (100 + 8 * 20)


def test_texts_of_the_first_row_stay_out_of_the_log(student, tmp_path, caplog):
    _, template = student
    (row,) = make_rows(tmp_path, studies=1)
    with caplog.at_level("INFO", logger="swift"):
        template.print_inputs(dict(template.encode(row)))
    assert "effusion" not in caplog.text
    assert "disease" not in caplog.text


def test_film_is_never_cut(student, tmp_path):
    _, template = student
    (row,) = make_rows(tmp_path, studies=1)
    row["negative_messages"][0][0]["content"] = "effusion " * 400
    template.max_length = 300
    try:
        with pytest.raises(MaxLengthError, match="exceed max_length 300"):
            template.encode(row)
    finally:
        template.max_length = 2048


def test_refusals(student, tmp_path):
    _, template = student
    (row,) = make_rows(tmp_path, studies=1)
    other = {"role": "user", "content": "<image>Another question"}
    with pytest.raises(ValueError, match="another prompt than the consensus"):
        template.encode({**row, "negative_messages": [[other, row["negative_messages"][0][0]]]})
    with pytest.raises(ValueError, match="must end with an assistant turn"):
        template.encode({**row, "negative_messages": [[other]]})
    for change in ({"loss": False}, {"loss_scale": 0.5}):
        spared = [[row["negative_messages"][0][0] | change]]
        with pytest.raises(ValueError, match=r"negative_messages\[0\]: its answer has a loss or loss_scale of its own"):
            template.encode({**row, "negative_messages": spared})
        with pytest.raises(ValueError, match="messages: its answer has a loss or loss_scale of its own"):
            template.encode({**row, "messages": [row["messages"][0], row["messages"][1] | change]})
    assert template.encode({**row, "negative_messages": [[row["negative_messages"][0][0] | {"loss": True}]]})
    stock = {**row, "rejected_response": "edema"}
    del stock["negative_messages"]
    groups = [dict(template.encode(row)), dict(template.encode(stock))]
    with pytest.raises(ValueError, match="mixes studies with single rows"):
        template.data_collator(groups)


def test_weights_of_a_batch_are_one_where_a_study_gives_none_and_fit_each_study():
    def study(negatives, weights=None):
        return {"responses": [[1]] * (negatives + 1)} | ({} if weights is None else {"negative_weights": weights})

    assert group.batch_weights([study(2), study(1)]) is None
    assert group.batch_weights([study(2, [0.5, 4.0]), study(3)]) == [1.0, 0.5, 4.0, 1.0, 1.0, 1.0, 1.0]
    # Three and one would add up to the right number, each at the wrong negative.
    with pytest.raises(ValueError, match="3 entries for 2 negatives"):
        group.batch_weights([study(2, [1.0, 2.0, 3.0]), study(2, [4.0])])


def test_token_ratio_counts_the_padding_of_a_batch():
    groups = [{"input_ids": [0] * 100, "responses": [[0] * 20] * 3}, {"input_ids": [0] * 40, "responses": [[0] * 10]}]
    assert group.token_ratio(groups) == (4 * 120) / (2 * 160)


def test_several_trained_turns_are_refused(student_dir, tmp_path):
    _, template = load(student_dir)
    (row,) = make_rows(tmp_path, studies=1)
    again = [{"role": "user", "content": "Are you sure?"}, {"role": "assistant", "content": "Yes."}]
    with pytest.raises(ValueError, match="several turns of the conversation are trained on"):
        template.encode(row | {"messages": [*row["messages"], *again]})
