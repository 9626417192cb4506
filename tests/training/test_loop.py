"""The loop when something is wrong: gradients that are not finite, data that one worker cannot read."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sightloom.errors import SightloomError
from sightloom.training.checkpoint import Position
from sightloom.training.checkpoint_store import CheckpointStore
from sightloom.training.curriculum import Optim
from sightloom.training.loop import fit
from sightloom.training.parallel import Workers
from sightloom.training.run_options import CheckpointOptions
from sightloom.training.saver import Hooks, Saver
from sightloom.training.tasks.objective import Loss

ALONE = Workers(0, 1)


class Numbers:
    """An objective on numbers; steps in `bad` have a loss that is not finite, at `missing` there is no data."""

    source = "data"

    def __init__(self, bad: set[int], missing: int | None = None) -> None:
        self._bad, self._missing, self.next = bad, missing, 0

    def batches(self, step: int) -> list[Any]:
        if step == self._missing:
            raise SightloomError("shard 7 is not there", "look for it")
        self.next = step + 1
        return [math.nan if step in self._bad else float(step + 1)]

    def counts(self, batches: list[Any]) -> dict[str, float]:
        return {"samples": float(len(batches))}

    def loss(self, model: torch.nn.Module, batch: Any, counts: dict[str, float]) -> Loss:
        return Loss((model(torch.ones(1, 2)) * batch).sum())

    def prepare(self, *anything: Any) -> None:
        pass

    def consumed(self) -> list[str]:
        return [f"uid-{self.next - 1}"]

    def report(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"next": self.next}

    def restore(self, state: dict[str, Any]) -> None:
        self.next = state["next"]

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        return {}

    def close(self) -> None:
        pass


class Run:
    """Six steps of a small model."""

    def __init__(self, folder: Path, objective: Numbers) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.AdamW([{"params": list(self.model.parameters()), "lr": 0.1, "peak_lr": 0.1}])
        self.events: list[dict[str, Any]] = []
        self.steps: list[int] = []
        self.saver = Saver(
            CheckpointStore(str(folder)), "s-0", "0" * 64, CheckpointOptions(), ALONE, self.model, optimizer, Hooks(),
            self.events.append,
        )  # fmt: skip
        self._objective, self._optimizer = objective, optimizer

    def go(self, start: Position | None = None) -> Any:
        place = start or Position(0, {})
        options = Optim(schedule="constant", warmup=0.0)
        return fit(
            self.model, self._objective, self._optimizer, options, 6, place, ALONE, self.saver,
            lambda step, uids: self.steps.append(step), self.events.append,
        )  # fmt: skip


def test_a_step_whose_gradient_is_not_finite_leaves_the_weights_and_is_counted(tmp_path: Path) -> None:
    calm, broken = Run(tmp_path / "a", Numbers(set())), Run(tmp_path / "b", Numbers({2, 3, 5}))
    assert calm.go().skipped == 0
    assert broken.go().skipped == 3
    assert broken.events[-1]["metrics"]["train/skipped"] == 3
    assert all(torch.isfinite(parameter).all() for parameter in broken.model.parameters())
    # steps 0, 1 and 4 alone: AdamW's own counter knows nothing of the others
    assert {int(entries["step"]) for entries in broken._optimizer.state.values()} == {3}


def test_three_such_steps_in_a_row_end_the_run_and_the_state_before_them_is_kept(tmp_path: Path) -> None:
    broken = Run(tmp_path, Numbers({2, 3, 4}))
    with pytest.raises(SightloomError, match=r"not finite in 3 steps in a row, 2 to 4; the state before them is kept"):
        broken.go()
    assert broken.steps == [0, 1, 2, 3, 4]

    calm = Run(tmp_path / "calm", Numbers(set()))
    calm.go()
    mended = Run(tmp_path, Numbers(set()))
    position = mended.saver.resume()
    assert position is not None and (position.step, position.objective, position.skipped) == (2, {"next": 2}, 0)
    mended.go(position)
    for ours, theirs in zip(mended.model.parameters(), calm.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_data_that_cannot_be_read_is_said_as_it_is(tmp_path: Path) -> None:
    broken = Run(tmp_path, Numbers(set(), missing=3))
    with pytest.raises(SightloomError, match="shard 7 is not there"):
        broken.go()
    assert broken.steps == [0, 1, 2]
