"""Weights from a folder straight into the shards: no worker ever holds the whole model.

The network is built without storage; before each of its units is shared out, the unit's own weights are read. The most
that is held beside the shards is one unit, so a model larger than a worker's memory can be loaded.
"""

import json
from pathlib import Path
from typing import Final

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from sightloom.errors import SightloomError
from sightloom.model import attention, patch_embedding
from sightloom.model.load import VLM, processor_of

_INDEX: Final = "model.safetensors.index.json"
_SINGLE: Final = "model.safetensors"


def skeleton(folder: Path, pixels: tuple[int, int] | None = None) -> VLM:
    """The model of a folder with parameters on the meta device (buffers are real) and its processor."""
    processor = processor_of(folder, pixels)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    model.tie_weights()
    attention.register(model)
    patch_embedding.use_matrix_product(model)
    return VLM(model.eval(), processor, processor.tokenizer, folder)


class Filler:
    """Gives parts of a skeleton their weights, in float32; what several parts share is read once and stays shared.

    Raises:
        SightloomError: the folder's files do not name a parameter of the model.
    """

    def __init__(self, model: nn.Module, folder: Path, device: str = "cpu") -> None:
        self._folder, self._device = folder, device
        self._files = _files(folder)
        self._empty = {parameter: name for name, parameter in model.named_parameters() if parameter.is_meta}
        self._filled: dict[nn.Parameter, nn.Parameter] = {}
        missing = [name for name in self._empty.values() if name not in self._files]
        if missing:
            raise SightloomError(
                f"the weights in '{folder}' do not name {len(missing)} parameters, e.g. {missing[0]}",
                "load the model with transformers, save it again, and give that folder",
            )

    def __call__(self, part: nn.Module) -> None:
        """Read what is still empty in a part."""
        for module in part.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None and parameter in self._empty:
                    module._parameters[key] = self._weights(parameter)

    def _weights(self, parameter: nn.Parameter) -> nn.Parameter:
        if parameter not in self._filled:
            name = self._empty[parameter]
            with safe_open(self._folder / self._files[name], framework="pt", device="cpu") as file:
                values = file.get_tensor(name).to(self._device, torch.float32)
            if values.shape != parameter.shape:
                raise SightloomError(f"'{self._folder}': {name} is {tuple(values.shape)}, not {tuple(parameter.shape)}")
            self._filled[parameter] = nn.Parameter(values, requires_grad=parameter.requires_grad)
        return self._filled[parameter]


def place_buffers(model: nn.Module, device: str) -> None:
    """Move what is no parameter (rotation frequencies and the like), in place; parameters stay where they are."""
    for module in model.modules():
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = buffer.to(device)


def _files(folder: Path) -> dict[str, str]:
    """Which file holds each tensor."""
    if (folder / _INDEX).is_file():
        return dict(json.loads((folder / _INDEX).read_text())["weight_map"])
    if not (folder / _SINGLE).is_file():
        raise SightloomError(
            f"'{folder}' holds no safetensors", "save the model with transformers and give that folder"
        )
    with safe_open(folder / _SINGLE, framework="pt") as file:
        return dict.fromkeys(file.keys(), _SINGLE)
