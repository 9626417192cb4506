"""When a stage is saved, and how a checkpoint becomes one that can be relied on.

All workers write their part; when every part is written, hashed and delivered, all agree and rank 0 seals. A part that
could not be written (a full disk) makes the whole checkpoint a counted skip: the one before it stays. On GPUs writing
goes on beside the next steps (`async_save`); the weights are copied first, so the checkpoint is that of its step.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from sightloom.errors import SightloomError
from sightloom.training.checkpoint import Clock, Position, load_tensors, quiet_alone, tensors_of
from sightloom.training.checkpoint_store import CheckpointStore, Files, Seal
from sightloom.training.parallel import Workers
from sightloom.training.run_options import CheckpointOptions

_log = logging.getLogger(__name__)
# what a disk, a store or torch's writer may say; RuntimeError is torch.save's for a stream that takes no more
_WRITE_ERRORS: Final = (OSError, SightloomError, CheckpointException, RuntimeError)


def _nothing(name: str, step: int) -> None:
    del name, step


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the machinery around the workers adds; all workers call each at the same steps.

    `published`: a checkpoint is whole, by name and step; `preempted`: whether a machine will soon be taken away.
    """

    published: Callable[[str, int], None] = _nothing
    preempted: Callable[[], bool] = _never


@dataclass(frozen=True, slots=True)
class _Flight:
    """A checkpoint that is being written; `part` gives this worker's files or why there are none."""

    name: str
    position: Position
    part: Future[Files | str]
    began: float


class Saver:
    """One stage's checkpoints; all workers have one and call it at the same steps.

    Args:
        stage: `<stage>-<digest12>`, what its checkpoints are called; `digest`: all of it.
        say: hears `{kind: "checkpoint", step, metrics}` for each one, whole or skipped.
    """

    def __init__(
        self,
        store: CheckpointStore,
        stage: str,
        digest: str,
        options: CheckpointOptions,
        workers: Workers,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        hooks: Hooks,
        say: Callable[[dict[str, Any]], None],
    ) -> None:
        self._store, self._stage, self._digest, self._options = store, stage, digest, options
        self._workers, self._model, self._optimizer = workers, model, optimizer
        self._hooks, self._say = hooks, say
        self._clock = Clock(options.every_minutes, options.every_steps, monotonic)
        on_gpu = any(parameter.is_cuda for parameter in model.parameters())
        self._beside = on_gpu if options.asynchronous is None else options.asynchronous
        # the writing thread's exchanges must not meet those of the steps
        self._group = dist.new_group(backend="gloo") if self._beside and workers.world > 1 else None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._flight: _Flight | None = None
        self._warned = False
        self._stall_s = 0.0
        self.skipped = 0
        self.unusable = 0

    def resume(self) -> Position | None:
        """Load the newest checkpoint that is whole; None where there is none. Others are counted and warned of."""
        lead = self._workers.rank == 0
        names: list[str] = self._workers.gather(self._store.names(self._stage) if lead else [])[0]
        for name in names:
            mine = self._store.problem(name, self._digest, self._workers.rank, self._workers.world)
            problems = [problem for problem in self._workers.gather(mine) if problem]
            if problems:
                self.unusable += 1
                if lead:
                    _log.warning("checkpoint not used: %s", problems[0])
                    self._say({"kind": "unusable", "name": name, "reason": problems[0]})
                continue
            load_tensors(self._store.reader(name), self._model, self._optimizer)
            return self._store.read_seal(name).position
        return None

    def wants(self, step: int) -> bool:
        """Whether this worker wants to save after `step` steps: one worker's wish is enough."""
        wanted = self._workers.rank == 0 and self._clock.due(step)
        if not self._warned and step % self._options.preemption_every_steps == 0 and self._hooks.preempted():
            self._warned = wanted = True
        return wanted

    @property
    def ready(self) -> bool:
        """Whether this worker's part of the checkpoint under way is done."""
        return self._flight is not None and self._flight.part.done()

    def begin(self, position: Position) -> None:
        """Start a checkpoint; one that is still under way is brought to its end first."""
        self.settle()
        began = monotonic()
        lead = self._workers.rank == 0
        name: str = self._workers.gather(self._store.free_name(self._stage, position.step) if lead else "")[0]
        folder = Path(self._store.place(name) if self._store.is_local else tempfile.mkdtemp(prefix="sightloom-save-"))
        tensors = tensors_of(self._model, self._optimizer)
        writer = FileSystemWriter(folder)
        alone = self._workers.world == 1
        written: Future[Any] = Future()
        try:
            if self._beside:
                started = async_save(tensors, storage_writer=writer, process_group=self._group, no_dist=alone)
                assert isinstance(started, Future)  # a stager that works beside is not ours
                written = started
            else:
                with quiet_alone():
                    written.set_result(save(tensors, storage_writer=writer, no_dist=alone))
        except _WRITE_ERRORS as error:
            written.set_exception(error)
        part = self._pool.submit(self._delivered, name, folder, written)
        self._flight = _Flight(name, position, part, began)
        self._stall_s += monotonic() - began

    def settle(self) -> None:
        """Wait for the checkpoint under way, if there is one; seal it if all parts are there, else drop it."""
        if self._flight is None:
            return
        began, flight, self._flight = monotonic(), self._flight, None
        parts = self._workers.gather(flight.part.result())
        problems = [part for part in parts if isinstance(part, str)]
        if not problems:
            problems = [problem for problem in self._workers.gather(self._sealed(flight, parts)) if problem]
        if problems:
            self.skipped += 1
            if self._workers.rank == 0:
                _log.warning("checkpoint of step %d left out: %s", flight.position.step, problems[0])
                self._cleared(flight.name)
        else:
            self._hooks.published(flight.name, flight.position.step)
            if self._workers.rank == 0:
                self._store.prune(self._stage, self._options.keep)
        self._stall_s += monotonic() - began
        metrics = {
            "checkpoint/stall_s": self._stall_s,
            "checkpoint/write_s": monotonic() - flight.began,
            "checkpoint/skipped": float(self.skipped),
        }
        if not problems:
            metrics["checkpoint/bytes"] = float(sum(file["bytes"] for part in parts for file in part.values()))
        self._stall_s = 0.0
        self._say(
            {"kind": "checkpoint", "step": flight.position.step, "metrics": metrics, "problem": "".join(problems[:1])}
        )

    def close(self) -> None:
        """Let go of the thread; a checkpoint that is still under way was `settle`d, or is not wanted."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _delivered(self, name: str, folder: Path, written: Future[Any]) -> Files | str:
        """This worker's files in their place, or in words why they are not."""
        rank = self._workers.rank
        try:
            written.result()
            files = sorted(folder.glob(f"__{rank}_*.distcp")) + ([folder / ".metadata"] if rank == 0 else [])
            return self._store.deliver(name, files)
        except _WRITE_ERRORS as error:
            return _said(error)
        finally:
            if not self._store.is_local:
                shutil.rmtree(folder, ignore_errors=True)

    def _sealed(self, flight: _Flight, parts: list[Any]) -> str:
        if self._workers.rank > 0:
            return ""
        files = {file: what for part in parts for file, what in part.items()}
        try:
            self._store.seal(flight.name, Seal(self._digest, flight.position, self._workers.world, files))
        except _WRITE_ERRORS as error:
            return _said(error)
        return ""

    def _cleared(self, name: str) -> None:
        """Drop what was written of a checkpoint; where even that fails it lies there without a seal."""
        try:
            self._store.delete(name)
        except OSError as error:
            _log.warning("what was written of checkpoint '%s' stays: %s", name, error)


def _said(error: BaseException) -> str:
    """The reason of a failed write: the innermost one, where torch gives a failure a rank."""
    if isinstance(error, CheckpointException) and error.failures:
        wrapped = next(iter(error.failures.values()))
        error = wrapped[0] if isinstance(wrapped, tuple) else wrapped
    while error.__context__ is not None and not isinstance(error, SightloomError):
        error = error.__context__
    message = error.message if isinstance(error, SightloomError) else str(error)
    return f"{type(error).__name__}: {message}"
