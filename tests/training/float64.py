"""A nano that computes in float64 throughout: transformers' norms and its vision tower's rotations go by float32."""

from types import MethodType
from typing import Any

import torch
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen


def doubled(model: Any, monkeypatch: Any) -> Any:
    """The same model in float64; the patch of the rotation lasts as long as the test."""

    def norm(module: Any, hidden: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
        return module.weight * (hidden * scale)

    def rotated(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = cos.unsqueeze(-2).double(), sin.unsqueeze(-2).double()
        return q * cos + qwen.rotate_half(q) * sin, k * cos + qwen.rotate_half(k) * sin

    monkeypatch.setattr(qwen, "apply_rotary_pos_emb_vision", rotated)
    model = model.double()
    for module in model.modules():
        if isinstance(module, qwen.Qwen3VLTextRMSNorm):
            module.forward = MethodType(norm, module)
    return model
