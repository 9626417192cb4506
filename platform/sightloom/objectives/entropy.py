"""Entropy of the policy and the term that keeps it inside a band.

The published entropy term of OpenVLThinkerV2 uses the sampled negative log-likelihood, whose on-policy gradient has
mean zero; this one differentiates the entropy itself.

Shapes: M tokens, V vocabulary, K tasks.
"""

import torch


def token_entropy(logits_MV: torch.Tensor) -> torch.Tensor:
    """H = logsumexp z − Σ softmax(z)·z in nats, float32 [M], with gradient."""
    logits_MV = logits_MV.float()
    return torch.logsumexp(logits_MV, dim=-1) - (torch.softmax(logits_MV, dim=-1) * logits_MV).sum(-1)


def band_distance(entropy: float, low: float, high: float) -> float:
    """max(0, H − high) + max(0, low − H): how far a task's mean entropy is outside its band."""
    return max(0.0, entropy - high) + max(0.0, low - entropy)


def band_slope(entropy: float, low: float, high: float) -> float:
    """The derivative of `band_distance`: +1 above the band, −1 below it, 0 inside."""
    return float(entropy > high) - float(entropy < low)


def band_loss(
    entropy_M: torch.Tensor,
    task_M: torch.Tensor,
    mean_K: torch.Tensor,
    count_K: torch.Tensor,
    bands_K2: torch.Tensor,
) -> torch.Tensor:
    """A local sum whose gradient, added over ranks, is that of Σ over tasks of the mean entropy's distance to its band.

    Args:
        entropy_M: entropies of this rank's tokens that the policy chose, with gradient.
        task_M: each token's task.
        mean_K, count_K: mean entropy and number of tokens of each task over all ranks; no tokens, no term.
        bands_K2: low and high of each task.

    Its value is not the distance (see `band_distance`) but a surrogate for it.
    """
    slope_K = (mean_K > bands_K2[:, 1]).float() - (mean_K < bands_K2[:, 0]).float()
    weight_K = torch.where(count_K > 0, slope_K / count_K.clamp(min=1), torch.zeros_like(slope_K))
    return (entropy_M * weight_K.detach()[task_M]).sum()
