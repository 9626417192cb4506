"""The key–value cache of generation: written in place, cut down to the rows that still run."""

from typing import Any, Final

import torch
from transformers.cache_utils import Cache, DynamicLayer

ROOM: Final = 64  # positions that are added when a layer is full


class GrowingLayer(DynamicLayer):
    """One layer's keys and values [rows, heads, positions, width] in a buffer with room to grow.

    transformers' DynamicLayer copies all keys and values for every token; this one copies them every 64 tokens.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self._buffer: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append states and return all of them, as views into the buffer."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.keys.shape[-2] if self._buffer else 0
        end = start + key_states.shape[-2]
        states = (key_states, value_states)
        if not self._buffer or self._buffer[0].shape[-2] < end:
            old = (self.keys, self.values)
            self._buffer = [state.new_empty((*state.shape[:2], end + ROOM, state.shape[-1])) for state in states]
            if start:
                for buffer, kept in zip(self._buffer, old, strict=True):
                    buffer[:, :, :start] = kept
        for buffer, state in zip(self._buffer, states, strict=True):
            buffer[:, :, start:end] = state
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffer)
        return self.keys, self.values

    def select(self, rows: torch.Tensor) -> None:
        """Keep (or repeat) these rows, in this order."""
        self._buffer = [buffer.index_select(0, rows) for buffer in self._buffer]
        length = self.keys.shape[-2]
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffer)


class GrowingCache(Cache):
    """A cache of growing layers."""

    def __init__(self, num_layers: int) -> None:
        self._growing = [GrowingLayer() for _ in range(num_layers)]
        super().__init__(layers=self._growing)

    def select(self, rows: torch.Tensor) -> None:
        """Keep (or repeat) these rows of every layer, in this order."""
        for layer in self._growing:
            layer.select(rows)
