"""Who writes rollouts: the protocol, and the engine inside a trainer's own process."""

import time
from collections.abc import Sequence
from typing import Protocol

from sightloom.model.generation import Generation, GenerationRequest, Generator
from sightloom.model.load import VLM


class RolloutEngine(Protocol):
    """Writes responses with some version of the policy."""

    def load_weights(self, version: int, uri: str | None) -> None:
        """Take over the weights of `version`; `uri` None: the engine shares the trainer's own."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Answer all requests, in their order, with seeds that make each answer independent of its batch.

        Whatever it raises costs the groups of the call, and the run only if it goes on (`Rollouts`).
        """

    def close(self) -> None:
        """End what it started."""


class TransformersEngine:
    """Generates with the very weights that are trained, in the trainer's process.

    On two cores this is the fastest form: an engine in a process of its own would stand idle during the update and make
    the trainer idle during the rollouts, and every step would ship the weights. The model is only read while it
    generates, and training passes its own position ids, so nothing that generation leaves on the model is used.

    Args:
        limit_s: for one call of `generate`, looked at token by token.
    """

    def __init__(self, vlm: VLM, batch_size: int = 64, limit_s: float = 600.0) -> None:
        self._generator = Generator(vlm, batch_size)
        self._limit_s = limit_s
        self.version = -1

    def load_weights(self, version: int, uri: str | None) -> None:
        """Note the version: the weights are shared.

        Raises:
            ValueError: an address is given; this engine loads none.
        """
        if uri is not None:
            raise ValueError("the in-process engine shares the trainer's weights and loads none")
        self.version = version

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Answer all requests.

        Raises:
            TimeoutError: they took longer than the limit.
        """
        deadline = time.monotonic() + self._limit_s
        found = self._generator.generate(requests, cancelled=lambda _: time.monotonic() > deadline)
        if any(generation.finish == "cancelled" for generation in found):
            raise TimeoutError(f"{len(requests)} responses were not written within {self._limit_s:g} s")
        return found

    def close(self) -> None:
        """Nothing: the trainer's process is not its own."""
