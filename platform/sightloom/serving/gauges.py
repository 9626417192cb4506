"""Gauges: what is under way, what the engines are busy with, and how the traffic is shared out."""

from collections import Counter
from collections.abc import Mapping

from sightloom.serving.engines.base import EngineLoad
from sightloom.serving.meters import Meters
from sightloom.serving.routes import BASIS_POINTS, Routes

Version = tuple[str, str]  # model and version


class Busy:
    """Requests that are being answered, and those of them that wait for their first token, by version."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._running: Counter[Version] = Counter()
        self._waiting: Counter[Version] = Counter()

    def enter(self, version: Version) -> None:
        """A request was sent to a version."""
        self._count(version, 1, 1)

    def first(self, version: Version) -> None:
        """Its first token came."""
        self._count(version, 0, -1)

    def leave(self, version: Version, waited: bool) -> None:
        """It ended, `waited`: without a token."""
        self._count(version, -1, -1 if waited else 0)

    def _count(self, version: Version, running: int, waiting: int) -> None:
        self._running[version] += running
        self._waiting[version] += waiting
        model, number = version
        self._meters.set("inflight", self._running[version], model=model, version=number)
        self._meters.set("queue_depth", self._waiting[version], model=model, version=number)


class EngineGauges:
    """What one version's engine says of itself."""

    def __init__(self, meters: Meters, model: str, version: str) -> None:
        self._meters = meters
        self._where = {"model": model, "version": version}
        self._restarts: Counter[str] = Counter()

    def started(self, parts: Mapping[str, float], match: float | None) -> None:
        """Seconds of the start's parts, and the share of the probes that were answered as registered."""
        for part, seconds in parts.items():
            self._meters.set("startup_seconds", seconds, **self._where, part=part)
        if match is not None:
            self._meters.set("probe_match", match, **self._where)

    def tell(self, load: EngineLoad) -> None:
        """How busy it is."""
        self._meters.set("engine_up", float(load.alive), **self._where)
        self._meters.set("engine_running", load.running, **self._where)
        self._meters.set("engine_waiting", load.waiting, **self._where)
        if load.kv_used is not None:
            self._meters.set("engine_kv_used", load.kv_used, **self._where)
        for reason, count in load.restarts.items():
            self._meters.add("engine_restarts_total", count - self._restarts[reason], **self._where, reason=reason)
            self._restarts[reason] = count


class RouteGauges:
    """Each version's share of the traffic; one that has left the routes is at 0."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._told: set[tuple[str, str, str]] = set()

    def tell(self, routes: Routes) -> None:
        """The shares of new routes, in basis points."""
        shares: dict[tuple[str, str, str], float] = {}
        for name, model in routes.models.items():
            for live, kind in zip(model.live, ("champion", "challenger"), strict=False):
                shares[name, live.version, kind] = live.bp
            for shadow in model.shadow:
                shares[name, shadow.version, "shadow"] = round(shadow.share * BASIS_POINTS)
        for model_name, version, kind in self._told | shares.keys():
            share = shares.get((model_name, version, kind), 0)
            self._meters.set("route_weight", share, model=model_name, version=version, route=kind)
        self._told = set(shares)
