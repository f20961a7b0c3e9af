"""Windows put together by size compute what one window at a time does, through the tower and through training."""

import pytest
import torch

from apo import attention, group, self_check, windows
from apo.windows import by_size, one_by_one, order_by_size, read_lengths, use_window_attention, window_attention
from tests.apo.cases import column, load, make_rows, train, write_rows
from tests.apo.test_group import encode, run, worst_relative

# A film of 3 x 3 windows with all four sizes of them; one size; one window; two films, one of them a single window.
LENGTHS = [(64, 64, 16, 64, 64, 16, 32, 32, 8), (64, 64), (40,), (16, 4, 16, 4, 48)]


def tensors(lengths, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 4, sum(lengths), 8, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_values_and_gradients(lengths):
    given = tensors(lengths, torch.float64)
    ours, theirs = (way(*given, (lengths,)) for way in (by_size, one_by_one))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(output.square().sum(), given) for output in (ours, theirs)]
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-12)
    assert self_check.difference(by_size, one_by_one, given, (lengths,), None).gradient < 1e-12


def test_a_window_sees_itself_alone():
    lengths = LENGTHS[0]
    given = tensors(lengths)
    before = by_size(*given, (lengths,))
    with torch.no_grad():
        given[1][:, :, 128:144] += 1.0  # keys of the third window
    changed = (by_size(*given, (lengths,)) - before).abs().amax(dim=(0, 1, 3)) > 0
    assert changed[128:144].all() and changed.sum() == 16


def test_the_way_back_undoes_the_order():
    counts, order, back = order_by_size(LENGTHS[0], torch.device("cpu"))
    assert counts == {64: 4, 16: 2, 32: 2, 8: 1}
    assert torch.equal(order[back], torch.arange(sum(LENGTHS[0])))
    assert order[: 4 * 64].tolist() == [*range(128), *range(144, 272)]


def test_borders_are_read_once(monkeypatch):
    borders = torch.tensor([0, 64, 80, 144])
    assert read_lengths(borders) == (64, 16, 64)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda _: pytest.fail("read again: each time waits for a GPU"))
    assert read_lengths(borders) == (64, 16, 64)


def test_other_callers_are_refused():
    given = tensors((8,))
    with pytest.raises(ValueError, match="borders of their windows"):
        window_attention(None, *given, None)
    with pytest.raises(ValueError, match="no mask"):
        window_attention(None, *given, torch.ones(8, 8), cu_seq_lens_q=torch.tensor([0, 8]))


def shifted(query, key, value, shapes, **settings):
    """Every key belongs to the patch before: windows with one foreign key each."""
    return one_by_one(query, key.roll(1, dims=2), value.roll(1, dims=2), shapes, **settings)


@pytest.mark.parametrize("right", [True, False])
def test_they_prove_themselves_on_another_device(monkeypatch, right):
    monkeypatch.setattr(self_check, "TRUSTED_DEVICES", set())
    monkeypatch.setattr(self_check, "_verdicts", {(attention.NAMES.fast, "cpu", torch.float32): True})
    said = []
    monkeypatch.setattr(self_check.logger, "error", said.append)
    if not right:
        monkeypatch.setattr(windows, "by_size", shifted)
    lengths = LENGTHS[0]
    given, borders = tensors(lengths), torch.tensor([0, *lengths]).cumsum(0)
    found, _ = window_attention(None, *given, None, cu_seq_lens_q=borders)
    torch.testing.assert_close(found.transpose(1, 2), one_by_one(*given, (lengths,)), rtol=0, atol=1e-6)
    assert len(said) == (not right)
    assert all("ONE WINDOW AT A TIME" in text and "window attention by size is off" in text for text in said)


@pytest.fixture
def switched(student_dir, monkeypatch):
    """The student with the new attention, and the windows of each call of it."""
    model, template = load(student_dir)
    assert use_window_attention(model)
    calls = []
    original = windows.by_size

    def counting(query, key, value, shapes, **settings):
        calls.append(shapes[0])
        return original(query, key, value, shapes, **settings)

    monkeypatch.setattr(windows, "by_size", counting)
    return model, template, calls


def test_the_tower_and_all_gradients(student, switched, tmp_path):
    """Films of unequal windows, two of them in one study; the tower trains."""
    model, template, calls = switched
    groups = encode(template, make_rows(tmp_path, negatives=(2, 1, 3), size=140))
    loss, logps, gradients, _ = run((model, template), groups, group.collate_shared)
    layers = len(model.visual.blocks)
    assert len(calls) == layers, "one call a layer, however many windows and films"
    assert max(len(set(lengths)) for lengths in calls) > 1, "the test has films with windows of several sizes"
    wanted_loss, wanted, wanted_gradients, _ = run(student, groups, group.collate_shared)
    torch.testing.assert_close(loss, wanted_loss, rtol=0, atol=1e-6)
    torch.testing.assert_close(logps, wanted, rtol=0, atol=1e-6)
    assert any("visual" in name for name in gradients)
    assert worst_relative(gradients, wanted_gradients) < 1e-5


def test_only_sdpa_is_replaced_and_the_decoder_is_left_alone(student_dir):
    model, _ = load(student_dir)
    assert use_window_attention(model)
    assert model.visual.config._attn_implementation == windows.NAME
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    eager, _ = load(student_dir, attn_impl="eager")
    assert not use_window_attention(eager)
    assert eager.visual.config._attn_implementation == "eager"


@pytest.mark.parametrize("stage", ["critique", "learn"])
@pytest.mark.parametrize("freeze_vit", ["true", "false"])
def test_training_uses_it_and_learns_the_same(student_dir, tmp_path, monkeypatch, stage, freeze_vit):
    """Learn on plain rows, which otherwise are stock ms-swift's."""
    studies = make_rows(tmp_path, studies=4, negatives=(3, 1, 2, 3), films=(1, 2, 1, 1), size=140)
    if stage == "learn":
        studies = [{key: study[key] for key in ("messages", "images")} for study in studies]
    rows = write_rows(tmp_path / "rows.jsonl", studies)
    calls = []
    original = windows.by_size
    monkeypatch.setattr(windows, "by_size", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    settings = {"freeze_vit": freeze_vit, "num_train_epochs": 2, "gradient_checkpointing": "true", "stage": stage}
    settings |= {"lora_dropout": 0}
    ours, _ = train(student_dir, rows, tmp_path / "ours", **settings)
    assert calls
    module = "apo.learn" if stage == "learn" else "apo.trainer"
    monkeypatch.setattr(f"{module}.use_window_attention", lambda _: False)
    calls.clear()
    stock, _ = train(student_dir, rows, tmp_path / "stock", **settings)
    assert not calls
    for key in ("loss", "grad_norm"):
        assert column(ours, key) == pytest.approx(column(stock, key), rel=1e-5, abs=1e-6), key
