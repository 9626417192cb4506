"""Policy-gradient losses token by token, and how tokens add up to one number.

Shapes: M tokens that the policy chose, of all responses of a micro-batch.
"""

from dataclasses import dataclass
from typing import Literal

import torch

Aggregate = Literal["token", "sequence", "constant"]
LossName = Literal["clip", "gspo", "cispo"]


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """A loss for each token, and which tokens give no gradient because the ratio was clipped."""

    loss_M: torch.Tensor
    clipped_M: torch.Tensor


@dataclass(frozen=True, slots=True)
class Totals:
    """What the loss is divided by: counts over all ranks and micro-batches of the step."""

    tokens: float
    responses: float
    max_new_tokens: int


def clip_loss(
    logprobs_M: torch.Tensor,
    old_logprobs_M: torch.Tensor,
    advantages_M: torch.Tensor,
    low: float = 0.2,
    high: float = 0.2,
    dual_clip: float | None = None,
) -> TokenLoss:
    """−min(ρA, clip(ρ, 1 − low, 1 + high)·A), ρ = e^(log π − log π_old) (PPO; high > low: DAPO's clip-higher).

    With `dual_clip` = c > 1 the loss of a token with A < 0 is at most −c·A (Ye et al. 2020).
    """
    ratio = (logprobs_M - old_logprobs_M.detach()).exp()
    plain = -ratio * advantages_M
    bounded = -ratio.clamp(1 - low, 1 + high) * advantages_M
    loss = torch.maximum(plain, bounded)
    clipped = bounded > plain
    if dual_clip is not None:
        if dual_clip <= 1:
            raise ValueError(f"dual_clip must be greater than 1, got {dual_clip}")
        cap = -dual_clip * advantages_M
        capped = (advantages_M < 0) & (loss > cap)
        loss = torch.where(capped, cap, loss)
        clipped = clipped | capped
    return TokenLoss(loss, clipped)


def gspo_loss(
    logprobs_M: torch.Tensor,
    old_logprobs_M: torch.Tensor,
    advantages_M: torch.Tensor,
    response_M: torch.Tensor,
    num_responses: int,
    low: float = 3e-4,
    high: float = 4e-4,
) -> TokenLoss:
    """`clip_loss` with one ratio a response, e^(mean of its tokens' log π − log π_old) (GSPO, Zheng et al. 2025).

    Each token carries its response's loss; aggregated by `sequence` it is the paper's. The ratios are near 1, so the
    range is far narrower than that of single tokens.
    """
    difference_M = logprobs_M - old_logprobs_M.detach()
    sums = difference_M.new_zeros(num_responses).index_add(0, response_M, difference_M)
    lengths = response_M.bincount(minlength=num_responses).clamp(min=1)
    ratio = (sums / lengths).exp()[response_M]
    plain = -ratio * advantages_M
    bounded = -ratio.clamp(1 - low, 1 + high) * advantages_M
    return TokenLoss(torch.maximum(plain, bounded), bounded > plain)


def cispo_loss(
    logprobs_M: torch.Tensor, old_logprobs_M: torch.Tensor, advantages_M: torch.Tensor, high: float = 4.0
) -> TokenLoss:
    """−sg[min(ρ, 1 + high)]·A·log π: the weight is clipped, the token's gradient never (CISPO, MiniMax-M1 2025).

    `clipped_M` marks the tokens whose weight was cut; they still learn.
    """
    ratio = (logprobs_M.detach() - old_logprobs_M.detach()).exp()
    return TokenLoss(-ratio.clamp(max=1 + high) * advantages_M * logprobs_M, ratio > 1 + high)


def mismatch_weight(old_logprobs_M: torch.Tensor, rollout_logprobs_M: torch.Tensor, cap: float) -> torch.Tensor:
    """min(π_old/π_rollout, cap), without gradient: truncated importance sampling where an engine made the rollouts."""
    return (old_logprobs_M - rollout_logprobs_M).exp().clamp(max=cap).detach()


def aggregate(
    loss_M: torch.Tensor, response_M: torch.Tensor, num_responses: int, how: Aggregate, totals: Totals
) -> torch.Tensor:
    """One number whose sum over ranks and micro-batches is the loss of the whole step.

    Args:
        response_M: index of each token's response inside this micro-batch, below `num_responses`.
        how: `token` Σ/tokens (DAPO); `sequence` mean of the responses' means (GRPO); `constant` Σ/(responses ·
            max_new_tokens) (Dr. GRPO).

    A response must not be split over micro-batches.
    """
    if how == "token":
        return loss_M.sum() / max(totals.tokens, 1)
    if how == "constant":
        return loss_M.sum() / max(totals.responses * totals.max_new_tokens, 1)
    if how == "sequence":
        sums = loss_M.new_zeros(num_responses).index_add(0, response_M, loss_M)
        lengths = response_M.bincount(minlength=num_responses).clamp(min=1)
        return (sums / lengths).sum() / max(totals.responses, 1)
    raise ValueError(f"{how!r} is no way to aggregate; known: token, sequence, constant")
