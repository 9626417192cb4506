"""Losses of pairwise preferences: DPO, IPO, and the Bradley-Terry loss of a reward model.

The results are local sums over pairs: divide them by the global number of pairs.

Shapes: N pairs, y_w the chosen and y_l the rejected response of each.
"""

import torch
import torch.nn.functional as F


def preference_margin(
    chosen_N: torch.Tensor, rejected_N: torch.Tensor, ref_chosen_N: torch.Tensor, ref_rejected_N: torch.Tensor
) -> torch.Tensor:
    """Δ = (log π − log π_ref)(y_w) − (log π − log π_ref)(y_l), [N].

    Args:
        chosen_N, rejected_N: log-probabilities under the policy, token sums for DPO and token means for IPO.
        ref_chosen_N, ref_rejected_N: the same under the reference; no gradient flows to them.
    """
    return (chosen_N - ref_chosen_N.detach()) - (rejected_N - ref_rejected_N.detach())


def dpo_loss(margin_N: torch.Tensor, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    """Σ −(1−ε)·log σ(βΔ) − ε·log σ(−βΔ) (Rafailov et al. 2023, eq. 7; ε: Mitchell's conservative DPO).

    Args:
        margin_N: Δ of token sums.
        label_smoothing: ε, the share of pairs that are thought to be labelled the wrong way round.
    """
    scaled_N = beta * margin_N
    kept, flipped = -F.logsigmoid(scaled_N), -F.logsigmoid(-scaled_N)
    return ((1 - label_smoothing) * kept + label_smoothing * flipped).sum()


def ipo_loss(margin_N: torch.Tensor, beta: float) -> torch.Tensor:
    """Σ (Δ − 1/(2β))² with Δ of token means (Azar et al. 2023, eq. 17, per token as its authors confirmed to TRL)."""
    return ((margin_N - 1 / (2 * beta)) ** 2).sum()


def reward_loss(chosen_N: torch.Tensor, rejected_N: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
    """Σ −log σ(r_w − r_l − margin) (Bradley and Terry 1952; the margin as in Llama 2, eq. 2)."""
    return -F.logsigmoid(chosen_N - rejected_N - margin).sum()


def num_right(margin_N: torch.Tensor) -> float:
    """How many pairs are ordered as the record orders them; a tie counts half, as a coin would."""
    return float((margin_N > 0).sum()) + 0.5 * float((margin_N == 0).sum())
