"""The endpoint in one process: the app under uvicorn with one engine, for a laptop, an evaluation or a test."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import uvicorn

from sightloom.serving.app import build_app
from sightloom.serving.clip import ClipModel, ClipSettings, LocalEmbedder
from sightloom.serving.config import EndpointConfig
from sightloom.serving.deploy import Deployment
from sightloom.serving.dispatch import LocalDispatcher
from sightloom.serving.engines.choice import make_engine
from sightloom.serving.engines.settings import EngineSettings
from sightloom.serving.listening import address_of, check_host, check_port

GRACE_S = 10.0


def serve_here(
    folder: Path,
    name: str,
    version: str,
    port: int,
    host: str,
    endpoint: EndpointConfig,
    settings: EngineSettings,
    on_ready: Callable[[Deployment], None],
    clips: Mapping[str, ClipSettings] | None = None,
) -> None:
    """Serve a model folder until the process is interrupted.

    Raises:
        UserMistake: no model folder, the port is in use, or the host is not loopback and there are no keys.
    """
    check_host(host, endpoint)
    check_port(host, port)
    engine = make_engine(folder, version, settings)
    embedders = {clip_name: LocalEmbedder(ClipModel(clip)) for clip_name, clip in (clips or {}).items()}
    app = build_app(endpoint, LocalDispatcher(name, engine), embedders)
    server = uvicorn.Server(
        uvicorn.Config(
            app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=int(GRACE_S)
        )
    )

    async def run() -> None:
        began = asyncio.get_running_loop().time()
        await engine.start()
        took = {"total": round(asyncio.get_running_loop().time() - began, 2)}
        address = address_of(host, port)
        serving = asyncio.create_task(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.02)
        if not serving.done():
            on_ready(Deployment(address, name, version, engine.info.digest, took))
        try:
            await serving
        finally:
            await engine.stop(GRACE_S)

    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it is meant to end
        asyncio.run(run())
