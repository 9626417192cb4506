"""Estimators of KL(π ‖ π_ref) from samples of π (Schulman 2020), with d = log π_ref − log π.

As a value k3 is unbiased with little variance. As a loss only k2 has the right gradient on policy: k1's has mean zero,
and k3's is that of the opposite KL. `k3_k2grad` takes the value of the one and the gradient of the other.
"""

from collections.abc import Callable
from typing import Final

import torch


def k1(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """−d; unbiased, may be negative; no gradient on policy."""
    return logprobs - reference


def k2(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """d²/2; biased, with the right gradient."""
    return (reference - logprobs).square() / 2


def k3(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """e^d − d − 1; unbiased and never negative, with the gradient of the opposite KL."""
    difference = reference - logprobs
    return difference.exp() - difference - 1


def k3_k2grad(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The value of k3 with the gradient of k2."""
    gradient = k2(logprobs, reference)
    return gradient + (k3(logprobs, reference) - gradient).detach()


ESTIMATORS: Final[dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "k3_k2grad": k3_k2grad,
}
