"""The router under Ray Serve: the app, with handles to the version apps behind it (serving.md §9).

Which versions are live stands in the deployment's `user_config`, so that weights move without a restart.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any, Final

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from sightloom.serving.app import build_app
from sightloom.serving.clip_replica import handles
from sightloom.serving.config import EndpointConfig
from sightloom.serving.dispatch import Card, Readiness, Route, make_cards, not_found, parse_model
from sightloom.serving.engines.base import Delta, EngineInfo, EngineRequest
from sightloom.serving.errors import ApiError
from sightloom.serving.gauges import RouteGauges
from sightloom.serving.limits import MAX_QUEUED, Pace
from sightloom.serving.meters import Meters, RayMeters
from sightloom.serving.observe import Outcome
from sightloom.serving.replicas import Replicas
from sightloom.serving.reporting import Reporter
from sightloom.serving.routes import Routes, choose
from sightloom.serving.shadows import Shadows

_log = logging.getLogger(__name__)
ENGINE: Final = "engine"  # the deployment's name in every version app
LOST: Final = "engine_error"
_PREPARE_S: Final = 5.0
_INFO_S: Final = 10.0
_SILENT: Final = (RayError, DeploymentUnavailableError, BackPressureError, TimeoutError)


class HandleDispatcher:
    """Routes to version apps by their handles."""

    def __init__(self, meters: Meters) -> None:
        self._routes = Routes()
        self._gauges = RouteGauges(meters)
        self._handles: dict[str, DeploymentHandle] = {}
        self._infos: dict[str, EngineInfo] = {}
        self._paces: dict[str, Pace] = {}
        self._replicas = Replicas()
        self._created = int(time.time())
        self._shadows = Shadows(self._ask, self.record, meters)
        self.reporter = Reporter()

    async def set_routes(self, routes: Routes) -> None:
        """Take new routes once their apps were asked who they are; requests under way keep theirs.

        An app that does not answer within seconds holds nothing up: its requests are told so one by one.
        """
        apps = routes.apps
        for app in apps - self._handles.keys():
            self._handles[app] = DeploymentHandle(ENGINE, app)
        await asyncio.gather(*(self._introduce(app) for app in apps - self._infos.keys()))
        self._routes = routes
        self._paces = {app: pace for app, pace in self._paces.items() if app in apps}
        self._handles = {app: handle for app, handle in self._handles.items() if app in apps}
        self._infos = {app: info for app, info in self._infos.items() if app in apps}
        self._gauges.tell(routes)

    async def cards(self, pins: bool) -> list[Card]:
        """The champions that answer; with `pins` their versions."""
        cards: list[Card] = []
        for name, model in self._routes.models.items():
            try:
                if model.live:
                    cards += make_cards(name, await self._info(model.live[0].app), self._created, pins)
                for version, app in model.pins.items() if pins else ():
                    if not model.live or version != model.live[0].version:
                        alias = next((alias for alias, its in model.aliases.items() if its == version), None)
                        info = await self._info(app)
                        cards.append(Card(f"{name}:{version}", alias, info, self._created))
                        if alias is not None:
                            cards.append(Card(f"{name}@{alias}", alias, info, self._created))
            except ApiError:
                continue  # a champion that does not answer is in /readyz, not in the list
        return cards

    async def route(self, model: str, subject: str) -> Route:
        """Choose a version: pinned by name, else by the subject's hash."""
        asked = parse_model(model)
        routes = self._routes.models.get(asked.name)
        if routes is None:
            raise not_found(model, tuple(self._routes.models))
        if asked.pinned:
            version = asked.version or routes.aliases.get(asked.alias or "")
            apps = {live.version: live.app for live in routes.live} | routes.pins
            if version not in apps:
                raise not_found(model, tuple(self._routes.models))
            return await self._to(asked.name, apps[version], "pin", subject)
        if not routes.live:
            raise ApiError(503, "not_ready", f"the model '{asked.name}' has no champion that is ready", retry_after_s=5)
        live, kind = choose(routes, subject)
        try:
            return await self._to(asked.name, live.app, kind, subject)
        except ApiError as error:
            if kind != "challenger":
                raise
            generation = self._routes.generation
            self.record(Outcome(asked.name, live.version, kind, generation, False, error.status, error.code))
            return await self._to(asked.name, routes.live[0].app, "fallback", subject, retry=True)

    async def elsewhere(self, route: Route, error: ApiError) -> Route | None:
        """Where to try again what failed before its first byte: once, a challenger's request with the champion.

        A champion's (or pin's) request goes to the same app again if its replica was lost: another one answers.
        """
        routes = self._routes.models.get(route.model)
        if route.retry or routes is None or not routes.live:
            return None
        if route.kind == "challenger" and error.code != "deadline_exceeded":
            if error.status >= 500 or error.code == "engine_overloaded":
                return await self._to(route.model, routes.live[0].app, "fallback", route.subject, retry=True)
        elif error.code == LOST:
            app = route.app if route.app in routes.apps else routes.live[0].app
            return await self._to(route.model, app, route.kind, route.subject, retry=True)
        return None

    def record(self, outcome: Outcome) -> None:
        """Count an attempt for the release manager."""
        self.reporter.add(outcome)

    def shadow(self, route: Route, request: EngineRequest, stops: tuple[str, ...], answer: str) -> None:
        """Ask the shadowed version what the champion has answered, if the subject's hash says so."""
        routes = self._routes.models.get(route.model)
        if routes is not None and route.kind == "champion":
            self._shadows.send(routes, route, request, stops, answer)

    async def readiness(self) -> Readiness:
        """Ready when a replica of each champion runs: it has answered its warm-up picture then."""
        models: dict[str, dict[str, Any]] = {}
        for name, model in self._routes.models.items():
            if not model.live:
                models[name] = {"champion": model.aliases.get("champion"), "ready": False, "replicas": 0}
                continue
            champion = model.live[0]
            replicas = await self._replicas.of(champion.app)
            models[name] = {"champion": champion.version, "ready": replicas > 0, "replicas": replicas}
        served = [about for about in models.values() if about["champion"] is not None]
        return Readiness(bool(served) and all(about["ready"] for about in served), self._routes.generation, models)

    async def state(self) -> dict[str, Any]:
        """The routes, and what each app's replica says of itself."""
        apps = sorted(self._routes.apps)
        said = await asyncio.gather(*(self._state_of(app) for app in apps))
        return {**self._routes.model_dump(mode="json"), "apps": dict(zip(apps, said, strict=True))}

    def tell(self, meters: Meters) -> None:
        """Routes are told when they change, engines tell of themselves."""

    async def _state_of(self, app: str) -> dict[str, Any]:
        try:
            async with asyncio.timeout(_INFO_S):
                return dict(await self._handle(app).state.remote())
        except _SILENT as error:
            return {"error": f"does not answer: {type(error).__name__}"}

    def _handle(self, app: str) -> DeploymentHandle:
        """An app's handle; the routes may have moved on between the choice and the question."""
        return self._handles.get(app) or DeploymentHandle(ENGINE, app)

    async def _to(self, model: str, app: str, kind: Any, subject: str, retry: bool = False) -> Route:
        info = await self._info(app)

        def generate(request: EngineRequest) -> AsyncGenerator[Delta, None]:
            return self._ask(app, request)

        return Route(model, kind, self._routes.generation, info, generate, subject, app, retry)

    def _ask(self, app: str, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        handle = self._handle(app).options(stream=True, method_name="generate")
        return through(handle, request, self._paces.setdefault(app, Pace()))

    async def _introduce(self, app: str) -> None:
        try:
            async with asyncio.timeout(_PREPARE_S):
                await self._info(app)
        except (ApiError, TimeoutError):
            _log.warning("the app %s has not said yet who it is", app)

    async def _info(self, app: str) -> EngineInfo:
        if app not in self._infos:
            try:
                async with asyncio.timeout(_INFO_S):
                    self._infos[app] = await self._handle(app).info.remote()
            except _SILENT as error:
                _log.warning("the app %s does not answer: %s", app, type(error).__name__)
                raise ApiError(503, "not_ready", "the model is not ready yet", retry_after_s=2) from error
        return self._infos[app]


async def through(handle: DeploymentHandle, request: EngineRequest, pace: Pace) -> AsyncGenerator[Delta, None]:
    """One request through a handle; closing it cancels the request in the replica. `pace`: of the handle's app."""
    replies = handle.remote(request)
    done = False
    try:
        async for reply in replies:
            if isinstance(reply, ApiError):
                done = True
                raise reply
            if reply.finish is not None:
                done = True
                pace.ended()  # who has read the last piece comes no more
            yield reply
    except BackPressureError as error:
        done = True
        wait_s = pace.wait_s(MAX_QUEUED)
        raise ApiError(429, "engine_overloaded", "the engine's queue is full", retry_after_s=wait_s) from error
    except (RayError, DeploymentUnavailableError) as error:
        done = True
        _log.warning("the engine was lost: %s", type(error).__name__)
        raise ApiError(502, LOST, "the engine was lost while it answered") from error
    finally:
        if not done:
            replies.cancel()


@serve.ingress()
class RouterReplica:
    """Serve's ingress: the app over handles."""

    def __init__(self, endpoint: dict[str, Any], clips: tuple[str, ...] = ()) -> None:
        self._meters = RayMeters()
        self._dispatcher = HandleDispatcher(self._meters)
        self._clips = clips
        self._endpoint = EndpointConfig.model_validate(endpoint)

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Serve once the replica is made."""
        return build_app(self._endpoint, self._dispatcher, handles(self._clips), self._meters)

    async def reconfigure(self, routes: dict[str, Any]) -> None:
        """Take the routes of a new `user_config`; no replica restarts."""
        self._dispatcher.reporter.start()
        await self._dispatcher.set_routes(Routes.model_validate(routes))


Router = serve.deployment(name="router", num_replicas=1, max_ongoing_requests=1024, ray_actor_options={"num_cpus": 0})(
    RouterReplica
)
