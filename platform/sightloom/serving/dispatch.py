"""Which engine answers a request: model names, and the dispatcher that the app asks.

Under Ray Serve the dispatcher holds deployment handles (`router.py`), under uvicorn one engine of the same process.
"""

import re
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from sightloom.serving.engines.base import Delta, Engine, EngineInfo, EngineRequest
from sightloom.serving.errors import ApiError
from sightloom.serving.gauges import EngineGauges
from sightloom.serving.meters import Meters
from sightloom.serving.routes import BASIS_POINTS, RouteKind

if TYPE_CHECKING:
    from sightloom.serving.observe import Outcome

_NAME: Final = re.compile(
    r"(?P<name>[^@:\s]+)(?:@(?P<alias>champion|challenger|previous)|:(?P<version>[1-9][0-9]{0,8}))?"
)


@dataclass(frozen=True, slots=True)
class ModelName:
    """`NAME`, `NAME@champion` or `NAME:13`, taken apart."""

    name: str
    alias: str | None
    version: str | None

    @property
    def pinned(self) -> bool:
        """A version or an alias was named: the request is not routed."""
        return self.alias is not None or self.version is not None


def parse_model(text: str) -> ModelName:
    """Read a model's name.

    Raises:
        ApiError: 404 `model_not_found`.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise not_found(text, ())
    return ModelName(match["name"], match["alias"], match["version"])


def not_found(name: str, known: tuple[str, ...]) -> ApiError:
    """404: there is no such model."""
    hint = f"; served here: {', '.join(known)}" if known else ""
    return ApiError(404, "model_not_found", f"the model '{name[:100]}' does not exist{hint}", "model")


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes. `subject`: what its way was chosen by; `app`: the version's; `retry`: a second attempt."""

    model: str
    kind: RouteKind
    generation: int
    info: EngineInfo
    generate: Callable[[EngineRequest], AsyncGenerator[Delta, None]]
    subject: str = ""
    app: str = ""
    retry: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """Says in every answer what answered."""
        return {
            "x-sightloom-model": f"{self.model}:{self.info.version}",
            "x-sightloom-route": self.kind,
            "x-sightloom-generation": str(self.generation),
        }


@dataclass(frozen=True, slots=True)
class Card:
    """A line of `/v1/models`."""

    id: str
    alias: str | None
    info: EngineInfo
    created: int

    def to_json(self) -> dict[str, Any]:
        """The model object."""
        about = {
            "version": self.info.version,
            "alias": self.alias,
            "digest": self.info.digest,
            "engine": self.info.kind,
            "max_model_len": self.info.max_model_len,
            "features": sorted(self.info.features),
        }
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "sightloom",
            "sightloom": about,
        }


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the champions answer."""

    ready: bool
    generation: int
    models: dict[str, dict[str, Any]]


class Dispatcher(Protocol):
    """Knows the models and routes requests to their engines."""

    async def cards(self, pins: bool) -> list[Card]:
        """The models; with `pins` their versions and aliases, too."""
        ...

    async def route(self, model: str, subject: str) -> Route:
        """Where a request for `model` goes; equal subjects go the same way while weights stay.

        Raises:
            ApiError: 404 `model_not_found`, 503 `not_ready`.
        """
        ...

    async def elsewhere(self, route: Route, error: ApiError) -> Route | None:
        """Where to try again what failed before its first byte; None: nowhere."""
        ...

    def record(self, outcome: "Outcome") -> None:
        """Take note of how an attempt ended."""
        ...

    def shadow(self, route: Route, request: EngineRequest, stops: tuple[str, ...], answer: str) -> None:
        """Ask another version the same in the background, where the routes say so."""
        ...

    async def readiness(self) -> Readiness:
        """Whether requests can be answered now."""
        ...

    async def state(self) -> dict[str, Any]:
        """Routes, and each app's engine, for administrators."""
        ...

    def tell(self, meters: Meters) -> None:
        """Say the gauges that nothing else says."""
        ...


def about_engine(engine: Engine, match: float | None = None) -> dict[str, Any]:
    """What an engine is, how it started and how busy it is."""
    info = asdict(engine.info) | {"features": sorted(engine.info.features)}
    return {"info": info, "load": asdict(engine.load()), "startup": engine.startup, "probe_match": match}


class LocalDispatcher:
    """One engine in this process, under one name. `match`: the share of its probes that it answered as registered."""

    match: float | None = None

    def __init__(self, name: str, engine: Engine) -> None:
        self._name = name
        self._engine = engine
        self._created = int(time.time())

    async def cards(self, pins: bool) -> list[Card]:
        """The one model, and with `pins` its version and the alias champion."""
        if not self._engine.load().alive:
            return []
        return make_cards(self._name, self._engine.info, self._created, pins)

    async def route(self, model: str, subject: str) -> Route:
        """The engine, if the name is its own."""
        asked = parse_model(model)
        if asked.name != self._name or asked.alias not in (None, "champion"):
            raise not_found(model, (self._name,))
        if not self._engine.load().alive:
            raise ApiError(503, "not_ready", f"the model '{self._name}' is not ready yet", retry_after_s=2)
        if asked.version not in (None, self._engine.info.version):
            raise not_found(model, (self._name,))
        kind: RouteKind = "pin" if asked.pinned else "champion"
        return Route(self._name, kind, 0, self._engine.info, self._engine.generate)

    async def elsewhere(self, route: Route, error: ApiError) -> Route | None:
        """Nowhere: there is one engine."""
        del route, error
        return None

    def record(self, outcome: "Outcome") -> None:
        """Nobody asks."""

    def shadow(self, route: Route, request: EngineRequest, stops: tuple[str, ...], answer: str) -> None:
        """There is no other version."""

    async def state(self) -> dict[str, Any]:
        """The one engine."""
        return {"generation": 0, "models": {}, "apps": {self._name: about_engine(self._engine, self.match)}}

    def tell(self, meters: Meters) -> None:
        """The engine's load, and that all goes to it."""
        info = self._engine.info
        gauges = EngineGauges(meters, self._name, info.version)
        gauges.started(self._engine.startup, self.match)
        gauges.tell(replace(self._engine.load(), restarts={}))
        meters.set("route_weight", BASIS_POINTS, model=self._name, version=info.version, route="champion")

    async def readiness(self) -> Readiness:
        """Ready once the engine lives."""
        alive = self._engine.load().alive
        champion = self._engine.info.version if alive else None
        return Readiness(alive, 0, {self._name: {"champion": champion, "ready": alive, "replicas": int(alive)}})


def make_cards(name: str, info: EngineInfo, created: int, pins: bool) -> list[Card]:
    """The cards of a model whose champion is `info`."""
    cards = [Card(name, "champion", info, created)]
    if pins:
        cards += [
            Card(f"{name}@champion", "champion", info, created),
            Card(f"{name}:{info.version}", None, info, created),
        ]
    return cards
