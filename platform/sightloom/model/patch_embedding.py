"""The vision tower's patch embedding as a matrix product.

Its Conv3d has a kernel as large as its stride, over patches that are already cut: the same sums as one product, which a
CPU does five times faster.
"""

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def use_matrix_product(model: Any) -> None:
    """Let `model`'s patch embedding multiply instead of convolve; weights and their names stay as they are."""
    for module in model.modules():
        kernel = getattr(module, "proj", None)
        if type(module).__name__ == "Qwen3VLVisionPatchEmbed" and isinstance(kernel, nn.Conv3d):
            module.forward = MethodType(_embed, module)


def _embed(module: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    weight = module.proj.weight.flatten(1)
    return F.linear(hidden_states.reshape(-1, weight.shape[1]).to(weight.dtype), weight, module.proj.bias)
