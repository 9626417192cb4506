"""A running stage on disk: weights, optimizer, place in the data and step, independent of the number of workers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from sightloom.training.sharding import gathered, like

_FILE: Final = "state.pt"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a stage stands: `step` optimizer steps are done; `objective` is its objective's own state."""

    step: int
    objective: dict[str, Any]
    skipped: int = 0


def snapshot(model: torch.nn.Module, optimizer: torch.optim.Optimizer, position: Position) -> dict[str, Any]:
    """All that the next step depends on, with whole tensors; where the model is shared out all workers call it."""
    return {
        "model": gathered(dict(model.state_dict())),
        "optimizer": gathered(optimizer.state_dict()),
        "step": position.step,
        "objective": position.objective,
        "skipped": position.skipped,
    }


def save(folder: Path, digest: str, state: dict[str, Any]) -> None:
    """Write a snapshot; the file `<digest>.stage` says whose it is."""
    torch.save(state, folder / _FILE)
    (folder / f"{digest}.stage").write_text(str(state["step"]))


def restore(folder: Path, digest: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Position | None:
    """Load a checkpoint of this very stage; None where the folder holds another stage's."""
    if not (folder / f"{digest}.stage").is_file():
        return None
    state = torch.load(folder / _FILE, weights_only=True)
    held = model.state_dict()
    model.load_state_dict({name: like(value, held[name]) for name, value in state["model"].items()})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entries in state["optimizer"]["state"].items():
        for name, value in entries.items():
            entries[name] = like(value, parameters[index]) if isinstance(value, torch.Tensor) else value
    optimizer.load_state_dict(state["optimizer"])
    return Position(state["step"], state["objective"], state["skipped"])


class Clock:
    """Decides at which steps a checkpoint is due; rank 0's clock decides for all."""

    def __init__(self, every_minutes: float, every_steps: int | None, now: Callable[[], float]) -> None:
        self._seconds, self._steps, self._now = every_minutes * 60, every_steps, now
        self._last = now()

    def due(self, step: int) -> bool:
        """Whether to save after `step` steps; saying yes starts the next interval."""
        if self._steps is not None:
            return step % self._steps == 0
        if self._now() - self._last < self._seconds:
            return False
        self._last = self._now()
        return True
