"""The APO objective: one consensus against N drifting trajectories, in one Plackett-Luce factor.

With reward r = beta * (log pi(t|v,l) - log pi_ref(t|v,l)), "Learning from All" (arXiv 2510.04142) maximises

    P(t+ > T) = exp r(t+) / (exp r(t+) + sum_u exp r(tau^u)),

so the loss of a study is L = -log P = softplus(logsumexp_u r_u - r_+). It is log(N+1) while policy and reference agree,
and at N = 1 it is DPO's sigmoid loss. Its gradient is dL/dr_+ = -(1 - P) and dL/dr_u = softmax(r)_u: the likeliest
trajectory is pushed down hardest. (`apo_zero` and `apo_down` in TRL are another method, Anchored Preference
Optimization.)
"""

from typing import NamedTuple

import torch
from torch.nn.functional import softplus


class GroupLoss(NamedTuple):
    """Losses and rewards of G studies, M = largest number of negatives.

    `losses`: [G] float32, differentiable. `chosen`: [G] reward of the consensus. `rejected`: [G, M] rewards of the
    negatives, -inf where a study has fewer than M. Rewards are detached, float32, in nats times beta.
    """

    losses: torch.Tensor
    chosen: torch.Tensor
    rejected: torch.Tensor


def pad_groups(values: torch.Tensor, group_sizes: list[int], fill: float) -> torch.Tensor:
    """Turn [sum(group_sizes)] study-major values into [G, max(group_sizes)], padded on the right with `fill`."""
    return torch.nn.utils.rnn.pad_sequence(values.split(group_sizes), batch_first=True, padding_value=fill)


def plackett_luce(
    policy_logps: torch.Tensor,
    reference_logps: torch.Tensor,
    group_sizes: list[int],
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> GroupLoss:
    """Plackett-Luce loss of G studies, each with one consensus and one or more negatives.

    Args:
        policy_logps: [S] summed log-probabilities in nats, S = sum(group_sizes); within a study the consensus is first.
        reference_logps: [S] the same under the frozen reference.
        group_sizes: responses of each study, consensus included (N + 1 >= 2).
        beta: strength of the tie to the reference, > 0.
        label_smoothing: probability that the preference is wrong, in [0, 0.5). The target puts 1 - label_smoothing on
            the consensus and spreads label_smoothing evenly over the study's N negatives; at N = 1 this is
            conservative DPO, as in TRL and ms-swift.

    Raises:
        ValueError: a study without a negative, sizes that do not add up, or settings outside their range.
    """
    if sum(group_sizes) != policy_logps.numel() or policy_logps.shape != reference_logps.shape:
        raise ValueError(
            f"group_sizes add up to {sum(group_sizes)}, but there are {policy_logps.numel()} policy and "
            f"{reference_logps.numel()} reference log-probs"
        )
    if min(group_sizes) < 2:
        raise ValueError("a study without a negative has no preference to learn: drop it or give it a trajectory")
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {label_smoothing}")

    # The difference of two sums of several hundred nats is formed in the precision they come in (float64 in training);
    # a float32 sum of 600 nats would alone cost 6e-5.
    rewards = (beta * (policy_logps - reference_logps)).float()
    padded = pad_groups(rewards, group_sizes, float("-inf"))
    chosen, rejected = padded[:, 0], padded[:, 1:]
    losses = softplus(torch.logsumexp(rejected, dim=1) - chosen)
    if label_smoothing:
        counts = torch.tensor(group_sizes, device=rewards.device) - 1
        mean_rejected = rejected.masked_fill(rejected.isneginf(), 0.0).sum(dim=1) / counts
        losses = losses + label_smoothing * (chosen - mean_rejected)
    return GroupLoss(losses, chosen.detach(), rejected.detach())


def group_metrics(loss: GroupLoss) -> dict[str, torch.Tensor]:
    """Per-study training metrics, each [G].

    `rewards/rejected` is the mean over a study's negatives and `rewards/rejected_hardest` the largest; the two margins
    follow. `rewards/accuracies` is 1 only where the consensus beats ALL negatives. `effective_negatives` is
    exp(entropy of softmax(r_u)), the number of negatives that share the push: N when all are alike, 1 when one takes
    it all.
    """
    present = ~loss.rejected.isneginf()
    mean_rejected = loss.rejected.masked_fill(~present, 0.0).sum(dim=1) / present.sum(dim=1)
    hardest = loss.rejected.max(dim=1).values
    log_share = torch.log_softmax(loss.rejected, dim=1)
    entropy = -(log_share.exp() * log_share.masked_fill(~present, 0.0)).sum(dim=1)
    return {
        "rewards/chosen": loss.chosen,
        "rewards/rejected": mean_rejected,
        "rewards/rejected_hardest": hardest,
        "rewards/margins": loss.chosen - mean_rejected,
        "rewards/margins_hardest": loss.chosen - hardest,
        "rewards/accuracies": (loss.chosen > hardest).float(),
        "effective_negatives": entropy.exp(),
    }
