"""A model with versions in a store of its own, behind Serve's double: what ticks and verbs are tried on."""

from collections.abc import Callable, Sequence
from typing import Any

from sightloom.promotion.canary import CanaryPlan, CanaryStep
from sightloom.promotion.config import ManagerConfig
from sightloom.promotion.fold import accepted
from sightloom.promotion.ledger import Ledger, utc_now
from sightloom.promotion.states import ModelState
from sightloom.promotion.tick import Reconciler, Tick
from sightloom.promotion.windows import Windows
from sightloom.registry import Registry, Version
from sightloom.serving.observe import Row

from .serving_double import ServeDouble

PLAN = CanaryPlan(steps=(CanaryStep(bp=1000, min_requests=1, min_minutes=0),))


class Killed(BaseException):
    """The process is gone."""


class World:
    """A model of its own in the session's store."""

    def __init__(self, uri: str, name: str, versions: Sequence[Version]) -> None:
        self.uri, self.name, self.versions = uri, name, versions
        self.ledger, self.registry = Ledger(uri), Registry(uri)
        self.serve, self.windows = ServeDouble(), Windows()
        self.effects = 0
        self.kill_at: int | None = None

    def write(self, kind: str, version: int, **args: Any) -> None:
        proof = {"digest": self.versions[version - 1].digest}
        self.ledger.append(self.ledger.read(), kind, self.name, version, "ann", "test", args, proof)

    def promoted(self) -> "World":
        self.write("evaluate", 1)
        self.write("verdict", 1, outcome="passed")
        self.write("promote", 1)
        return self

    def on_trial(self, version: int, plan: CanaryPlan = PLAN) -> None:
        self.write("evaluate", version)
        self.write("verdict", version, outcome="passed")
        self.write("start", version, **plan.to_args())

    def see(self, version: int, **counts: Any) -> None:
        generation = self.ledger.read().generation
        self.windows.add([Row(self.name, version, generation, False, **{"requests": 100, **counts})])

    def tick(self) -> Tick:
        """A tick of a manager that has just been started."""
        ledger, registry = Ledger(self.uri), Registry(self.uri)
        serve = ServeDouble()
        serve.documents, serve.down = self.serve.documents, self.serve.down
        for owner, name in (
            (ledger, "_create"), (ledger, "set_tag"), (serve, "put"), (registry, "set_alias"),
            (registry, "drop_alias"), (registry, "set_model_tag"), (registry, "set_tags"),
        ):  # fmt: skip
            setattr(owner, name, self._deadly(getattr(owner, name)))
        config = ManagerConfig(store=self.uri)
        return Reconciler(ledger, registry, serve, config, self.windows, utc_now).tick()

    def _deadly(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def acting(*args: Any, **kwargs: Any) -> Any:
            result = act(*args, **kwargs)
            self.effects += 1
            if self.effects == self.kill_at:
                raise Killed
            return result

        return acting

    def until_still(self) -> None:
        for _ in range(20):
            try:
                found = self.tick()
            except Killed:
                continue
            if found.settled and not found.events:
                return
        raise AssertionError("it does not come to rest")

    @property
    def state(self) -> ModelState:
        return self.ledger.read().model(self.name)

    @property
    def kinds(self) -> list[str]:
        events = (line.event for line in accepted(self.ledger.read().lines))
        return [event.kind for event in events if event is not None and event.model == self.name]

    def outcome(self) -> dict[str, Any]:
        """All that a person can see at the end."""
        document = self.serve.documents[-1]
        router = next(app for app in document["applications"] if app["name"] == "router")
        routes = router["deployments"][0]["user_config"]["models"][self.name]
        routes.pop("salt")
        tags = [
            {key: version.tags.get(f"sightloom.{key}") for key in ("stage", "weight")}
            for version in self.registry.versions(self.name)
        ]
        return {
            "stages": dict(self.state.stages),
            "kinds": self.kinds,
            "aliases": self.registry.aliases(self.name),
            "tags": tags,
            "apps": [app["name"] for app in document["applications"] if app["name"].startswith(self.name)],
            "live": routes["live"],
        }
