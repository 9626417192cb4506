"""An engine and its app in a thread with an event loop of their own, asked over HTTP."""

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvicorn
from fastapi import FastAPI

from sightloom.serving.app import build_app
from sightloom.serving.config import EndpointConfig
from sightloom.serving.dispatch import LocalDispatcher
from sightloom.serving.engines.base import Engine

T = TypeVar("T")
OWN_VLLM = Path(sys.prefix).parent / ".tools" / "vllm" / "bin" / "python"


def vllm_python() -> str:
    """The interpreter with vLLM; the test is skipped where there is none."""
    if not OWN_VLLM.exists():
        pytest.skip("there is no vLLM here: `make vllm` puts it at .tools/vllm")
    return str(OWN_VLLM)


class Running:
    """A started engine behind an app on a free port; `run` does something in its loop."""

    def __init__(self, engine: Engine, address: str, loop: asyncio.AbstractEventLoop) -> None:
        self.engine = engine
        self.address = address
        self._loop = loop

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run in the engine's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(600)


@contextlib.contextmanager
def listen(app: FastAPI) -> Iterator[str]:
    """Serve an app on a free port from a thread; yields its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    with _listening(app, loop) as address:
        yield address
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


@contextlib.contextmanager
def _listening(app: FastAPI, loop: asyncio.AbstractEventLoop) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
    serving = asyncio.run_coroutine_threadsafe(server.serve(), loop)
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        serving.result(30)


@contextlib.contextmanager
def serve(make: Callable[[], Engine], endpoint: EndpointConfig | None = None) -> Iterator[Running]:
    """Start, serve, and end all of it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(work: Coroutine[Any, Any, T], seconds: float) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(seconds)

    async def made() -> Engine:
        engine = make()
        await engine.start()
        return engine

    engine = run(made(), 900)
    app = build_app(endpoint or EndpointConfig(), LocalDispatcher("sightloom", engine))
    try:
        with _listening(app, loop) as address:
            yield Running(engine, address, loop)
    finally:
        run(engine.stop(1.0), 120)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def group_of(pid: int) -> dict[int, str]:
    """The processes below the guard with this id, and their command lines."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            with contextlib.suppress(OSError):
                found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
                todo.append(child)
    return found


def survivors(before: dict[int, str]) -> list[int]:
    """Those of some processes that still run; a number that another program has by now is not counted."""
    found = []
    for pid, line in before.items():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") == line:
                found.append(pid)
    return found
