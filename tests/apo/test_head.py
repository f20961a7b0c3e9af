"""Chunked log-probs against a full log-softmax, values and gradients."""

import pytest
import torch
from torch import nn

from apo.head import logps_head, selected_logps

HIDDEN, VOCAB = 16, 61


def case(frozen, bias=False, seed=0):
    torch.manual_seed(seed)
    head = nn.Linear(HIDDEN, VOCAB, bias=bias, dtype=torch.float64).requires_grad_(not frozen)
    hidden = torch.randn(2, 9, HIDDEN, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([3, 4, 5, 3, 12, 13, 17])
    targets = torch.tensor([1, 60, 7, 7, 0, 33, 5])
    weights = torch.randn(len(index), dtype=torch.float64)
    return head, hidden, index, targets, weights


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize(("frozen", "bias"), [(True, False), (False, False), (True, True)])
def test_equals_full_log_softmax(frozen, bias, chunk):
    head, hidden, index, targets, weights = case(frozen, bias)
    full = torch.log_softmax(head(hidden), dim=-1).flatten(0, 1)[index, targets]
    inputs = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    expected = torch.autograd.grad((weights * full).sum(), inputs)
    ours = selected_logps(head.forward, hidden, index, targets, chunk)
    torch.testing.assert_close(ours, full, rtol=1e-12, atol=1e-12)
    for got, wanted in zip(torch.autograd.grad((weights * ours).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_without_gradients_equals_with():
    head, hidden, index, targets, _ = case(frozen=True)
    with torch.no_grad():
        silent = selected_logps(head.forward, hidden, index, targets, 2)
    torch.testing.assert_close(silent, selected_logps(head.forward, hidden, index, targets, 2))


def test_a_trained_head_keeps_its_gradient_when_the_body_is_frozen():
    head, hidden, index, targets, _ = case(frozen=False)
    selected_logps(head.forward, hidden.detach(), index, targets, 2).sum().backward()
    assert head.weight.grad.abs().sum() > 0


def test_bfloat16_is_summed_in_float32():
    head, hidden, index, targets, _ = case(frozen=True)
    ours = selected_logps(head.bfloat16().forward, hidden.bfloat16(), index, targets, 3)
    assert ours.dtype == torch.float32
    full = torch.log_softmax(head(hidden.bfloat16()).float(), dim=-1).flatten(0, 1)[index, targets]
    torch.testing.assert_close(ours, full, rtol=1e-5, atol=1e-5)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(HIDDEN, VOCAB, bias=False)

    def get_output_embeddings(self):
        return self.head

    def forward(self, hidden):
        return self.head(hidden)


def test_head_is_given_back_even_after_an_error():
    model = Model()
    hidden = torch.randn(1, 4, HIDDEN)
    index, targets = torch.tensor([0, 2]), torch.tensor([5, 6])
    with logps_head(model, index, targets, 8):
        assert model(hidden).shape == (1, 2, 1)
    with pytest.raises(IndexError), logps_head(model, torch.tensor([99]), targets[:1], 8):
        model(hidden)
    assert "forward" not in vars(model.head)
    assert model(hidden).shape == (1, 4, VOCAB)
