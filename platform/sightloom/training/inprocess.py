"""The crew of one: stages run in the driver's own process, without Ray (`ray: {workers: 0}`)."""

from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from sightloom.node_metrics import NodeMetrics
from sightloom.training.loop import Event
from sightloom.training.parallel import Workers
from sightloom.training.worker import StageOrder, run_stage


class InProcess:
    """Runs stages here."""

    def run(self, order: StageOrder, on_event: Callable[[Event], None]) -> dict[str, Any]:
        """Have one stage done; errors come out as they are."""
        busy: SimpleQueue[Event] = SimpleQueue()  # what the node says comes from a thread of its own

        def say(event: Event) -> None:
            while not busy.empty():
                on_event(busy.get())
            on_event(event)

        with NodeMetrics("node_0", busy.put):
            return run_stage(order, Workers(0, 1), say)

    def dismiss(self) -> None:
        """Nobody to let go."""
