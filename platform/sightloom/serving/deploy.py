"""Deploying on Ray Serve: one app a version, and the router before them (serving.md §9)."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from sightloom.errors import SightloomError, UserMistake
from sightloom.serving.clip import ClipSettings, app_name
from sightloom.serving.clip_replica import clip_app
from sightloom.serving.config import EndpointConfig
from sightloom.serving.dispatch import about_engine
from sightloom.serving.engines.base import Delta, EngineInfo, EngineRequest
from sightloom.serving.engines.choice import make_engine
from sightloom.serving.engines.folder import read_facts
from sightloom.serving.engines.settings import ENGINE_SETTINGS, EngineSettings, TransformersSettings, VllmSettings
from sightloom.serving.errors import ApiError
from sightloom.serving.gauges import EngineGauges
from sightloom.serving.limits import MAX_QUEUED
from sightloom.serving.meters import RayMeters
from sightloom.serving.ports import address_of, check_host, check_port, wait_until_ready
from sightloom.serving.probes import probe_match
from sightloom.serving.router import Router
from sightloom.serving.routes import Live, ModelRoutes, Routes

ROUTER_APP = "router"
START_TIMEOUT_S = 300.0
_WATCH_S = 5.0


class VersionReplica:
    """One version's replica: an engine, asked through a handle."""

    def __init__(self, folder: str, model: str, version: str, settings: dict[str, Any]) -> None:
        self._folder = Path(folder)
        self._engine = make_engine(self._folder, version, ENGINE_SETTINGS.validate_python(settings))
        self._gauges = EngineGauges(RayMeters(), model, version)
        self._parts: dict[str, float] = {}
        self._match: float | None = None
        self._watching: asyncio.Task[None] | None = None

    async def reconfigure(self, _: dict[str, Any]) -> None:
        """Serve calls it before the replica takes requests: the engine starts here, and answers its probes."""
        if self._watching is None:
            await self._engine.start()
            self._match = await probe_match(self._engine, self._folder)
            self._gauges.started(self._parts | self._engine.startup, self._match)
            self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            self._gauges.tell(self._engine.load())
            await asyncio.sleep(_WATCH_S)

    async def state(self) -> dict[str, Any]:
        """What the engine is and how busy it is."""
        about = about_engine(self._engine, self._match)
        return about | {"startup": self._parts | about["startup"]}

    async def info(self) -> EngineInfo:
        """What the engine is."""
        return self._engine.info

    async def generate(self, request: EngineRequest) -> AsyncIterator[Delta | ApiError]:
        """Answer one request; an error travels as the last item, so that its type survives."""
        source = self._engine.generate(request)
        try:
            async for delta in source:
                yield delta
        except ApiError as error:
            yield error
        finally:
            await source.aclose()

    async def check_health(self) -> None:
        """Serve replaces a replica whose engine has ended for good."""
        if self._watching is not None:
            self._engine.check()


Version = serve.deployment(
    name="engine",
    num_replicas=1,
    max_ongoing_requests=16,
    max_queued_requests=MAX_QUEUED,
    graceful_shutdown_timeout_s=10,
    health_check_period_s=2,  # a replica that was lost is missed, and replaced, so soon
    ray_actor_options={"num_cpus": 1},
)(VersionReplica)


def version_replica(folder: Path, model: str, version: str, settings: EngineSettings) -> Application:
    """One version's app: an engine behind a handle. vLLM queues by itself, so its replica takes more at once."""
    options: dict[str, Any] = {"user_config": {}}
    if isinstance(settings, VllmSettings):
        options["max_ongoing_requests"] = 256
        options["ray_actor_options"] = {"num_cpus": 1, "num_gpus": settings.num_gpus}
    plain = settings.model_dump(mode="json", exclude_unset=True) | {"kind": settings.kind}
    return Version.options(**options).bind(str(folder), model, version, plain)


@dataclass(frozen=True, slots=True)
class Deployment:
    """A running endpoint. `seconds`: how long each part of the start took."""

    address: str
    model: str
    version: str
    digest: str
    seconds: dict[str, float]

    @property
    def api(self) -> str:
        """The base URL for OpenAI clients."""
        return f"{self.address}/v1"


def deploy(
    folder: Path,
    name: str,
    version: str,
    port: int,
    host: str = "127.0.0.1",
    endpoint: EndpointConfig | None = None,
    settings: EngineSettings | None = None,
    clips: Mapping[str, ClipSettings] | None = None,
) -> Deployment:
    """Serve a model folder under `name` on the Ray that this process is connected to; returns when it answers.

    Args:
        clips: open_clip models beside it, by name.

    Raises:
        UserMistake: no model folder, the port is in use, Serve already runs, or the host is not loopback and there are
            no keys. Nothing was started.
        SightloomError: it did not become ready.
    """
    endpoint, settings = endpoint or EndpointConfig(), settings or TransformersSettings()
    if not ray.is_initialized():
        raise UserMistake("this process is not connected to Ray", "call ray.init() first")
    digest = read_facts(folder).digest
    check_host(host, endpoint)
    if serve.status().proxies:
        raise UserMistake("Ray Serve already runs on this cluster", "end it first: serve.shutdown()")
    check_port(host, port)
    began = time.monotonic()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # in this process; LoggingConfig speaks of the others
    logging_config = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port}, logging_config=logging_config)
    seconds = {"serve": time.monotonic() - began}
    app = f"{name}-v{version}"
    live = Live(version=version, app=app)
    routes = Routes(generation=1, models={name: ModelRoutes(live=(live,), aliases={"champion": version})}).model_dump(
        mode="json"
    )
    replica = version_replica(folder.resolve(), name, version, settings)
    router = Router.options(user_config=routes).bind(endpoint.model_dump(mode="json"), tuple(clips or ()))
    beside = [
        serve.RunTarget(clip_app(clip), name=app_name(clip_name), route_prefix=None, logging_config=logging_config)
        for clip_name, clip in (clips or {}).items()
    ]
    try:
        serve.run_many(
            [
                *beside,
                serve.RunTarget(replica, name=app, route_prefix=None, logging_config=logging_config),
                serve.RunTarget(router, name=ROUTER_APP, route_prefix="/", logging_config=logging_config),
            ]
        )
        seconds["apps"] = time.monotonic() - began - seconds["serve"]
        address = address_of(host, port)
        wait_until_ready(address, START_TIMEOUT_S)
    except (RuntimeError, SightloomError) as error:
        serve.shutdown()
        raise SightloomError(f"the endpoint did not start: {error}", "the replica's log names the cause") from error
    seconds["total"] = time.monotonic() - began
    return Deployment(address, name, version, digest, {part: round(took, 2) for part, took in seconds.items()})


def shutdown(ray_ends: bool = False) -> None:
    """End Serve on this cluster: apps, proxies, controller.

    Args:
        ray_ends: the caller ends this Ray next. The apps are stopped, and controller and proxies end with Ray: Serve's
            own shutdown kills the controller inside a call, which Ray then prints as one that failed.
    """
    if not ray_ends:
        serve.shutdown()
        return
    for name in serve.status().applications:
        serve.delete(name)
