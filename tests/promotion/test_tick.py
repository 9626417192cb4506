"""Ticks over a real ledger: canary to champion, drift, judgement, MLflow away, and a kill after every side effect."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from sightloom.errors import SightloomError
from sightloom.promotion.config import ManagerConfig
from sightloom.promotion.fold import accepted
from sightloom.promotion.ledger import Ledger, LostRace, utc_now
from sightloom.promotion.ledger_gauges import LedgerGauges
from sightloom.promotion.tick import Reconciler
from sightloom.promotion.windows import Windows
from sightloom.serving.meters import LocalMeters

from .world import Killed, World


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


def test_what_the_ledger_has_taken_and_refused_is_counted_once(make: Callable[[], World]) -> None:
    world, meters = make().promoted(), LocalMeters()
    gauges = LedgerGauges(meters)
    gauges.tell(world.tick())
    stale = world.ledger.read()
    world.write("evaluate", 2)
    with pytest.raises(LostRace):
        world.ledger.append(stale, "evaluate", "m", 2, "bob", "late")
    client = MlflowClient(tracking_uri=world.uri, registry_uri=world.uri)
    world.until_still()
    client.set_registered_model_alias("m", "champion", "3")
    found = world.tick()
    for _ in range(2):
        gauges.tell(found)
    text = meters.text().decode()
    assert 'sightloom_ledger_events_total{kind="evaluate",outcome="accepted"} 1.0' in text, "none of those before it"
    assert 'sightloom_ledger_events_total{kind="evaluate",outcome="lost"} 1.0' in text
    assert 'sightloom_ledger_events_total{kind="drift",outcome="accepted"} 1.0' in text and "promote" not in text
    assert "sightloom_ledger_head 6.0" in text and "sightloom_ledger_drift 1.0" in text
    gauges.tell(world.tick())
    assert "sightloom_ledger_drift 0.0" in meters.text().decode()
