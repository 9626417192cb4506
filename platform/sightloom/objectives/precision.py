"""The number format of losses: float32 at least, float64 where the caller computes in it."""

import torch


def widened(values: torch.Tensor) -> torch.Tensor:
    """Half formats as float32; float32 and float64 as they are."""
    return values if values.dtype == torch.float64 else values.float()
