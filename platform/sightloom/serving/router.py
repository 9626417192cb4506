"""The router under Ray Serve: the app, with handles to the version apps behind it (serving.md §9).

Which versions are live stands in the deployment's `user_config`, so that weights move without a restart.
"""

import hashlib
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

from pydantic import Field
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from sightloom.config import Frozen
from sightloom.serving.app import EndpointConfig, build_app
from sightloom.serving.clip_replica import handles
from sightloom.serving.dispatch import Card, Readiness, Route, RouteKind, make_cards, not_found, parse_model
from sightloom.serving.engines.base import Delta, EngineInfo, EngineRequest
from sightloom.serving.errors import ApiError

_log = logging.getLogger(__name__)
BASIS_POINTS = 10_000


class Live(Frozen):
    """A version that takes requests: its Serve app and its share in basis points."""

    version: str
    app: str
    bp: int = BASIS_POINTS


class ModelRoutes(Frozen):
    """One model's versions; the first of `live` is the champion, a second the challenger."""

    live: tuple[Live, ...]
    pins: dict[str, str] = Field(default_factory=dict)
    aliases: dict[str, str] = Field(default_factory=dict)
    salt: str = ""


class Routes(Frozen):
    """What the router serves: the deployment's `user_config`."""

    generation: int = 0
    models: dict[str, ModelRoutes] = Field(default_factory=dict)


class HandleDispatcher:
    """Routes to version apps by their handles."""

    def __init__(self) -> None:
        self._routes = Routes()
        self._handles: dict[str, DeploymentHandle] = {}
        self._infos: dict[str, EngineInfo] = {}
        self._created = int(time.time())

    def set_routes(self, routes: Routes) -> None:
        """Take new routes; requests under way keep theirs."""
        apps = {live.app for model in routes.models.values() for live in model.live}
        apps |= {app for model in routes.models.values() for app in model.pins.values()}
        self._handles = {app: self._handles.get(app) or serve.get_app_handle(app) for app in apps}
        self._infos = {app: info for app, info in self._infos.items() if app in apps}
        self._routes = routes

    async def cards(self, pins: bool) -> list[Card]:
        """The champions that answer; with `pins` their versions."""
        cards: list[Card] = []
        for name, model in self._routes.models.items():
            try:
                cards += make_cards(name, await self._info(model.live[0].app), self._created, pins)
            except ApiError:
                continue  # a champion that does not answer is in /readyz, not in the list
        return cards

    async def route(self, model: str, subject: str) -> Route:
        """Choose a version: pinned by name, else by the subject's hash."""
        asked = parse_model(model)
        routes = self._routes.models.get(asked.name)
        if routes is None:
            raise not_found(model, tuple(self._routes.models))
        kind: RouteKind
        if asked.pinned:
            version = asked.version or routes.aliases.get(asked.alias or "")
            apps = {live.version: live.app for live in routes.live} | routes.pins
            if version not in apps:
                raise not_found(model, tuple(self._routes.models))
            app, kind = apps[version], "pin"
        else:
            app, kind = choose(routes, subject)
        info = await self._info(app)
        handle = self._handles[app].options(stream=True, method_name="generate")

        async def generate(request: EngineRequest) -> AsyncGenerator[Delta, None]:
            async for delta in _through(handle, request):
                yield delta

        return Route(asked.name, kind, self._routes.generation, info, generate)

    async def readiness(self) -> Readiness:
        """Ready when each champion answers."""
        models: dict[str, dict[str, Any]] = {}
        for name, model in self._routes.models.items():
            champion = model.live[0]
            try:
                await self._info(champion.app)
                ready = True
            except ApiError:
                ready = False
            models[name] = {"champion": champion.version, "ready": ready, "replicas": int(ready)}
        return Readiness(
            bool(models) and all(about["ready"] for about in models.values()), self._routes.generation, models
        )

    async def _info(self, app: str) -> EngineInfo:
        if app not in self._infos:
            try:
                self._infos[app] = await self._handles[app].info.remote()
            except (RayError, DeploymentUnavailableError, BackPressureError) as error:
                _log.warning("the app %s does not answer: %s", app, type(error).__name__)
                raise ApiError(503, "not_ready", "the model is not ready yet", retry_after_s=2) from error
        return self._infos[app]


def choose(routes: ModelRoutes, subject: str) -> tuple[str, RouteKind]:
    """The app for a subject: pure, and raising the challenger's share only adds subjects to it."""
    champion, *others = routes.live
    if others:
        place = int.from_bytes(hashlib.sha256(f"{routes.salt}\0{subject}".encode()).digest()[:8]) % BASIS_POINTS
        if place < others[0].bp:
            return others[0].app, "challenger"
    return champion.app, "champion"


async def _through(handle: DeploymentHandle, request: EngineRequest) -> AsyncGenerator[Delta, None]:
    """One request through a handle; closing it cancels the request in the replica."""
    replies = handle.remote(request)
    done = False
    try:
        async for reply in replies:
            if isinstance(reply, ApiError):
                done = True
                raise reply
            done = reply.finish is not None
            yield reply
    except BackPressureError as error:
        done = True
        raise ApiError(429, "engine_overloaded", "the engine's queue is full", retry_after_s=1) from error
    except (RayError, DeploymentUnavailableError) as error:
        done = True
        _log.warning("the engine was lost: %s", type(error).__name__)
        raise ApiError(502, "engine_error", "the engine was lost while it answered") from error
    finally:
        if not done:
            replies.cancel()


@serve.ingress()
class RouterReplica:
    """Serve's ingress: the app over handles."""

    def __init__(self, endpoint: dict[str, Any], clips: tuple[str, ...] = ()) -> None:
        self._dispatcher = HandleDispatcher()
        self._clips = clips
        self._endpoint = EndpointConfig.model_validate(endpoint)

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Serve once the replica is made."""
        return build_app(self._endpoint, self._dispatcher, handles(self._clips))

    async def reconfigure(self, routes: dict[str, Any]) -> None:
        """Take the routes of a new `user_config`; no replica restarts."""
        self._dispatcher.set_routes(Routes.model_validate(routes))


Router = serve.deployment(name="router", num_replicas=1, max_ongoing_requests=1024, ray_actor_options={"num_cpus": 0})(
    RouterReplica
)
