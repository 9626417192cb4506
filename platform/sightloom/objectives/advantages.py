"""Advantages from rewards of groups of responses.

Rewards [P, G]: P prompts, G responses each. NaN = a response that could not be scored: it is outside every
statistic and its advantage is 0.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch

REWARD_DECIMALS = 6  # rewards closer than this are a tie; float noise must not rank
SIGMA_FLOOR = 1e-4  # GRPO's ε


def grpo(rewards_PG: torch.Tensor) -> torch.Tensor:
    """(R − μ)/(σ + 1e-4) in each group, σ with n − 1 (Shao et al. 2024; TRL's default)."""
    rewards, scored, count = _masked(rewards_PG)
    centred = _centred(rewards, scored, count)
    sigma = (centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return _finished(centred / (sigma + SIGMA_FLOOR), scored, rewards_PG)


def dr_grpo(rewards_PG: torch.Tensor) -> torch.Tensor:
    """R − μ in each group (Liu et al. 2025)."""
    rewards, scored, count = _masked(rewards_PG)
    return _finished(_centred(rewards, scored, count), scored, rewards_PG)


def rloo(rewards_PG: torch.Tensor) -> torch.Tensor:
    """R − the mean of the others in the group (Ahmadian et al. 2024); a lone response has advantage 0."""
    rewards, scored, count = _masked(rewards_PG)
    others = (rewards.sum(-1, keepdim=True) - rewards) / (count - 1).clamp(min=1)
    return _finished(torch.where(count > 1, rewards - others, torch.zeros_like(rewards)), scored, rewards_PG)


def g2rpo(
    rewards_PG: torch.Tensor,
    tasks_P: torch.Tensor | None = None,
    scope: Literal["group", "group+task"] = "group",
    recenter: bool = False,
    unit_variance: bool = False,
) -> torch.Tensor:
    """Gaussian GRPO (OpenVLThinkerV2, Algorithm 1): each reward's rank becomes its normal quantile Φ⁻¹((i − ½)/N).

    Ties share the mean of their quantiles, so the advantages of a group sum to zero and no reward's size matters.

    Args:
        tasks_P: task of each prompt; needed for `group+task`.
        scope: `group` is the paper; `group+task` is its released code, which ranks all values of a task once more and
            so leaves group means other than zero.
        recenter: subtract each group's mean afterwards (nothing to do for `group`).
        unit_variance: divide by √E[q²] of N values without ties: the paper's "unit variance" holds only for large N.

    Differs from the paper: rewards are rounded to 1e-6 first, and unscorable responses are left out.
    """
    rewards = rewards_PG.detach().to("cpu", torch.float64)
    values = torch.stack([_quantiles(row, unit_variance) for row in rewards]) if len(rewards) else rewards
    if scope == "group+task":
        if tasks_P is None:
            raise ValueError("scope group+task needs the task of each prompt")
        tasks = tasks_P.to("cpu")
        for task in tasks.unique():
            rows = tasks == task
            values[rows] = _quantiles(values[rows].flatten(), unit_variance).reshape(values[rows].shape)
    scored = ~values.isnan()
    values = values.nan_to_num(0.0)
    if recenter:
        values = _centred(values, scored, scored.sum(-1, keepdim=True))
    return values.to(rewards_PG.device, rewards_PG.dtype)


def along_prefixes(advantages: Sequence[float], responses: Sequence[Sequence[int]]) -> list[list[float]]:
    """A group's advantages token by token: what a token changed, seen from the responses that went the same way so far.

    A token gets the mean advantage of the responses that share all tokens up to and with it, less that of those which
    share all tokens before it. Where every response went on alike, or only one is left, it is 0. Along a response the
    values add up to the mean advantage of the responses that end as it does; the first tokens' baseline is the group's
    mean, 0. Responses that go apart late keep the credit where they part (the tree estimators of TreeRL and SPO).

    Args:
        advantages: one a response.
        responses: token ids, in the same order.
    """
    found = []
    for response in responses:
        alive = list(range(len(responses)))
        before = sum(advantages) / len(advantages)
        row = []
        for place, token in enumerate(response):
            if len(alive) > 1:
                alive = [i for i in alive if len(responses[i]) > place and responses[i][place] == token]
            mean = sum(advantages[i] for i in alive) / len(alive)
            row.append(mean - before)
            before = mean
        found.append(row)
    return found


def _quantiles(values_N: torch.Tensor, unit_variance: bool) -> torch.Tensor:
    """Normal quantiles of the ranks, ties averaged; NaN stays NaN."""
    scored = ~values_N.isnan()
    num = int(scored.sum())
    out = torch.full_like(values_N, torch.nan)
    if num <= 1:
        out[scored] = 0.0
        return out
    quantiles = math.sqrt(2) * torch.erfinv(2 * (torch.arange(1, num + 1, dtype=torch.float64) - 0.5) / num - 1)
    if unit_variance:
        quantiles = quantiles / quantiles.square().mean().sqrt()
    rounded = values_N[scored].round(decimals=REWARD_DECIMALS)
    levels, level_of = rounded.unique(return_inverse=True)
    order = level_of.argsort(stable=True)
    sums = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, level_of[order], quantiles)
    out[scored] = (sums / level_of.bincount(minlength=len(levels)))[level_of]
    return out


def _masked(rewards_PG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rewards = rewards_PG.detach().double()
    scored = ~rewards.isnan()
    return rewards.nan_to_num(0.0), scored, scored.sum(-1, keepdim=True)


def _centred(rewards: torch.Tensor, scored: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    mean = rewards.sum(-1, keepdim=True) / count.clamp(min=1)
    return torch.where(scored, rewards - mean, torch.zeros_like(rewards))


def _finished(values: torch.Tensor, scored: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.where(scored, values, torch.zeros_like(values)).to(like.dtype)
