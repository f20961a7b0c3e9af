"""The APO objective: one consensus against N drifting trajectories, in one Plackett-Luce factor.

With reward r = beta * (log pi(t|v,l) - log pi_ref(t|v,l)), "Learning from All" (arXiv 2510.04142) maximises

    P(t+ > T) = exp r(t+) / (exp r(t+) + sum_u exp r(tau^u)),

so the loss of a study is L = -log P = softplus(logsumexp_u r_u - r_+). It is log(N+1) while policy and reference agree,
and at N = 1 it is DPO's sigmoid loss. Its gradient is dL/dr_+ = -(1 - P) and dL/dr_u = softmax(r)_u: the likeliest
trajectory is pushed down hardest. (`apo_zero` and `apo_down` in TRL are another method, Anchored Preference
Optimization.)

It is the ranking form of noise contrastive estimation (Ma and Collins 2018, arXiv 1809.01812) with the reference as
noise: if consensus texts come from p(.|v,l) and trajectories from pi_ref(.|v,l), the optimum is
pi = c(v,l) * pi_ref * (p / pi_ref)^(1 / beta). Nothing in the loss fixes c: all responses of a study may sink together.

Not in the paper, each off by default and there to be compared with it (docs/evidence.md):

- `pairwise` (`--loss_type pairwise`): the mean over a study's N negatives of DPO's loss of the pair (consensus,
  negative), L = 1/N sum_u softplus(r_u - r_+). The same as stock DPO on N pairs a study, behind one shared prefix.
- `lengths` (`apo_length_normalised`): r = beta * (log pi(t|v,l) - log pi_ref(t|v,l)) / tokens of t. A reward is then
  some hundred times smaller: raise beta with it.
- reference-free (`apo_reference_free`): r = beta * log pi(t|v,l), as if pi_ref gave every response the same probability
  (as in CPO, Xu et al. 2024, arXiv 2401.08417). At beta 1 exp(-L) is then the policy's own probability of the consensus
  among the study's N + 1 texts.
- `weights` (row column `negative_weights`): negative u counts w_u times. In Plackett-Luce log w_u joins r_u inside the
  logsumexp, P = exp r_+ / (exp r_+ + sum_u w_u exp r_u); in `pairwise` the mean is weighted.
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


def padded_rewards(
    policy_logps: torch.Tensor,
    reference_logps: torch.Tensor,
    group_sizes: list[int],
    *,
    beta: float,
    lengths: torch.Tensor | None = None,
) -> torch.Tensor:
    """[G, M + 1] float32 rewards in nats times beta, consensus first, -inf where a study has fewer than M negatives.

    Arguments as in `plackett_luce`. Raises ValueError for what it says of sizes and beta.
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
    # The difference of two sums of several hundred nats is formed in the precision they come in (float64 in training);
    # a float32 sum of 600 nats would alone cost 6e-5.
    ratios = policy_logps - reference_logps
    if lengths is not None:
        if lengths.shape != ratios.shape or not bool((lengths > 0).all()):
            raise ValueError("lengths must give every response at least one token")
        ratios = ratios / lengths
    return pad_groups((beta * ratios).float(), group_sizes, float("-inf"))


def padded_weights(weights: torch.Tensor, group_sizes: list[int]) -> torch.Tensor:
    """[G, M] float32 weights of the negatives, 0 where a study has fewer than M; ValueError as `plackett_luce`."""
    if weights.numel() != sum(group_sizes):
        raise ValueError(f"{weights.numel()} weights for {sum(group_sizes)} responses")
    if not bool((weights.isfinite() & (weights > 0)).all()):
        raise ValueError("weights of negatives must be finite and positive; leave a negative out, do not weigh it 0")
    return pad_groups(weights.float(), group_sizes, 0.0)[:, 1:]


def check_smoothing(label_smoothing: float) -> None:
    """Raise ValueError unless it is in [0, 0.5)."""
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {label_smoothing}")


def plackett_luce(
    policy_logps: torch.Tensor,
    reference_logps: torch.Tensor,
    group_sizes: list[int],
    *,
    beta: float,
    label_smoothing: float = 0.0,
    lengths: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
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
        lengths: [S] tokens of each response: rewards are divided by them. None: as published, no normalisation.
        weights: [S] > 0, weights of the negatives (the consensus's own entry is not used). None: as published, all 1.

    Raises:
        ValueError: a study without a negative, sizes that do not add up, or settings outside their range.
    """
    check_smoothing(label_smoothing)
    if label_smoothing and weights is not None:
        raise ValueError("label_smoothing spreads its share evenly over the negatives: leave it or their weights out")
    padded = padded_rewards(policy_logps, reference_logps, group_sizes, beta=beta, lengths=lengths)
    chosen, rejected = padded[:, 0], padded[:, 1:]
    # log 0 = -inf where there is no negative, as the rewards there
    pushed = rejected if weights is None else rejected + padded_weights(weights, group_sizes).log()
    losses = softplus(torch.logsumexp(pushed, dim=1) - chosen)
    if label_smoothing:
        counts = torch.tensor(group_sizes, device=padded.device) - 1
        mean_rejected = rejected.masked_fill(rejected.isneginf(), 0.0).sum(dim=1) / counts
        losses = losses + label_smoothing * (chosen - mean_rejected)
    return GroupLoss(losses, chosen.detach(), rejected.detach())


def pairwise(
    policy_logps: torch.Tensor,
    reference_logps: torch.Tensor,
    group_sizes: list[int],
    *,
    beta: float,
    label_smoothing: float = 0.0,
    lengths: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> GroupLoss:
    """DPO's loss (Rafailov et al. 2023, arXiv 2305.18290, eq. 7) of each pair (consensus, negative), mean by study.

    Arguments and errors as in `plackett_luce`; `label_smoothing` is that of conservative DPO in each pair, `weights`
    make the mean over a study's negatives a weighted one.
    """
    check_smoothing(label_smoothing)
    padded = padded_rewards(policy_logps, reference_logps, group_sizes, beta=beta, lengths=lengths)
    chosen, rejected = padded[:, 0], padded[:, 1:]
    present = ~rejected.isneginf()
    shares = present.float() if weights is None else padded_weights(weights, group_sizes)
    # Absent pairs get a finite gap first: 0 times an infinite loss would be NaN, and so would its gradient.
    gap = (rejected - chosen[:, None]).masked_fill(~present, 0.0)
    losses = (1 - label_smoothing) * softplus(gap) + label_smoothing * softplus(-gap)
    losses = (losses * shares).sum(dim=1) / shares.sum(dim=1)
    return GroupLoss(losses, chosen.detach(), rejected.detach())


# by --loss_type
LOSSES = {"plackett_luce": plackett_luce, "pairwise": pairwise}


def group_metrics(loss: GroupLoss) -> dict[str, torch.Tensor]:
    """Per-study training metrics, each [G].

    `rewards/rejected` is the mean over a study's negatives and `rewards/rejected_hardest` the largest; the two margins
    follow. `rewards/accuracies` is 1 only where the consensus beats ALL negatives. `effective_negatives` is
    exp(entropy of softmax(r_u)), the number of negatives that share the push: N when all are alike, 1 when one takes
    it all (of the rewards alone, without weights of negatives).
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
