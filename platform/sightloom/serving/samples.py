"""The samples of one request while they are generated: gathered from the engine, cut, bounded in time, abortable."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from sightloom.serving.assemble import Assembler, Piece
from sightloom.serving.dispatch import Route
from sightloom.serving.engines.base import EngineRequest
from sightloom.serving.errors import ApiError
from sightloom.serving.gauges import Busy

_log = logging.getLogger(__name__)


class Samples:
    """Runs the samples of one request side by side. `close` aborts what still runs; it must be called."""

    def __init__(
        self, route: Route, requests: Sequence[EngineRequest], stops: tuple[str, ...], deadline_s: float, busy: Busy
    ) -> None:
        self._pieces: asyncio.Queue[Piece | ApiError] = asyncio.Queue()
        self._open = len(requests)
        self._busy, self._version = busy, (route.model, route.info.version)
        self._waited, self._closed = True, False
        busy.enter(self._version)
        self._tasks = [
            asyncio.create_task(self._run(route, request, Assembler(index, stops), deadline_s))
            for index, request in enumerate(requests)
        ]

    @property
    def idle(self) -> bool:
        """Whether the next piece has yet to be waited for."""
        return self._open > 0 and self._pieces.empty()

    async def next(self, idle_s: float | None = None) -> Piece | None:
        """The next piece; None when none has come for `idle_s` seconds.

        Raises:
            ApiError: a sample failed.
            StopAsyncIteration: all samples have ended.
        """
        if self._open == 0 and self._pieces.empty():
            raise StopAsyncIteration
        try:
            async with asyncio.timeout(idle_s):
                item = await self._pieces.get()
        except TimeoutError:
            return None
        if isinstance(item, ApiError):
            raise item
        if self._waited:
            self._waited = False
            self._busy.first(self._version)
        if item.finish is not None:
            self._open -= 1
        return item

    async def close(self) -> None:
        """Abort what still runs; a second time it does nothing."""
        if not self._closed:
            self._closed = True
            self._busy.leave(self._version, self._waited)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, route: Route, request: EngineRequest, assembler: Assembler, deadline_s: float) -> None:
        source = route.generate(request)
        try:
            async with asyncio.timeout(deadline_s), contextlib.aclosing(source):
                async for delta in source:
                    piece = assembler.push(delta)
                    self._pieces.put_nowait(piece)
                    if piece.finish is not None:
                        return
            self._pieces.put_nowait(ApiError(502, "engine_error", "the engine ended without finishing the answer"))
        except ApiError as error:
            self._pieces.put_nowait(error)
        except TimeoutError:
            self._pieces.put_nowait(ApiError(504, "deadline_exceeded", f"no answer within {deadline_s:g} s"))
        except Exception:  # whatever an engine raises must become an answer
            _log.exception("request %s failed", request.request_id)
            self._pieces.put_nowait(ApiError(500, "internal_error", "the request failed inside the endpoint"))
            raise
