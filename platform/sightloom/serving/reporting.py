"""A router tells the release manager once a second what became of its requests; a row that is lost only delays it."""

import asyncio
import logging
from typing import Any, Final

import ray
from ray.exceptions import RayError

from sightloom.serving.observe import Outcome, Recorder

MANAGER: Final = "sightloom-release"  # the manager's name as a detached actor
NAMESPACE: Final = "sightloom"
_EVERY_S: Final = 1.0
_log = logging.getLogger(__name__)


class Reporter:
    """Sends rows to the manager, where there is one."""

    def __init__(self) -> None:
        self._recorder = Recorder()
        self._manager: Any = None
        self._task: asyncio.Task[None] | None = None

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        self._recorder.add(outcome)

    def start(self) -> None:
        """Begin to send, once, on the running loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            rows = self._recorder.take()
            if not rows:
                continue
            try:
                if self._manager is None:
                    self._manager = await asyncio.to_thread(ray.get_actor, MANAGER, NAMESPACE)
                await self._manager.report.remote(rows)
            except ValueError:
                continue  # there is no manager: nobody asks for the rows
            except RayError as error:
                self._manager = None
                _log.warning("the release manager did not take a row: %s", type(error).__name__)
