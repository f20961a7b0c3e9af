"""A split attention that is wrong on some device is found on its first call there, and not used."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from apo import attention, self_check
from apo.attention import SHAPES_KEY, masked_rows, row_segments, shared_mask, split_attention, split_rows
from tests.apo.cases import column, make_rows, train, write_rows

SHAPES = ((20, 6, 9), (11, 5))
LENGTH = 38  # three tokens of padding behind the first row


def tensors(dtype=torch.float32, heads=4, kv_heads=2):
    generator = torch.Generator().manual_seed(0)
    sizes = (heads, kv_heads, kv_heads)
    return [torch.randn(2, n, LENGTH, 8, generator=generator).to(dtype).requires_grad_() for n in sizes]


def test_under_autocast_all_is_cast_as_sdpa_does():
    """With float32 weights, rotary embeddings leave query and key in float32 and the value in half precision."""
    query, key, value = tensors()
    with torch.autocast("cpu", torch.bfloat16):
        found = call(query, key, value.to(torch.bfloat16))
    exact = call(query, key, value)
    assert found.dtype == torch.bfloat16
    assert (real_tokens(found) - real_tokens(exact)).abs().max() < 0.05


class Layer:
    num_key_value_groups = 2


def call(query, key, value):
    return split_attention(Layer, query, key, value, None, **{SHAPES_KEY: SHAPES})[0].transpose(1, 2)


def real_tokens(output):
    return torch.cat([output[row, :, : sum(shape)].flatten() for row, shape in enumerate(SHAPES)])


def without_last_prefix_token(query, key, value, shapes, **settings):
    """Each response's own tokens and all of the prefix but its last token: a mistake of one key."""
    masks = shared_mask(row_segments(shapes, query.shape[2], query.device), None)
    for row, (prefix, *_) in enumerate(shapes):
        masks[row, :, prefix:, prefix - 1] = False
    return attention.attend(query, key, value, mask=masks, **settings)


def upper_left(query, key, value, shapes, **settings):
    """Responses that see the first tokens of the prefix instead of themselves: the other kind of causal mask."""
    rows = []
    for row, shape in enumerate(shapes):
        q, k, v = (whole[row : row + 1].split([*shape, LENGTH - sum(shape)], dim=2) for whole in (query, key, value))
        pieces = [attention.attend(q[0], k[0], v[0], is_causal=True, **settings)]
        for own_q, own_k, own_v in zip(q[1:-1], k[1:-1], v[1:-1], strict=True):
            keys, values = torch.cat([k[0], own_k], dim=2), torch.cat([v[0], own_v], dim=2)
            pieces.append(attention.attend(own_q, keys, values, is_causal=True, **settings))
        rows.append(torch.cat([*pieces, q[-1]], dim=2))
    return torch.cat(rows)


def wrong_gradient(query, key, value, shapes, **settings):
    return split_rows(query, key.detach() + 0.5 * (key - key.detach()), value, shapes, **settings)


def fails(*_args, **_settings):
    raise RuntimeError("no kernel image is available")


@pytest.fixture
def unproven(monkeypatch):
    """The CPU as a device that split attention has not proven itself on; gives the errors that are logged."""
    monkeypatch.setattr(self_check, "TRUSTED_DEVICES", set())
    monkeypatch.setattr(self_check, "_verdicts", {})
    said = []
    monkeypatch.setattr(self_check.logger, "error", said.append)
    return said


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_right_one_passes_and_is_used(unproven, monkeypatch, dtype):
    given = tensors(dtype)
    output = call(*given)
    assert unproven == []
    assert self_check._verdicts == {(attention.NAMES.fast, "cpu", dtype): True}
    assert torch.equal(output, split_rows(*given, SHAPES))
    calls = []
    monkeypatch.setattr(attention, "masked_rows", lambda *_, **__: calls.append(1))
    call(*given)
    assert calls == [], "it is compared once"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", [without_last_prefix_token, upper_left, wrong_gradient, fails])
def test_a_wrong_one_is_replaced_loudly(unproven, monkeypatch, wrong, dtype):
    monkeypatch.setattr(attention, "split_rows", wrong)
    given = tensors(dtype)
    with torch.no_grad():  # the reference comes first, and has no gradients
        first = call(*given)
    second = call(*given)
    portable = masked_rows(*given, SHAPES)
    assert torch.equal(first, portable) and torch.equal(second, portable)
    (said,) = unproven
    assert "GOES ON WITH THE DENSE MASK" in said and "apo_attention" in said
    assert ("no kernel image" in said) == (wrong is fails)
    second.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in given)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("right", [True, False])
def test_inside_gradient_checkpointing(unproven, monkeypatch, reentrant, right):
    """Learn has no reference pass: the first call there is inside a checkpointed layer."""
    given = tensors()
    portable = real_tokens(masked_rows(*given, SHAPES))
    wanted = torch.autograd.grad(portable.square().sum(), given)
    if not right:
        monkeypatch.setattr(attention, "split_rows", upper_left)
    output = real_tokens(checkpoint(call, *given, use_reentrant=reentrant))
    assert len(unproven) == (0 if right else 1)
    torch.testing.assert_close(output, portable, rtol=0, atol=1e-5)
    output.square().sum().backward()
    for tensor, gradient in zip(given, wanted, strict=True):
        torch.testing.assert_close(tensor.grad, gradient, rtol=1e-4, atol=1e-4)


def test_running_out_of_memory_is_no_verdict(unproven, monkeypatch):
    def exhausted(*_args, **_settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(attention, "split_rows", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        call(*tensors())
    assert self_check._verdicts == {}


def test_trusted_devices_are_not_checked(monkeypatch):
    monkeypatch.setattr(attention, "masked_rows", lambda *_, **__: pytest.fail("no comparison on the CPU"))
    call(*tensors())


def test_the_draws_of_a_run_do_not_depend_on_the_check(unproven):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    call(*tensors())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (4, 2), (4, 4)])
def test_grouped_heads_equal_repeated_ones(monkeypatch, heads, kv_heads):
    """CUDA kernels other than flash take repeated heads."""
    given = tensors(heads=heads, kv_heads=kv_heads)
    grouped = real_tokens(split_rows(*given, SHAPES))
    gradients = torch.autograd.grad(grouped.square().sum(), given)
    monkeypatch.setattr(attention, "reads_grouped_heads", lambda *_, **__: False)
    repeated = real_tokens(split_rows(*given, SHAPES))
    torch.testing.assert_close(grouped, repeated, rtol=0, atol=1e-6)
    for ours, theirs in zip(gradients, torch.autograd.grad(repeated.square().sum(), given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_masked_equals_split_in_values_and_gradients():
    given = tensors(torch.float64)
    found = self_check.difference(split_rows, masked_rows, given, SHAPES, None)
    assert max(found) < 1e-12
    assert self_check.difference(without_last_prefix_token, masked_rows, given, SHAPES, None).output > 0.05


def causal_over_everything(query, key, value, shapes, **settings):
    return attention.attend(query, key, value, is_causal=True, **settings)


def test_training_goes_on_under_the_mask(student_dir, tmp_path, monkeypatch, request):
    rows = write_rows(
        tmp_path / "rows.jsonl", make_rows(tmp_path, studies=4, negatives=(3, 1, 2, 3), films=(1, 2, 1, 1))
    )
    shared = {"model_kwargs": {"apo_layout": "shared"}, "max_steps": 2}
    right, _ = train(student_dir, rows, tmp_path / "right", **shared)
    said = request.getfixturevalue("unproven")
    monkeypatch.setattr(attention, "split_rows", causal_over_everything)
    ours, _ = train(student_dir, rows, tmp_path / "ours", **shared)
    assert len(said) == 1, "one verdict for all layers and steps"
    for key in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
        assert column(ours, key) == pytest.approx(column(right, key), rel=1e-5), key
