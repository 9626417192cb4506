"""The crew of one: stages run in the driver's own process, without Ray (`ray: {workers: 0}`)."""

from collections.abc import Callable
from typing import Any

from sightloom.training.loop import Event
from sightloom.training.parallel import Workers
from sightloom.training.worker import StageOrder, run_stage


class InProcess:
    """Runs stages here."""

    def run(self, order: StageOrder, on_event: Callable[[Event], None]) -> dict[str, Any]:
        """Have one stage done; errors come out as they are."""
        return run_stage(order, Workers(0, 1), on_event)

    def dismiss(self) -> None:
        """Nobody to let go."""
