"""The manager's thread: whatever a tick does, it goes on, and says so in a heartbeat that fits into a tag."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sightloom.promotion import tick
from sightloom.promotion.config import ManagerConfig
from sightloom.promotion.follow import HEARTBEAT, heartbeat
from sightloom.promotion.manager import ReleaseManager

from .world import World

LONG = "é" * 9000


@pytest.fixture
def world(make: Callable[[], World]) -> World:
    return make().promoted()


@pytest.fixture
def manager(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReleaseManager]:
    """One whose first ticks fail as no code should, and as a server's answer may; the third is well."""
    ends: list[BaseException] = [AssertionError("a broken promise"), AttributeError(LONG)]

    def ticked(reconciler: tick.Reconciler) -> Any:
        if ends:
            raise ends.pop(0)
        return tick.Tick(7, True, ("x" * 9000,), False)

    monkeypatch.setattr(tick.Reconciler, "tick", ticked)
    made = ReleaseManager(ManagerConfig(store=world.uri, busy_s=0.5).model_dump(mode="json"))
    yield made
    made.stop()


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_tick_that_fails_in_any_way_is_told_and_followed_by_the_next(manager: ReleaseManager, world: World) -> None:
    errors: list[str] = []

    def settled() -> bool:
        found = heartbeat(world.ledger)
        if found is not None and found.error not in errors:
            errors.append(found.error)
        assert len(world.ledger.tag(HEARTBEAT)) < 5000, "what a column on Postgres holds"
        return found is not None and found.settled

    until(settled)
    assert errors == ["AssertionError: a broken promise", f"AttributeError: {LONG}"[:1000], ""]
    assert manager.status()["ticks"] >= 3 and manager.status()["error"] == ""


def test_the_last_heartbeat_is_a_farewell_only_where_what_it_served_ends_too(
    manager: ReleaseManager, world: World
) -> None:
    until(lambda: (found := heartbeat(world.ledger)) is not None and found.settled)
    manager.stop()
    said = heartbeat(world.ledger)
    assert said is not None and said.alive and not said.gone
    manager.stop(farewell=True)
    said = heartbeat(world.ledger)
    assert said is not None and said.gone and not said.alive
    assert json.loads(world.ledger.tag(HEARTBEAT))["settled"] is True
