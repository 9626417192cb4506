"""The heartbeat, read from outside: only where nothing serves may a promotion do without its canary."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from sightloom.cli import cli
from sightloom.progress import NullProgress
from sightloom.promotion import follow
from sightloom.promotion.follow import HEARTBEAT, ManagerSilent, manager, settle

from .world import World


class Clock:
    """Time that passes by sleeping; `when`: what happens as soon as so many seconds have passed."""

    def __init__(self, when: dict[float, Callable[[], None]] | None = None) -> None:
        self.now, self._when = 0.0, dict(when or {})

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for due in [at for at in self._when if at <= self.now]:
            self._when.pop(due)()


def say(world: World, age_s: float, **facts: Any) -> None:
    """Leave a heartbeat that is so old."""
    at = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() - age_s))
    said = {"generation": 99, "settled": True, "error": "", "models": {}, "endpoint": "http://127.0.0.1:9", "at": at}
    world.ledger.set_tag(HEARTBEAT, json.dumps(said | facts))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(follow, "time", found)
    return found


def test_only_a_manager_that_never_was_or_said_goodbye_serves_nothing(make: Callable[[], World], clock: Clock) -> None:
    world = make().promoted()
    assert manager(world.ledger) is None
    say(world, 3600, gone=True)
    assert manager(world.ledger) is None and settle(world.ledger, world.ledger.read()) is not None
    say(world, 1)
    found = manager(world.ledger)
    assert found is not None and found.endpoint == "http://127.0.0.1:9" and clock.now == 0
    say(world, 3600)
    with pytest.raises(ManagerSilent, match="has not spoken for 36") as silent:
        manager(world.ledger, NullProgress())
    assert silent.value.exit_code == 1 and "--unserved" in silent.value.hint and clock.now >= 60
    with pytest.raises(ManagerSilent, match="nobody knows that it is live"):
        settle(world.ledger, world.ledger.read())


def test_a_late_heartbeat_is_waited_for(make: Callable[[], World], monkeypatch: pytest.MonkeyPatch) -> None:
    world = make().promoted()
    say(world, 45, settled=False)
    late = Clock({40: lambda: say(world, 0)})
    monkeypatch.setattr(follow, "time", late)
    assert manager(world.ledger) is not None and 40 <= late.now < 60
    say(world, 45)
    slow = Clock({20: lambda: say(world, 0, generation=0), 50: lambda: say(world, 0)})
    monkeypatch.setattr(follow, "time", slow)
    settle(world.ledger, world.ledger.read())
    assert 50 <= slow.now < 60


def test_the_verbs_do_not_take_a_silent_manager_for_none(make: Callable[[], World], clock: Clock) -> None:
    world = make().promoted()
    say(world, 3600)
    before = world.ledger.read().head

    def run(*words: str) -> tuple[int, str]:
        outcome = CliRunner().invoke(cli, [*words, "--store", world.uri, "--json"])
        return outcome.exit_code, " ".join(outcome.output.split())

    code, said = run("promote", "m:2", "--reason", "x")
    assert code == 1 and "has not spoken" in said and "--unserved" in said, said
    assert world.ledger.read().head == before and clock.now >= 60
    code, said = run("promote", "m:2", "--unserved", "--gate", "gone.yaml")
    assert code == 2 and "gone.yaml" in said, "it goes on to the gate"
    world.write("evaluate", 2)
    world.write("verdict", 2, outcome="passed")
    world.write("start", 2, plan=[])
    world.write("promote", 2)
    code, said = run("rollback", "m", "--reason", "x")
    assert code == 1 and "nobody knows that it is live" in said, said
    assert world.state.champion == 1, "what is on record stays"
