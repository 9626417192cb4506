"""How many replicas of an app run, as Serve's controller counts them: a replica is not asked, it may be busy."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Final

from ray import serve
from ray.exceptions import RayError
from ray.serve.schema import ReplicaState, ServeStatus

_FRESH_S: Final = 1.0
_RUNNING: Final = (ReplicaState.RUNNING, ReplicaState.UPDATING)


class Replicas:
    """Asks the controller at most once a second; while it does not answer, what it said last stands."""

    def __init__(self) -> None:
        self._counts: Mapping[str, int] = {}
        self._at = 0.0
        self._asking = asyncio.Lock()

    async def of(self, app: str) -> int:
        """The app's replicas that run."""
        async with self._asking:
            if time.monotonic() - self._at > _FRESH_S:
                with contextlib.suppress(RayError, RuntimeError, TimeoutError):
                    self._counts = count(await asyncio.to_thread(serve.status))
                self._at = time.monotonic()
        return self._counts.get(app, 0)


def count(status: ServeStatus) -> dict[str, int]:
    """App to its replicas that run."""
    return {
        name: sum(
            number
            for deployment in app.deployments.values()
            for state, number in deployment.replica_states.items()
            if state in _RUNNING
        )
        for name, app in status.applications.items()
    }
