"""A private endpoint for as long as somebody measures: the same app as ever, on a free port of loopback."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from sightloom.errors import SightloomError
from sightloom.serving.app import build_app
from sightloom.serving.config import EndpointConfig
from sightloom.serving.dispatch import LocalDispatcher
from sightloom.serving.engines.base import Engine
from sightloom.serving.engines.settings import TransformersSettings
from sightloom.serving.engines.transformers import TransformersEngine

_GRACE_S = 10.0


@contextmanager
def private_endpoint(folder: Path, settings: TransformersSettings, name: str = "model") -> Iterator[str]:
    """Serve a model folder from a thread and yield its address; the engine is gone when the block ends.

    Raises:
        SightloomError: the engine or the server did not start.
    """
    engine: Engine = TransformersEngine(folder, "private", settings)
    app = build_app(EndpointConfig(), LocalDispatcher(name, engine))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", access_log=False))
    ready = threading.Event()
    failure: list[BaseException] = []

    async def run() -> None:
        await engine.start()
        serving = asyncio.create_task(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.02)
        ready.set()
        await serving
        await engine.stop(_GRACE_S)

    def main() -> None:
        try:
            asyncio.run(run())
        except Exception as error:  # noqa: BLE001  told to the caller, in whose thread it is raised again
            failure.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=main, name="private endpoint", daemon=True)
    thread.start()
    ready.wait()
    if failure:
        raise failure[0]
    if not server.started:
        raise SightloomError("the private endpoint did not start", "is a port of loopback free?")
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
