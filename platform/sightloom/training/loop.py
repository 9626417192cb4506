"""The training loop: one optimizer step after another, for any objective, on any number of workers (training.md §4).

It knows neither Ray nor MLflow. Losses are local sums over global counts, so the gradient, summed over the workers, is
that of the whole step whatever their number.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

from sightloom.errors import SightloomError
from sightloom.training.checkpoint import Position
from sightloom.training.curriculum import Optim
from sightloom.training.flops import Meter
from sightloom.training.optim import schedule_factor, set_rates
from sightloom.training.parallel import Workers
from sightloom.training.saver import Saver
from sightloom.training.sharding import clip_gradients, reduce_at
from sightloom.training.tasks.objective import Objective

Event = dict[str, Any]
_MAX_SKIPS: Final = 3  # non-finite steps in a row
_LOG_EVERY_S: Final = 1.0
_SAVE, _SAVED, _LOG, _FAILED = "_save", "_saved", "_log", "_failed"  # what workers tell each other with the counts


@dataclass(frozen=True, slots=True)
class Totals:
    """What a stage consumed on all workers since it was (re)started."""

    steps: int
    samples: int
    seconds: float
    wait_s: float
    skipped: int


def fit(
    model: torch.nn.Module,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    options: Optim,
    steps: int,
    start: Position,
    workers: Workers,
    saver: Saver,
    note: Callable[[int, list[str]], None],
    say: Callable[[Event], None],
    meter: Meter | None = None,
) -> Totals:
    """Run from `start` to `steps`; all workers call it together.

    Args:
        saver: saves where it wants to; the last good state is saved before the loop gives up.
        note: takes each step with the uids that this worker learns from.
        say: takes `{kind: "step", step, metrics}` about once a second; the metrics are those of all workers.

    Raises:
        SightloomError: the gradient was not finite three steps in a row, a worker's data cannot be read, or a rollout
            engine failed; it is the same on all workers.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    began = time.perf_counter()
    tally = _Tally(workers, meter)
    samples, in_a_row, skipped, last_said = 0, 0, start.skipped, start.step
    good = start  # the place behind the last step that was not skipped
    for step in range(start.step, steps):
        step_began = time.perf_counter()
        place = objective.state()
        if not in_a_row:
            good = Position(step, place, skipped)
        batches, failure = _fetched(objective, step)
        tally.wait_s += time.perf_counter() - step_began
        mine = objective.counts(batches) | (meter.count(batches) if meter is not None else {})
        told = {_SAVE: step > start.step and saver.wants(step), _SAVED: saver.ready, _LOG: tally.due}
        told[_FAILED] = failure is not None
        counts = workers.sum_all(mine | {name: float(value) for name, value in told.items()})
        if counts.pop(_FAILED):
            saver.begin(good)  # nothing was learnt since
            saver.settle()
            raise _first(workers.gather(failure))
        if counts.pop(_SAVED) == workers.world:
            saver.settle()
        if counts.pop(_SAVE):
            saver.begin(Position(step, place, skipped))
        log = counts.pop(_LOG) > 0
        note(step, objective.consumed())
        optimizer.zero_grad(set_to_none=True)
        objective.prepare(model, batches, counts)
        for number, batch in enumerate(batches, 1):
            reduce_at(model, last=number == len(batches))
            loss = objective.loss(model, batch, counts)
            loss.total.backward()
            tally.add(loss.sums)
        workers.reduce_gradients(parameters)
        norm = clip_gradients(parameters, options.clip)
        factor = schedule_factor(step, steps, options)
        if counts.get("samples", 1.0) == 0:
            in_a_row = 0  # nothing to learn from (no group with signal): the weights stay as they are
        elif math.isfinite(norm):
            in_a_row = 0
            set_rates(optimizer, factor)
            optimizer.step()
        else:
            in_a_row, skipped = in_a_row + 1, skipped + 1
            if in_a_row >= _MAX_SKIPS:
                saver.begin(good)  # a skipped step leaves the weights as they were
                saver.settle()
                raise SightloomError(
                    f"the gradient was not finite in {_MAX_SKIPS} steps in a row, {good.step} to {step}; the state "
                    f"before them is kept",
                    "lower the learning rates, or look at the data of these steps",
                )
        samples += int(counts.get("samples", 0))
        tally.step(counts)
        if log or step + 1 == steps:
            metrics = tally.metrics(step + 1 - last_said, objective.source)
            metrics |= {"train/grad_norm": norm, "train/lr_factor": factor, "train/skipped": float(skipped)}
            metrics |= objective.report()
            last_said = step + 1
            say({"kind": "step", "step": step + 1, "metrics": metrics})
    saver.settle()
    return Totals(steps, samples, time.perf_counter() - began, tally.total_wait_s, skipped)


def _fetched(objective: Objective, step: int) -> tuple[list[Any], SightloomError | None]:
    """The step's micro-batches, or none and what is wrong with the data: the others must hear of it before they wait.

    Objectives whose workers meet while they make their batches (rollouts) fail on all of them together.
    """
    try:
        return objective.batches(step), None
    except SightloomError as error:
        return [], error


def _first(failures: list[SightloomError | None]) -> SightloomError:
    return next(failure for failure in failures if failure is not None)


class _Tally:
    """Sums between two reports; the sums of all workers meet only when there is something to say."""

    def __init__(self, workers: Workers, meter: Meter | None) -> None:
        self._workers, self._meter = workers, meter
        self.total_wait_s = 0.0
        self._reset()

    def _reset(self) -> None:
        self._since = time.perf_counter()
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self.wait_s = 0.0

    @property
    def due(self) -> bool:
        """Whether rank 0 has been silent for long enough; its view decides for all."""
        return self._workers.rank == 0 and time.perf_counter() - self._since >= _LOG_EVERY_S

    def add(self, sums: dict[str, tuple[float, float]]) -> None:
        for name, (numerator, denominator) in sums.items():
            self._sums[f"{name}/n"] = self._sums.get(f"{name}/n", 0.0) + numerator
            self._sums[f"{name}/d"] = self._sums.get(f"{name}/d", 0.0) + denominator

    def step(self, counts: dict[str, float]) -> None:
        for name, value in counts.items():
            self._counts[name] = self._counts.get(name, 0.0) + value

    def metrics(self, steps: int, source: str) -> dict[str, float]:
        seconds = time.perf_counter() - self._since
        sums = _united(self._workers, self._sums)
        metrics = {
            f"train/{name.removesuffix('/n')}": value / sums[f"{name.removesuffix('/n')}/d"]
            for name, value in sums.items()
            if name.endswith("/n") and sums[f"{name.removesuffix('/n')}/d"] > 0
        }
        for name in ("samples", "tokens", "images"):
            if name in self._counts:
                metrics[f"speed/{name}_per_s"] = self._counts[name] / seconds
        metrics["speed/steps_per_s"] = steps / seconds
        if self._meter is not None:
            metrics |= self._meter.metrics(self._counts, steps, seconds)
        metrics[f"{source}/wait_share"] = self.wait_s / seconds
        self.total_wait_s += self.wait_s
        self._reset()
        return metrics


def _united(workers: Workers, sums: dict[str, float]) -> dict[str, float]:
    """Sums over the workers of names that not every worker has to have met (a domain seen on one rank alone)."""
    total: dict[str, float] = {}
    for part in workers.gather(sums):
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total
