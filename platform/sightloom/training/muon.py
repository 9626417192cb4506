"""Muon for weight matrices, AdamW for everything else, in one optimizer.

Momentum whose direction is made orthogonal by a few Newton-Schulz steps (Jordan et al. 2024), its rate scaled by
0.2·sqrt(longer side) so that AdamW's rates carry over (Liu et al. 2025, arXiv:2502.16982). The work is shared: each
worker orthogonalises some of the matrices, and one sum hands the directions round.

Shapes: N matrices, R rows, C columns.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
_EPSILON: Final = 1e-8


def orthogonalise(matrices_NRC: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of each matrix towards 1 by quintic Newton-Schulz steps; they end within 0.7–1.2."""
    a, b, c = _COEFFICIENTS
    x = matrices_NRC
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def share_out(costs: Sequence[float], workers: int) -> list[int]:
    """Which worker takes each task: heaviest first, to the least loaded; the same plan on every worker."""
    loads = [0.0] * workers
    takers = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        taker = loads.index(min(loads))
        takers[index], loads[taker] = taker, loads[taker] + costs[index]
    return takers


class Muon(torch.optim.Optimizer):
    """Groups with `muon: True` hold matrices; the others are stepped by AdamW.

    Args:
        groups: each with `params`, `lr`, `weight_decay`, `muon`.
        betas: AdamW's; Muon's momentum is `momentum`, in Nesterov's form.
        rank, world, share: this worker's place, and the sum over workers of a flat tensor.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        betas: tuple[float, float],
        momentum: float,
        rank: int,
        world: int,
        share: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0, "muon": False})
        self._betas, self._momentum = betas, momentum
        self._rank, self._world, self._share = rank, world, share

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closures
        """One step; all workers call it together, with equal gradients."""
        del closure
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["muon"]:
                self._step_matrices(parameters, group)
            else:
                self._step_rest(parameters, group)

    def _step_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        costs = [float(parameter.numel() * min(parameter.shape)) for parameter in parameters]
        mine: dict[torch.Size, list[int]] = {}
        for index, taker in enumerate(share_out(costs, self._world)):
            parameter = parameters[index]
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(_gradient(parameter), 1 - self._momentum)
            if taker == self._rank:
                mine.setdefault(parameter.shape, []).append(index)
        directions = [torch.zeros_like(parameter) for parameter in parameters]
        for members in mine.values():
            nesterov = [
                _gradient(parameters[i]).lerp(self.state[parameters[i]]["momentum"], self._momentum) for i in members
            ]
            for index, direction in zip(members, orthogonalise(torch.stack(nesterov)).unbind(), strict=True):
                directions[index] = direction
        if self._world > 1 and directions:
            flat = self._share(torch.cat([direction.reshape(-1) for direction in directions]))
            sizes = [parameter.numel() for parameter in parameters]
            directions = [part.view_as(p) for part, p in zip(flat.split(sizes), parameters, strict=True)]
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(direction, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)

    def _step_rest(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = self._betas
        for parameter in parameters:
            gradient, state = _gradient(parameter), self.state[parameter]
            if not state:
                state["step"], state["mean"] = 0, torch.zeros_like(parameter)
                state["square"] = torch.zeros_like(parameter)
            state["step"] += 1
            state["mean"].lerp_(gradient, 1 - beta1)
            state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            scale = (state["square"] / (1 - beta2 ** state["step"])).sqrt_().add_(_EPSILON)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.addcdiv_(state["mean"], scale, value=-group["lr"] / (1 - beta1 ** state["step"]))


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None  # only such parameters are stepped
    return parameter.grad
