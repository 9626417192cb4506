"""Ticks over a real ledger: canary to champion, drift, judgement, MLflow away, and a kill after every side effect."""

import contextlib
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from sightloom.errors import SightloomError
from sightloom.promotion.canary import CanaryPlan, CanaryStep
from sightloom.promotion.config import ManagerConfig
from sightloom.promotion.fold import accepted
from sightloom.promotion.ledger import Ledger, utc_now
from sightloom.promotion.states import ModelState
from sightloom.promotion.tick import Reconciler, Tick
from sightloom.promotion.windows import Windows
from sightloom.registry import Registry, Version
from sightloom.serving.observe import Row
from sightloom.tracking import MlflowTracker

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


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Version]]:
    """A store with three versions and an empty ledger: migrations take seconds, a copy takes none."""
    folder = tmp_path_factory.mktemp("ticks")
    uri = f"sqlite:///{folder}/m.db"
    run, registry = MlflowTracker(uri, "ticks").start_run("r"), Registry(uri)
    (folder / "export").mkdir()
    (folder / "export" / "config.json").write_text("{}")
    (folder / "export" / "model.safetensors").write_bytes(b"\0" * 10)
    versions = [registry.register("m", folder / "export", run) for _ in range(3)]
    return folder / "m.db", versions


@pytest.fixture
def make(template: tuple[Path, list[Version]], tmp_path: Path) -> Callable[[], World]:
    """Makes worlds, each with a store of its own."""

    def making() -> World:
        copy = tmp_path / f"{uuid.uuid4().hex}.db"
        shutil.copy(template[0], copy)
        return World(f"sqlite:///{copy}", "m", template[1])

    return making


def canary(world: World) -> dict[str, Any]:
    """Champion 1, then 2 through its canary."""
    world.promoted()
    world.until_still()
    world.on_trial(2)
    for _ in range(20):
        with contextlib.suppress(Killed):
            world.tick()
        if world.state.challenger == 2:
            world.see(2)
        if world.state.champion == 2:
            break
    world.until_still()
    return world.outcome()


def kill_after(make: Callable[[], World], every: int) -> None:
    whole = make()
    expected = canary(whole)
    assert expected["stages"] == {1: "previous", 2: "champion"}
    assert expected["aliases"] == {"champion": 2, "previous": 1}
    assert expected["live"] == [{"version": "2", "app": "m-v2", "bp": 10_000}]
    assert expected["kinds"][-3:] == ["start", "step", "promote"]
    assert whole.effects > 15
    for kill_at in range(1, whole.effects + 1, every):
        world = make()
        world.kill_at = kill_at
        assert canary(world) == expected, f"killed after side effect {kill_at}"


def test_a_kill_after_some_side_effects_ends_in_the_same_state(make: Callable[[], World]) -> None:
    kill_after(make, 7)


@pytest.mark.long
def test_a_kill_after_any_side_effect_ends_in_the_same_state(make: Callable[[], World]) -> None:
    kill_after(make, 1)


def test_a_challenger_that_fails_is_taken_back_with_its_figures(make: Callable[[], World]) -> None:
    world = make().promoted()
    world.until_still()
    world.on_trial(2)
    world.tick()
    world.see(2, errors=50)
    world.tick()
    world.until_still()
    event = accepted(world.ledger.read().lines)[-1].event
    assert event is not None
    assert (event.kind, event.actor) == ("abort", "release-manager")
    assert "50 errors" in event.evidence["challenger"]
    assert world.registry.aliases("m") == {"champion": 1}
    assert world.outcome()["apps"] == ["m-v1"]


def test_a_version_whose_app_fails_is_taken_back_and_the_file_is_named(make: Callable[[], World]) -> None:
    world = make().promoted()
    world.until_still()
    world.serve.down["m-v2"] = "DEPLOY_FAILED"
    world.write("evaluate", 2)
    world.tick()
    world.tick()
    event = accepted(world.ledger.read().lines)[-1].event
    assert event is not None and event.kind == "abort"
    assert "file 'x'" in event.reason


def test_an_alias_moved_by_hand_is_recorded_once_and_put_back(make: Callable[[], World]) -> None:
    world = make().promoted()
    world.until_still()
    client = MlflowClient(tracking_uri=world.uri, registry_uri=world.uri)
    for times in (1, 2):
        client.set_registered_model_alias("m", "champion", "3")
        world.until_still()
        assert world.registry.aliases("m") == {"champion": 1}
        assert world.kinds.count("drift") == times
    event = accepted(world.ledger.read().lines)[-1].event
    assert event is not None
    assert event.args == {"aliases": {"champion": [3, 1]}}


def test_a_fall_back_and_the_return_from_it_are_recorded_once_each(make: Callable[[], World]) -> None:
    world = make()
    canary(world)
    world.serve.down["m-v2"] = "UNHEALTHY"
    for _ in range(3):
        world.tick()
    assert world.outcome()["live"] == [{"version": "1", "app": "m-v1", "bp": 10_000}]
    assert world.kinds.count("drift") == 1
    del world.serve.down["m-v2"]
    world.until_still()
    assert world.outcome()["live"] == [{"version": "2", "app": "m-v2", "bp": 10_000}]
    assert world.kinds.count("drift") == 2


def test_without_mlflow_a_tick_touches_nothing(make: Callable[[], World]) -> None:
    world = make().promoted()
    world.until_still()
    before = len(world.serve.documents)
    away = Reconciler(
        Ledger("http://127.0.0.1:1"), world.registry, world.serve, ManagerConfig(store=world.uri), Windows(), utc_now
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(SightloomError, match="cannot be read"):
            away.tick()
    assert len(world.serve.documents) == before
