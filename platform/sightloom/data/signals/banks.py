"""Prompt banks: zero-shot shares of labels, from stored image embeddings and the prompts' text features.

Shapes: N rows, L labels, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from sightloom import storage
from sightloom.data.signals.config import Bank

VERSION = 1
DECLARED = "domain"  # the bank for which what a source declares wins
LABELS_FILE = "labels.safetensors"
Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Labels:
    """Normalised label features float32 [L, D], and what cosines are multiplied by before the softmax."""

    features_LD: npt.NDArray[np.float32]
    scale: float


@dataclass(frozen=True)
class BankSpec:
    """A bank and the identity of the scorer whose embeddings it reads.

    Its columns are `<name>_<label>`, float32, which sum to 1 over the labels, and `<name>_top`, the label with the
    largest share. In the bank called `domain`, `domain_top` is what the source declares as the row's domain, where it
    declares one (also for rows without an embedding); the shares stay the model's.
    """

    bank: Bank
    scorer: dict[str, Any]

    @property
    def group(self) -> str:
        """The name of its group of columns."""
        return f"bank_{self.bank.name}"

    @property
    def columns(self) -> dict[str, str]:
        """The type of each column."""
        name = self.bank.name
        return {f"{name}_{label}": "float" for label in self.bank.labels} | {f"{name}_top": "string"}

    @property
    def declared(self) -> str | None:
        """The column that declared labels wait in, where these win."""
        return f"{self.bank.name}_top" if self.bank.name == DECLARED else None

    def doc(self, column: str) -> str:
        """Say what a column holds."""
        label = column.removeprefix(f"{self.bank.name}_")
        if label != "top":
            return f"share of '{label}' among the labels of bank '{self.bank.name}', by the embeddings of {self._by}"
        return f"label with the largest share by {self._by}" + ("; a declared domain wins" if self.declared else "")

    @property
    def _by(self) -> str:
        return f"'{self.bank.scorer}'"

    def identity(self) -> dict[str, Any]:
        """Return what decides its columns, as plain data."""
        prompts = [[label, list(self.bank.prompts_of(label))] for label in self.bank.labels]
        own = {"version": VERSION, "prompts": prompts, "scale": self.bank.scale, "declared": self.declared}
        return {**own, "scorer": self.scorer}

    def open(self, folder: str) -> Callable[[npt.NDArray[np.float32]], Columns]:
        """Return what computes its columns of embeddings [N, D]; the label features lie in the group's folder."""
        labels = read_labels(folder)
        return lambda image_ND: self.shares(image_ND, labels)

    def shares(self, image_ND: npt.NDArray[np.float32], labels: Labels) -> Columns:
        """Return softmax(scale * cosine) over the labels, a column each, and the top label of each row.

        Source: CLIP's zero-shot classifier (Radford et al. 2021, 3.1), with prompts averaged as there.
        """
        logits_NL = labels.scale * (image_ND @ labels.features_LD.T)
        shares_NL = np.exp(logits_NL - logits_NL.max(1, keepdims=True, initial=-np.inf))
        shares_NL /= shares_NL.sum(1, keepdims=True)
        names = self.bank.labels
        columns: Columns = {
            f"{self.bank.name}_{label}": shares_NL[:, place].astype(np.float32) for place, label in enumerate(names)
        }
        columns[f"{self.bank.name}_top"] = np.array(names, object)[logits_NL.argmax(1)]
        return columns


def mean_labels(bank: Bank, encode: Callable[[list[str]], npt.NDArray[np.float32]], scale: float) -> Labels:
    """Return each label's feature: the mean of its prompts' normalised features, normalised again.

    Args:
        bank: labels and prompts.
        encode: returns normalised text features [prompts, D].
        scale: the scorer's own, where the bank names none.
    """
    means_LD = np.stack([encode(list(bank.prompts_of(label))).mean(0) for label in bank.labels])
    features_LD = means_LD / np.linalg.norm(means_LD, axis=1, keepdims=True)
    return Labels(features_LD.astype(np.float32), scale if bank.scale is None else bank.scale)


def write_labels(folder: str, labels: Labels) -> None:
    """Keep label features once: all chunks, whenever they are computed, see the same bits."""
    content = {"features": labels.features_LD, "scale": np.array([labels.scale])}
    storage.create(labels_uri(folder), save(content))


def read_labels(folder: str) -> Labels:
    """Return the label features of a bank's group."""
    content = load(storage.read_bytes(labels_uri(folder)))
    return Labels(content["features"], float(content["scale"][0]))


def labels_uri(folder: str) -> str:
    """Return the address of a bank's label features."""
    return storage.join(folder, LABELS_FILE)
