"""The optimizer with a rate for each part of the model, and the schedule: pure functions of the step."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from sightloom.training.curriculum import Optim
from sightloom.training.muon import Muon
from sightloom.training.parallel import Workers


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
    workers: Workers,
) -> torch.optim.Optimizer:
    """The optimizer over what trains; parameters of frozen groups stop requiring a gradient.

    Matrices decay; norms, biases and embeddings do not. `groups` maps vision, fusion, decoder and head to names.
    """
    collected: list[dict[str, Any]] = []
    muon = options.kind == "muon"
    for group, rate in rates.items():
        named = [(name, parameters[name]) for name in groups.get(group, [])]
        for _, parameter in named:
            parameter.requires_grad_(rate is not None)
        if rate is None:
            continue
        for matrices in (True, False):
            members = [parameter for name, parameter in named if _is_matrix(name, parameter) == matrices]
            peak = rate * options.rest if muon and not matrices else rate
            decay = options.weight_decay if matrices else 0.0
            entry = {"params": members, "lr": peak, "peak_lr": peak, "weight_decay": decay}
            if members:
                collected.append({**entry, "muon": matrices} if muon else entry)
    if muon:
        return Muon(collected, options.betas, options.momentum, workers.rank, workers.world, workers.sum)
    return torch.optim.AdamW(collected, betas=options.betas, eps=1e-8, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's rate to `factor` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def _is_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    return parameter.ndim == 2 and "embed" not in name
