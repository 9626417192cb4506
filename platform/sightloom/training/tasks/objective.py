"""What the loop asks of an objective."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch


@dataclass(frozen=True, slots=True)
class Loss:
    """One micro-batch's part of the step: `total` is a local sum over global counts; `sums` are shown as num / den."""

    total: torch.Tensor
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)


class Objective(Protocol):
    """A source of micro-batches with a loss on them; `source` names what the loop waits for: data or rollout."""

    source: str

    def batches(self, step: int) -> list[Any]:
        """This worker's micro-batches of a step; equally many on every worker."""

    def counts(self, batches: list[Any]) -> dict[str, float]:
        """Local sums that the loss divides by once they are summed over the workers; the same names everywhere."""

    def prepare(self, model: torch.nn.Module, batches: list[Any], counts: dict[str, float]) -> None:
        """Called before the step's first loss, with the gradients at zero: for what spans micro-batches."""

    def loss(self, model: torch.nn.Module, batch: Any, counts: dict[str, float]) -> Loss:
        """The loss of one micro-batch, given the global counts of the step."""

    def consumed(self) -> list[str]:
        """Uids of the samples that the last `batches` gave this worker, for the account of the stage."""

    def report(self) -> dict[str, float]:
        """Further numbers of the last step, the same on all workers."""

    def state(self) -> dict[str, Any]:
        """What a restart needs to go on with the step after the last one that `batches` gave, as plain data."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        """What only the objective itself can measure on held-out samples, on this worker alone; may be empty."""

    def close(self) -> None:
        """Let go of threads and files."""
