"""LoRA on the decoder's seven projections: attached, switched off, folded into the weights (training.md §12).

W x + (alpha / rank)·B A x with A random and B zero (Hu et al. 2021, arXiv:2106.09685), through peft. Which linear
layers are the decoder's the module map says: a vision tower with projections of the same names stays as it is.
"""

from collections.abc import Iterable
from typing import Any, Final

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from sightloom.errors import SightloomError
from sightloom.model.modules import group_of

PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_ADAPTER: Final = ("lora_A", "lora_B")


def projections(model: nn.Module) -> list[str]:
    """The names of the decoder's linear layers that take an adapter.

    Raises:
        SightloomError: the decoder has none of them.
    """
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in PROJECTIONS and group_of(name) == "decoder"
    ]
    if not names:
        raise SightloomError(
            f"{type(model).__name__} has no decoder projection for LoRA; looked for {', '.join(PROJECTIONS)}",
            "train the decoder with a plain learning rate",
        )
    return names


def attach(model: nn.Module, rank: int, alpha: float, seed: int) -> None:
    """Put float32 adapters without dropout on the decoder's projections, in place; the output does not change yet.

    Same seed, same adapters; the caller's random state is left alone. Every other parameter stops training.
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=projections(model), bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name="default")
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name is an adapter's."""
    return any(part in _ADAPTER for part in name.split("."))


def switch(model: nn.Module, on: bool) -> None:
    """Let the adapters act or not; without them the model is the one they were attached to, exactly."""
    for _, layer in _layers(model):
        layer.enable_adapters(on)


def merge(model: nn.Module) -> None:
    """Fold W + (alpha / rank)·B A into each projection and take the adapters away; a plain model stays."""
    for name, layer in list(_layers(model)):
        layer.merge(safe_merge=True)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.get_base_layer())


def _layers(model: nn.Module) -> Iterable[tuple[str, Any]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))
