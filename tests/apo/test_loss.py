"""The objective against its formula, written out in float64."""

import math

import pytest
import torch

from apo.loss import group_metrics, plackett_luce

SIZES = [8, 2, 5, 10]


def formula(policy, reference, sizes, beta):
    """P(t+ > T) = exp r+ / (exp r+ + sum exp r_u), loss = -log P, straight from the paper."""
    losses = []
    for p, q in zip(policy.split(sizes), reference.split(sizes), strict=True):
        exp = torch.exp(beta * (p - q))
        losses.append(-torch.log(exp[0] / exp.sum()))
    return torch.stack(losses)


def random_logps(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    reference = -300 - 50 * torch.rand(sum(SIZES), generator=generator, dtype=dtype)
    policy = reference + 10 * torch.randn(sum(SIZES), generator=generator, dtype=dtype)
    return policy.requires_grad_(), reference


def test_loss_and_gradients_equal_the_formula():
    policy, reference = random_logps()
    expected = formula(policy, reference, SIZES, beta=0.1)
    (gradient,) = torch.autograd.grad(expected.mean(), policy)
    losses = plackett_luce(policy, reference, SIZES, beta=0.1).losses
    (ours,) = torch.autograd.grad(losses.mean(), policy)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours, gradient, rtol=1e-6, atol=1e-6)


def test_gradient_pushes_the_likeliest_negative_hardest():
    rewards = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64, requires_grad=True)
    plackett_luce(rewards, torch.zeros(3, dtype=torch.float64), [3], beta=1.0).losses.sum().backward()
    softmax = torch.softmax(torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64), 0)
    expected = torch.stack([softmax[0] - 1, softmax[1], softmax[2]])
    torch.testing.assert_close(rewards.grad, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [2, 8, 10])
def test_starts_at_log_of_responses(size):
    logps = torch.full((size,), -123.4, dtype=torch.float64)
    assert plackett_luce(logps, logps, [size], beta=0.1).losses.item() == pytest.approx(math.log(size), abs=1e-6)


def test_order_of_negatives_does_not_matter():
    policy, reference = random_logps()
    order = torch.cat([torch.tensor([0]), torch.tensor([7, 3, 1, 6, 2, 5, 4]), torch.arange(8, sum(SIZES))])
    plain = plackett_luce(policy, reference, SIZES, beta=0.1).losses
    moved = plackett_luce(policy[order], reference[order], SIZES, beta=0.1).losses
    torch.testing.assert_close(plain, moved, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_finite_at_extreme_rewards(extreme):
    policy = torch.tensor([extreme, 0.0, -extreme], dtype=torch.float64, requires_grad=True)
    result = plackett_luce(policy, torch.zeros_like(policy), [3], beta=1.0, label_smoothing=0.1)
    result.losses.sum().backward()
    assert result.losses.isfinite().all()
    assert policy.grad.isfinite().all()
    assert all(value.isfinite().all() for value in group_metrics(result).values())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_negative_is_stock_sigmoid_dpo(smoothing):
    policy = torch.tensor([-10.0, -12.0], dtype=torch.float64)
    reference = torch.tensor([-11.0, -11.5], dtype=torch.float64)
    logit = 0.3 * ((policy - reference)[0] - (policy - reference)[1])
    log_sigmoid = torch.nn.functional.logsigmoid
    expected = -(1 - smoothing) * log_sigmoid(logit) - smoothing * log_sigmoid(-logit)
    loss = plackett_luce(policy, reference, [2], beta=0.3, label_smoothing=smoothing).losses[0]
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_smoothing_is_a_cross_entropy_over_the_studys_responses():
    policy, reference = random_logps()
    losses = plackett_luce(policy, reference, SIZES, beta=0.1, label_smoothing=0.2).losses
    for loss, rewards in zip(losses, (0.1 * (policy - reference)).split(SIZES), strict=True):
        target = torch.full_like(rewards, 0.2 / (len(rewards) - 1))
        target[0] = 0.8
        expected = torch.nn.functional.cross_entropy(rewards, target)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_metrics_by_hand():
    rewards = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    result = plackett_luce(rewards, torch.zeros_like(rewards), [3, 2], beta=1.0)
    metrics = {key: value.tolist() for key, value in group_metrics(result).items()}
    assert metrics["rewards/chosen"] == [1.0, 1.0]
    assert metrics["rewards/rejected"] == [1.0, 0.0]
    assert metrics["rewards/rejected_hardest"] == [2.0, 0.0]
    assert metrics["rewards/margins"] == [0.0, 1.0]
    assert metrics["rewards/margins_hardest"] == [-1.0, 1.0]
    assert metrics["rewards/accuracies"] == [0.0, 1.0], "the consensus must beat ALL negatives"
    p = 1 / (1 + math.e**2)
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert metrics["effective_negatives"] == pytest.approx([math.exp(entropy), 1.0], abs=1e-6)


@pytest.mark.parametrize(
    ("sizes", "settings", "message"),
    [
        ([1, 4], {}, "without a negative"),
        ([2, 2], {}, "add up to 4"),
        ([2, 3], {"beta": 0.0}, "beta must be positive"),
        ([2, 3], {"beta": float("nan")}, "beta must be positive"),
        ([2, 3], {"label_smoothing": 0.5}, "label_smoothing"),
    ],
)
def test_refuses(sizes, settings, message):
    logps = torch.zeros(5, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        plackett_luce(logps, logps, sizes, **{"beta": 0.1, **settings})


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_the_optimum_is_that_of_contrastive_estimation(beta):
    """With negatives from the reference q and the consensus from p: pi = q (p / q)^(1 / beta), up to a factor."""
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    outcomes = torch.cartesian_prod(*[torch.arange(3)] * 3)  # one consensus and two trajectories, every way
    chances = p[outcomes[:, 0]] * q[outcomes[:, 1]] * q[outcomes[:, 2]]

    def gradient(policy):
        scores = policy.log().requires_grad_()
        reference = q.log()[outcomes].flatten()
        losses = plackett_luce(scores[outcomes].flatten(), reference, [3] * len(outcomes), beta=beta).losses
        return torch.autograd.grad((chances * losses).sum(), scores)[0] / beta

    optimum = q * (p / q) ** (1 / beta)
    for factor in (1.0, 1e-3):
        assert gradient(factor * optimum).abs().max() < 1e-7
    assert gradient(q).abs().max() > 1e-2


def test_metrics_of_studies_of_unequal_size_and_a_tie():
    rewards = torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    metrics = group_metrics(plackett_luce(rewards, torch.zeros_like(rewards), [4, 2], beta=1.0))
    assert metrics["rewards/rejected"].tolist() == [2.0, 1.0], "padding is no negative"
    assert metrics["rewards/margins"].tolist() == [-1.0, 0.0]
    assert metrics["rewards/accuracies"].tolist() == [0.0, 0.0], "a tie is no win"


def test_refuses_what_does_not_fit_the_responses():
    logps = torch.zeros(5, dtype=torch.float64)
    with pytest.raises(ValueError, match="add up"):
        plackett_luce(logps, torch.zeros(1, dtype=torch.float64), [2, 3], beta=0.1)
    with pytest.raises(ValueError, match="at least one token"):
        plackett_luce(logps, logps, [2, 3], beta=0.1, lengths=torch.tensor([7]))
    with pytest.raises(ValueError, match="label_smoothing"):
        plackett_luce(logps, logps, [2, 3], beta=0.1, label_smoothing=-0.1)
