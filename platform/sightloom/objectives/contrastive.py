"""Contrastive losses between images and texts: CLIP (softmax) and SigLIP (sigmoid).

Each rank scores its own rows against the columns of all ranks. The results are local sums: divide by the global number
of pairs, add the gradients over the ranks, and the gradient is that of one process with the whole batch.

Shapes: B pairs of this rank, N pairs of all ranks, D width of the features (L2-normalised).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from sightloom.objectives.precision import widened

Gather = Callable[[torch.Tensor], torch.Tensor]  # [B, D] of this rank → [N, D] of all ranks, differentiable
MAX_SCALE = 100.0  # open_clip's and CLIP's cap of the logit scale


def alone(features_BD: torch.Tensor) -> torch.Tensor:
    """The gather of a single process."""
    return features_BD


def clip_loss(
    image_BD: torch.Tensor,
    text_BD: torch.Tensor,
    log_scale: torch.Tensor,
    gather: Gather = alone,
    offset: int = 0,
) -> torch.Tensor:
    """Σ over local pairs of ½[CE over texts + CE over images] (Radford et al. 2021; open_clip's ClipLoss is its mean).

    Args:
        log_scale: t of the logit scale s = e^t, which is held to at most 100.
        gather: the features of all ranks; gradients must flow back to their owners.
        offset: where this rank's rows stand among the gathered ones.
    """
    scale = widened(log_scale).exp().clamp(max=MAX_SCALE)
    image_BD, text_BD = widened(image_BD), widened(text_BD)
    targets_B = torch.arange(offset, offset + len(image_BD), device=image_BD.device)
    over_texts = F.cross_entropy(scale * image_BD @ gather(text_BD).T, targets_B, reduction="sum")
    over_images = F.cross_entropy(scale * text_BD @ gather(image_BD).T, targets_B, reduction="sum")
    return (over_texts + over_images) / 2


def siglip_loss(
    image_BD: torch.Tensor,
    text_BD: torch.Tensor,
    log_scale: torch.Tensor,
    bias: torch.Tensor,
    gather: Gather = alone,
    offset: int = 0,
) -> torch.Tensor:
    """Σ over local images and all texts of −log σ(z·(s·vᵀt + b)), z = +1 on pairs, else −1 (Zhai et al. 2023, eq. 1).

    Arguments as in `clip_loss`. Divided by the global number of pairs it is open_clip's SigLipLoss.
    """
    scale = widened(log_scale).exp().clamp(max=MAX_SCALE)
    logits_BN = scale * widened(image_BD) @ gather(widened(text_BD)).T + widened(bias)
    rows_B = torch.arange(len(logits_BN), device=logits_BN.device)
    signs_BN = torch.full_like(logits_BN, -1.0)
    signs_BN[rows_B, rows_B + offset] = 1.0
    return -F.logsigmoid(signs_BN * logits_BN).sum()
