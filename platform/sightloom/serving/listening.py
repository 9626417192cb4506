"""The app under uvicorn: in the loop that asks for it, or in a thread with a loop of its own."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import uvicorn
from fastapi import FastAPI

from sightloom.errors import SightloomError
from sightloom.serving.app import build_app
from sightloom.serving.config import EndpointConfig
from sightloom.serving.dispatch import LocalDispatcher
from sightloom.serving.engines.base import Engine
from sightloom.serving.ports import address_of

T = TypeVar("T")
GRACE_S: Final = 10.0
_LOOK_S: Final = 0.02


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something in it, from another thread, and wait for the result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """Let it end."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(GRACE_S)


@dataclass(frozen=True, slots=True)
class Running:
    """A started engine behind an app at `address`; `run` does something in its loop."""

    engine: Engine
    address: str
    run: Callable[[Coroutine[Any, Any, Any]], Any]


@dataclass(frozen=True, slots=True)
class Listening:
    """An app that listens. `ended`: done once it does not, on a signal where the loop is the main thread's."""

    address: str
    ended: "asyncio.Task[None]"


@contextlib.asynccontextmanager
async def listening(app: FastAPI, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Listening]:
    """Serve an app from the running loop until the block ends. Port 0: a free one.

    Raises:
        SightloomError: the address cannot be listened on.
    """
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=int(GRACE_S)
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():
        await asyncio.sleep(_LOOK_S)
    if not server.started:
        await asyncio.gather(serving, return_exceptions=True)
        raise SightloomError(f"the endpoint could not listen on {host}", f"is port {port} free?")
    found = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Listening(address_of(host, found), serving)
    finally:
        server.should_exit = True
        await serving


@contextlib.contextmanager
def listen(app: FastAPI, loop: Loop | None = None) -> Iterator[str]:
    """Serve an app on a free port of loopback from a thread; yields its address."""
    own = loop or Loop()
    stack = contextlib.AsyncExitStack()
    try:
        yield own.run(stack.enter_async_context(listening(app))).address
    finally:
        own.run(stack.aclose())
        if loop is None:
            own.close()


@contextlib.contextmanager
def running(
    make: Callable[[], Engine], name: str = "sightloom", endpoint: EndpointConfig | None = None
) -> Iterator[Running]:
    """Start an engine and serve it on a free port of loopback from a thread; all of it is gone when the block ends.

    Args:
        make: makes the engine; called in the loop that it will belong to.
        name: the model's name in requests.
        endpoint: the app's configuration.

    Raises:
        SightloomError: the engine or the server did not start.
    """
    loop = Loop()

    async def started() -> Engine:
        engine = make()
        await engine.start()
        return engine

    try:
        engine = loop.run(started())
        try:
            with listen(build_app(endpoint or EndpointConfig(), LocalDispatcher(name, engine)), loop) as address:
                yield Running(engine, address, loop.run)
        finally:
            loop.run(engine.stop(GRACE_S))
    finally:
        loop.close()
