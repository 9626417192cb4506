"""Which part of a model a parameter belongs to: vision, fusion, decoder or head.

Works by the names that Hugging Face's image-text-to-text models share. Freezing, learning rates, LoRA and FLOP counts
use only this map.
"""

from typing import Any, Final, Literal

from torch import nn

from sightloom.errors import SightloomError

Group = Literal["vision", "fusion", "decoder", "head"]
GROUPS: Final[tuple[Group, ...]] = ("vision", "fusion", "decoder", "head")

_VISION: Final = {"visual", "vision_tower", "vision_model", "vision_encoder"}
_BESIDE: Final = {"multi_modal_projector", "connector", "aligner", "image_newline"}
_DECODER: Final = {"language_model", "text_model"}
_HEAD: Final = {"lm_head", "heads"}


def module_groups(model: nn.Module) -> dict[Group, list[str]]:
    """The names of all parameters, each in exactly one group; a tied language head counts as the decoder's embedding.

    Args:
        model: a Hugging Face image-text-to-text model, or a TrainableVLM around one.

    Raises:
        SightloomError: a parameter whose name fits no group.
    """
    groups: dict[Group, list[str]] = {group: [] for group in GROUPS}
    unmapped = []
    for name, _ in model.named_parameters():
        group = group_of(name)
        if group is None:
            unmapped.append(name)
        else:
            groups[group].append(name)
    if unmapped:
        raise SightloomError(
            f"{type(model).__name__}: no group for {len(unmapped)} parameters, e.g. {unmapped[0]}",
            hint="add the part's name to sightloom/model/modules.py",
        )
    return groups


def parameters_of(model: nn.Module, group: Group) -> dict[str, nn.Parameter]:
    """The parameters of one group by name."""
    names = set(module_groups(model)[group])
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


def group_of(name: str) -> Group | None:
    """The group of a parameter by its dotted name; None if no part of it is known."""
    parts = name.split(".")
    for part in parts:
        if part in _BESIDE or "merger" in part:
            return "fusion"
        if part in _VISION and not any("merger" in later or later in _BESIDE for later in parts):
            return "vision"
        if part in _DECODER:
            return "decoder"
        if part in _HEAD:
            return "head"
    return None


def describe(model: Any) -> dict[Group, int]:
    """The number of parameters of each group."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return {group: sum(sizes[name] for name in names) for group, names in module_groups(model).items()}
