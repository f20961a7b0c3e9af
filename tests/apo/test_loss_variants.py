"""The variants of the objective (pairs, lengths, weights) against their formulas in float64, gradients included."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from apo.loss import LOSSES, group_metrics, pairwise, plackett_luce

SIZES = [8, 2, 5, 10]


def case(seed=0):
    """Policy, reference, tokens and weights of random studies."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(SIZES)
    reference = -300 - 50 * torch.rand(total, generator=generator, dtype=torch.float64)
    policy = reference + 10 * torch.randn(total, generator=generator, dtype=torch.float64)
    lengths = torch.randint(5, 200, (total,), generator=generator)
    weights = 0.1 + 3 * torch.rand(total, generator=generator, dtype=torch.float64)
    return policy.requires_grad_(), reference, lengths, weights


def formula(kind, policy, reference, lengths, weights, beta):
    """The losses of apo/loss.py as their docstrings write them, straight, without any trick for stability."""
    losses = []
    parts = (x.split(SIZES) for x in (policy, reference, lengths, weights))
    for p, q, n, w in zip(*parts, strict=True):
        r = beta * (p - q) / n
        if kind == "plackett_luce":
            losses.append(-torch.log(r[0].exp() / (r[0].exp() + (w[1:] * r[1:].exp()).sum())))
        else:
            losses.append(-(w[1:] * torch.log(r[0].exp() / (r[0].exp() + r[1:].exp()))).sum() / w[1:].sum())
    return torch.stack(losses)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_and_gradients_equal_the_formula(kind, normalised, weighted):
    policy, reference, lengths, weights = case()
    beta = 5.0 if normalised else 0.1
    given = {"lengths": lengths if normalised else None, "weights": weights if weighted else None}
    ones = torch.ones_like(weights)
    expected = formula(kind, policy, reference, lengths if normalised else ones, weights if weighted else ones, beta)
    (gradient,) = torch.autograd.grad(expected.mean(), policy)
    result = LOSSES[kind](policy, reference, SIZES, beta=beta, **given)
    (ours,) = torch.autograd.grad(result.losses.mean(), policy)
    torch.testing.assert_close(result.losses.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours, gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_pairwise_is_the_mean_of_stock_dpo_over_the_pairs(smoothing):
    policy, reference, _, _ = case()
    losses = pairwise(policy, reference, SIZES, beta=0.1, label_smoothing=smoothing).losses
    for loss, ratios in zip(losses, (policy - reference).split(SIZES), strict=True):
        logits = 0.1 * (ratios[0] - ratios[1:])
        stock = -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)
        assert loss.item() == pytest.approx(stock.mean().item(), abs=1e-6)


def test_with_one_negative_both_losses_are_the_same():
    policy, reference, _, _ = case()
    a, b = (loss(policy[:2], reference[:2], [2], beta=0.1, label_smoothing=0.1).losses for loss in LOSSES.values())
    torch.testing.assert_close(a, b)


def test_pairwise_starts_at_log_two_and_pushes_all_pairs_alike():
    rewards = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    loss = pairwise(rewards, torch.zeros(8, dtype=torch.float64), [8], beta=1.0).losses.sum()
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert rewards.grad.tolist() == pytest.approx([-0.5, *[0.5 / 7] * 7], abs=1e-6)


def test_equal_weights_of_any_size_change_nothing_in_pairs_and_weights_of_one_nothing_at_all():
    policy, reference, _, weights = case()
    ones = torch.ones_like(weights)
    for kind, loss in LOSSES.items():
        plain = loss(policy, reference, SIZES, beta=0.1)
        torch.testing.assert_close(loss(policy, reference, SIZES, beta=0.1, weights=ones).losses, plain.losses)
        if kind == "pairwise":
            torch.testing.assert_close(loss(policy, reference, SIZES, beta=0.1, weights=3 * ones).losses, plain.losses)


def test_a_light_negative_is_pushed_less():
    rewards = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, 1.8, 0.2])
    plackett_luce(rewards, torch.zeros(3, dtype=torch.float64), [3], beta=1.0, weights=weights).losses.sum().backward()
    assert rewards.grad.tolist() == pytest.approx([-2 / 3, 0.6, 0.2 / 3], abs=1e-6)


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_pairwise_is_finite_at_extreme_rewards_and_unequal_groups(extreme):
    policy = torch.tensor([extreme, 0.0, -extreme, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    result = pairwise(policy, torch.zeros_like(policy), [3, 2], beta=1.0, label_smoothing=0.1)
    result.losses.sum().backward()
    assert result.losses.isfinite().all() and policy.grad.isfinite().all()
    assert all(value.isfinite().all() for value in group_metrics(result).values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": torch.tensor([1.0, 0.0, 1.0])}, "finite and positive"),
        ({"weights": torch.tensor([1.0, math.inf, 1.0])}, "finite and positive"),
        ({"weights": torch.ones(2)}, "2 weights for 3 responses"),
        ({"lengths": torch.tensor([3, 0, 2])}, "at least one token"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
    ],
)
@pytest.mark.parametrize("kind", LOSSES)
def test_refuses(kind, settings, message):
    logps = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        LOSSES[kind](logps, logps, [3], beta=0.1, **settings)


def test_weights_and_smoothing_exclude_each_other():
    logps = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="leave it or their weights out"):
        plackett_luce(logps, logps, [3], beta=0.1, label_smoothing=0.1, weights=torch.ones(3))


@pytest.mark.parametrize("kind", LOSSES)
def test_rewards_are_detached(kind):
    policy, reference, _, _ = case()
    result = LOSSES[kind](policy, reference, SIZES, beta=0.1)
    assert result.losses.requires_grad and not result.chosen.requires_grad and not result.rejected.requires_grad
