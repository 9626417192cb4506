"""The endpoint in one process: the app under uvicorn with one engine, for a laptop, an evaluation or a test."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sightloom.serving.app import build_app
from sightloom.serving.clip import ClipModel, ClipSettings, LocalEmbedder
from sightloom.serving.config import EndpointConfig
from sightloom.serving.deploy import Deployment
from sightloom.serving.dispatch import LocalDispatcher
from sightloom.serving.engines.choice import make_engine
from sightloom.serving.engines.settings import EngineSettings
from sightloom.serving.listening import GRACE_S, listening
from sightloom.serving.ports import check_host, check_port
from sightloom.serving.probes import probe_match


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
    dispatcher = LocalDispatcher(name, engine)
    app = build_app(endpoint, dispatcher, embedders)

    async def run() -> None:
        began = time.monotonic()
        await engine.start()
        dispatcher.match = await probe_match(engine, folder)
        took = {"total": round(time.monotonic() - began, 2)}
        try:
            async with listening(app, host, port) as served:
                on_ready(Deployment(served.address, name, version, engine.info.digest, took))
                await asyncio.wait({served.ended})
        finally:
            await engine.stop(GRACE_S)

    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it is meant to end
        asyncio.run(run())
