"""Ray Train around the loop: a crew of workers that stays warm from the first stage to the last.

One `TorchTrainer` run serves a whole curriculum. Its workers ask a small actor, the desk, for the next stage, so the
ten seconds in which a process imports torch and transformers are paid once, not once a stage, and overlap with the
driver's own preparations. What a stage needs travels in its order; what it says while it runs comes back through the
desk, and the driver alone talks to MLflow. When a worker dies Ray Train starts the group again (at most `max_failures`
times), the desk hands out the unfinished order once more, and the loop goes on from the last checkpoint.
"""

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Final

import ray
import ray.train
import ray.train.torch
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sightloom import storage
from sightloom.errors import MayPass, SightloomError
from sightloom.node_metrics import NodeMetrics
from sightloom.training.parallel import Workers
from sightloom.training.run_options import RayOptions
from sightloom.training.saver import Hooks
from sightloom.training.worker import StageOrder, run_stage

Event = dict[str, Any]
_POLL_S: Final = 0.25
_RAYS_LIST: Final = "checkpoint_manager_snapshot.json"
# One report costs 2.0 s at Ray's default and 0.11 s at this interval (measured, training.md §9).
_HEALTH_CHECK: Final = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1"}


class Desk:
    """Where the driver leaves orders and the workers leave events."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._order: dict[str, Any] | None = None
        self._closed = False
        self._events: list[Event] = []
        self._arrived = 0

    async def post(self, order: dict[str, Any]) -> None:
        """Lay the next order down."""
        async with self._changed:
            self._order = order
            self._changed.notify_all()

    async def close(self) -> None:
        """There will be no further order."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def take(self, after: int) -> dict[str, Any] | None:
        """Wait for an order with a number above `after`; None when there will be none."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._closed or (self._order is not None and self._order["number"] > after)
            )
            return None if self._closed else self._order

    async def say(self, event: Event) -> None:
        """Keep an event for the driver."""
        async with self._changed:
            if event["kind"] == "finished" and self._order is not None and self._order["number"] == event["number"]:
                self._order = None  # workers that start again must not do it once more
            self._events.append(event)
            self._changed.notify_all()

    async def listen(self) -> list[Event]:
        """All events since the last call, waiting a moment for the first."""
        async with self._changed:
            if not self._events:
                try:
                    await asyncio.wait_for(self._changed.wait(), _POLL_S)
                except TimeoutError:
                    return []
            events, self._events = self._events, []
            return events


class Crew:
    """The driver's side: start the workers, have stages done, dismiss the workers.

    Args:
        store: the address of the run's checkpoints; its last part is the run's name.
    """

    def __init__(self, store: str, options: RayOptions) -> None:
        self._store, self._options = store, options
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._desk: Any = None

    def start(self) -> None:
        """Start the workers in the background; returns at once."""
        if self._thread is None:
            os.environ.update(_HEALTH_CHECK)
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            # beside the driver: a node that dies must not take the desk along
            self._desk = ray.remote(num_cpus=0, scheduling_strategy=here)(Desk).remote()
            self._thread = threading.Thread(target=self._fit, name="ray-train", daemon=True)
            self._thread.start()

    def run(self, order: StageOrder, on_event: Callable[[Event], None]) -> dict[str, Any]:
        """Have one stage done; returns the workers' outcome.

        Raises:
            MayPass: the workers failed more often than allowed.
        """
        self.start()
        ray.get(self._desk.post.remote(order.model_dump(mode="json", by_alias=True)))
        while True:
            for event in ray.get(self._desk.listen.remote()):
                if event.get("number") != order.number:
                    continue
                if event["kind"] == "finished":
                    outcome: dict[str, Any] = event["outcome"]
                    return outcome
                on_event(event)
            if self._thread is not None and not self._thread.is_alive():
                raise MayPass(
                    f"stage '{order.stage.name}' failed on the workers: {_innermost(self._failure)}",
                    "run the same command again: it goes on from the last checkpoint",
                )

    def dismiss(self) -> None:
        """Let the workers go; safe to call at any time."""
        if self._thread is not None and self._desk is not None:
            ray.get(self._desk.close.remote())
            self._thread.join(timeout=30)
            self._thread, self._desk = None, None

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *error: object) -> None:
        self.dismiss()

    def _fit(self) -> None:
        scaling = ray.train.ScalingConfig(
            num_workers=self._options.workers,
            resources_per_worker={"CPU": 1, **self._options.resources},
            use_gpu=self._options.gpus_per_worker > 0,
            elastic_resize_monitor_interval_s=self._options.resize_every_s,
        )
        # which checkpoints are whole the store knows; a list that Ray kept of an earlier run would hold it up
        storage.delete(storage.join(self._store, _RAYS_LIST))
        filesystem, path = storage.filesystem(self._store)
        place, _, name = path.rpartition("/")
        run = ray.train.RunConfig(
            name=name,
            storage_path=place,
            storage_filesystem=PyFileSystem(FSSpecHandler(filesystem)),
            failure_config=ray.train.FailureConfig(max_failures=self._options.max_failures),
        )
        config = {"desk": self._desk, "threads": self._options.threads}
        trainer = ray.train.torch.TorchTrainer(work, train_loop_config=config, scaling_config=scaling, run_config=run)
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001  it is handed to the driver's thread, which raises it
            self._failure = error


def work(config: dict[str, Any]) -> None:
    """What every worker does: take orders until there are none."""
    context = ray.train.get_context()
    device = str(ray.train.torch.get_device())
    workers = Workers(context.get_world_rank(), context.get_world_size(), device=device)
    torch.set_num_threads(config["threads"])
    desk, done = config["desk"], -1
    while (raw := ray.get(desk.take.remote(done))) is not None:
        order = StageOrder.model_validate(raw)
        say = _speaker(desk, order.number) if workers.rank == 0 else _silent
        # one worker of each node says what its node is busy with
        first = context.get_local_rank() == 0
        node = NodeMetrics(f"node_{context.get_node_rank()}", _speaker(desk, order.number))
        try:
            with node if first else nullcontext():
                outcome = run_stage(order, workers, say, _HOOKS)
        except SightloomError as error:  # the same on every worker, and again on every retry: said, not retried
            outcome = {"failed": error.message, "hint": error.hint}
        workers.barrier()
        if workers.rank == 0:
            ray.get(desk.say.remote({"kind": "finished", "number": order.number, "outcome": outcome}))
        done = order.number


def _speaker(desk: Any, number: int) -> Callable[[Event], None]:
    def say(event: Event) -> None:
        desk.say.remote({**event, "number": number})

    return say


def _silent(event: Event) -> None:
    del event


def _publish(name: str, step: int) -> None:
    """Tell Ray Train of a checkpoint that lies, whole, in the run's storage; called by all workers at the same step."""
    context = ray.train.get_context()
    checkpoint = None
    if context.get_world_rank() == 0:
        place = context.get_storage()
        checkpoint = ray.train.Checkpoint(place.build_checkpoint_path_from_name(name), place.storage_filesystem)
    mode = ray.train.CheckpointUploadMode.NO_UPLOAD
    ray.train.report({"step": step}, checkpoint, checkpoint_dir_name=name, checkpoint_upload_mode=mode)


def _preempted() -> bool:
    """Whether a node of this run will be taken away; a barrier, so all workers ask at the same step."""
    return ray.train.get_preemption_info() is not None


_HOOKS: Final = Hooks(_publish, _preempted)


def _innermost(error: BaseException | None) -> str:
    if error is None:
        return "the run ended before the stage did"
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = next(iter(failures.values()))
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"
