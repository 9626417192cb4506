"""AdamW with a rate for each part of the model, and the schedule: pure functions of the step."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from sightloom.training.curriculum import Optim


def schedule_factor(step: int, steps: int, options: Optim) -> float:
    """The share of the peak rate at `step` of `steps`: linear warm-up, then cosine, linear or constant to the floor."""
    warmup = max(1, round(options.warmup * steps))
    if step < warmup:
        return (step + 1) / warmup
    if options.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    falling = 0.5 * (1 + math.cos(math.pi * done)) if options.schedule == "cosine" else 1 - done
    return options.floor + (1 - options.floor) * falling


def build_optimizer(
    parameters: Mapping[str, torch.nn.Parameter],
    groups: Mapping[Any, list[str]],
    rates: Mapping[str, float | None],
    options: Optim,
) -> torch.optim.AdamW:
    """AdamW over what trains; parameters of frozen groups stop requiring a gradient.

    Matrices decay; norms, biases and embeddings do not. `groups` maps vision, fusion, decoder and head to names.
    """
    collected = []
    for group, rate in rates.items():
        named = [(name, parameters[name]) for name in groups.get(group, [])]
        for _, parameter in named:
            parameter.requires_grad_(rate is not None)
        if rate is None or not named:
            continue
        decayed = [parameter for name, parameter in named if _decays(name, parameter)]
        plain = [parameter for name, parameter in named if not _decays(name, parameter)]
        for members, decay in ((decayed, options.weight_decay), (plain, 0.0)):
            if members:
                collected.append({"params": members, "lr": rate, "peak_lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(collected, betas=options.betas, eps=1e-8, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's rate to `factor` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def _decays(name: str, parameter: torch.nn.Parameter) -> bool:
    return parameter.ndim >= 2 and "embed" not in name and "norm" not in name
