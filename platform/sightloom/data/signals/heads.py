"""Heads: the user's linear layer or perceptron on stored image embeddings, one number a row.

A safetensors file holds, for each layer, `<layer>.weight` float [out, in] and, if wanted, `<layer>.bias` [out], as
`torch.nn.Linear` names them; a single layer may be plain `weight` and `bias`. Layers run in the order of their names,
numbers by value (`layers.2` before `layers.10`); what holds no weights (dropout, activations) may be missing between.
Inputs are normalised embeddings. LAION's aesthetic predictor (`layers.0.weight` to `layers.7.weight`, no activation)
is such a file once it is saved as safetensors.

Shapes: N rows, D features.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from sightloom import storage
from sightloom.data.signals.config import Head
from sightloom.errors import UserMistake

VERSION = 1
LAION = "layers"
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class HeadSpec:
    """A head with its layers, (weight [out, in], bias [out]) each, and the identity of the scorer it reads."""

    head: Head
    weights_sha256: str
    activation: str
    layers: tuple[tuple[Array, Array], ...]
    scorer: dict[str, Any]

    @property
    def group(self) -> str:
        """The name of its group, and of its one column."""
        return f"head_{self.head.name}"

    @property
    def columns(self) -> dict[str, str]:
        """The type of its column."""
        return {self.group: "float"}

    @property
    def declared(self) -> None:
        """Nothing that a source declares wins over a head."""

    def doc(self, column: str) -> str:
        """Say what its column holds."""
        return f"output of the head '{column}' on the embeddings of '{self.head.scorer}'"

    def identity(self) -> dict[str, Any]:
        """Return what decides its column, as plain data."""
        own = {"version": VERSION, "weights_sha256": self.weights_sha256, "activation": self.activation}
        return {**own, "scorer": self.scorer}

    def open(self, folder: str) -> Callable[[Array], dict[str, npt.NDArray[Any]]]:
        """Return what computes its column of embeddings [N, D]."""
        del folder  # the layers travel with it
        return lambda image_ND: {self.group: self.outputs(image_ND)}

    def outputs(self, image_ND: Array) -> Array:
        """Return the head's output, float32 [N]."""
        hidden = image_ND
        for number, (weight, bias) in enumerate(self.layers):
            if number and self.activation == "relu":
                hidden = np.maximum(hidden, 0)
            hidden = hidden @ weight.T + bias
        return hidden[:, 0].astype(np.float32)


def resolve_head(head: Head, dim: int, scorer: dict[str, Any]) -> HeadSpec:
    """Read a head's weights and check that they fit the scorer's D features.

    Raises:
        UserMistake: there is no such file, a tensor is of no known layout, or the dimensions do not join.
    """
    what = f"head '{head.name}' ('{head.weights}')"
    data = storage.read_bytes(head.weights)
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserMistake(
            f"{what} is no safetensors file of float tensors: {error}", "save it by safetensors"
        ) from error
    names = _layer_names(what, list(tensors))
    layers = [(f"{name}.weight".lstrip("."), f"{name}.bias".lstrip(".")) for name in names]
    found: list[tuple[Array, Array]] = []
    for weight_name, bias_name in layers:
        weight = tensors[weight_name].astype(np.float32)
        if weight.ndim != 2:
            raise UserMistake(f"{what}: '{weight_name}' has shape {list(weight.shape)}, not [out, in]", _LAYOUT)
        bias = tensors.get(bias_name, np.zeros(len(weight))).astype(np.float32)
        if bias.shape != (len(weight),):
            shape = list(bias.shape)
            raise UserMistake(f"{what}: '{bias_name}' has shape {shape}, its weight {len(weight)} outputs", _LAYOUT)
        given = len(found[-1][0]) if found else dim
        if weight.shape[1] != given:
            giver = f"the layer before gives {given}" if found else f"'{head.scorer}' gives {given}"
            raise UserMistake(
                f"{what}: '{weight_name}' takes {weight.shape[1]} features, {giver}",
                "take the scorer that the head was trained on",
            )
        found.append((weight, bias))
    if len(found[-1][0]) != 1:
        raise UserMistake(f"{what} ends in {len(found[-1][0])} outputs, a column needs 1", _LAYOUT)
    return HeadSpec(head, hashlib.sha256(data).hexdigest(), _activation(what, head, names), tuple(found), scorer)


_LAYOUT = "layers are `<layer>.weight` [out, in] and `<layer>.bias` [out], the last with one output"


def _layer_names(what: str, tensors: Sequence[str]) -> list[str]:
    """Return the layers' names in order; UserMistake names a tensor that belongs to no layer."""
    weights = {name.rpartition(".")[0] for name in tensors if name.rpartition(".")[2] == "weight"}
    for name in tensors:
        layer, _, kind = name.rpartition(".")
        if kind not in ("weight", "bias") or layer not in weights:
            raise UserMistake(f"{what} has a tensor '{name}' that belongs to no layer", _LAYOUT)
    if not weights:
        raise UserMistake(f"{what} holds no layer", _LAYOUT)
    return sorted(weights, key=lambda name: [(part.isdigit(), int(part) if part.isdigit() else part, part)
                                             for part in re.split(r"[._]|(\d+)", name) if part])  # fmt: skip


def _activation(what: str, head: Head, names: Sequence[str]) -> str:
    """Return what stands between the layers; the names of more than one do not say it, but for LAION's."""
    if head.activation is not None:
        return head.activation
    if len(names) == 1 or all(name.rpartition(".")[0] == LAION for name in names):
        return "none"
    raise UserMistake(
        f"{what} has {len(names)} layers ({', '.join(names)}), and not what stands between them",
        "set `activation` of the head to none or relu",
    )
