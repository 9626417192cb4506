"""Acts that lose, and the verbs abort and promote at their edges: what is left in the ledger, and the exit codes."""

from collections.abc import Callable
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from sightloom.cli import cli
from sightloom.cli import release as verbs
from sightloom.evaluation.gate import Decision
from sightloom.promotion import follow
from sightloom.promotion.canary import CanaryPlan
from sightloom.promotion.events import Who
from sightloom.promotion.evidence import Evidence
from sightloom.promotion.fold import accepted
from sightloom.promotion.ledger import LostRace
from sightloom.promotion.release import promote

from .test_follow import Clock, say
from .world import World

ANN = Who("ann", "charts")


@pytest.fixture
def world(make: Callable[[], World]) -> World:
    """Version 1 is champion."""
    return make().promoted()


def passed(world: World) -> Evidence:
    """A verdict on a version under evaluation, as the ledger stands now."""
    nothing: Any = None  # the figures are not looked at any more
    return Evidence(nothing, None, Decision("passed", {}, (), True), "run", "sha", seen=world.state, evaluating=True)


def run(world: World, *words: str) -> tuple[int, str]:
    outcome = CliRunner().invoke(cli, [*words, "--store", world.uri, "--json"])
    return outcome.exit_code, " ".join(outcome.output.split())


def last(world: World) -> tuple[str, int, str]:
    event = accepted(world.ledger.read().lines)[-1].event
    assert event is not None
    return event.kind, event.version, event.reason


def test_another_version_that_is_evaluated_meanwhile_changes_nothing(world: World) -> None:
    world.write("evaluate", 2)
    evidence = passed(world)
    world.write("evaluate", 3)
    world.write("verdict", 3, outcome="passed")
    done = promote(world.registry, world.ledger, world.versions[1], evidence, ANN)
    assert (done.champion, world.state.stages[3]) == (2, "passed")


def test_whoever_loses_takes_its_version_down_again(world: World) -> None:
    world.write("evaluate", 2)
    evidence = passed(world)
    world.on_trial(3, CanaryPlan(steps=()))
    world.write("promote", 3)
    with pytest.raises(LostRace, match=r"lost to event \d+ \(promote 3 by ann"):
        promote(world.registry, world.ledger, world.versions[1], evidence, ANN)
    assert world.state.stages == {1: "previous", 2: "aborted", 3: "champion"}
    assert last(world)[2].startswith("not promoted: lost to event")


def test_whoever_loses_after_its_verdict_does_so_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write("evaluate", 2)
    evidence = passed(world)
    write = world.ledger.append

    def slow(state: Any, kind: str, *rest: Any, **more: Any) -> Any:
        if kind == "start":
            monkeypatch.setattr(world.ledger, "append", write)
            world.on_trial(3)
        return write(state, kind, *rest, **more)

    monkeypatch.setattr(world.ledger, "append", slow)
    with pytest.raises(LostRace, match=r"lost to event"):
        promote(world.registry, world.ledger, world.versions[1], evidence, ANN)
    assert world.state.stages == {1: "champion", 2: "retired", 3: "challenger"}


def test_a_version_that_somebody_else_has_moved_is_left_to_them(world: World) -> None:
    world.write("evaluate", 2)
    evidence = passed(world)
    world.write("verdict", 2, outcome="passed")
    with pytest.raises(LostRace):
        promote(world.registry, world.ledger, world.versions[1], evidence, ANN)
    assert world.state.stages[2] == "passed"


def test_abort_takes_back_what_is_named_and_by_default_the_challenger(world: World) -> None:
    world.write("evaluate", 2)
    world.write("verdict", 2, outcome="passed")
    world.on_trial(3)
    code, said = run(world, "abort", "m:2", "--reason", "not now")
    assert code == 0 and last(world) == ("retire", 2, "not now"), said
    code, said = run(world, "abort", "m", "--reason", "slow")
    assert code == 0 and last(world) == ("abort", 3, "slow"), said
    assert world.state.stages == {1: "champion", 2: "retired", 3: "aborted"}
    for words, why in ((("m",), "no version of m is on trial"), (("m:1",), "m:1 is champion"), (("m:x",), "name:13")):
        code, said = run(world, "abort", *words, "--reason", "x")
        assert code == 2 and why in said, said
    assert "needs a reason" in run(world, "abort", "m:2")[1]


def test_an_override_promotes_a_challenger_at_once(world: World) -> None:
    world.on_trial(2)
    code, said = run(world, "promote", "m:2", "--override")
    assert code == 2 and "needs a reason" in said
    code, said = run(world, "promote", "m:2", "--override", "--reason", "urgent")
    assert code == 0 and world.state.aliases() == {"champion": 2, "previous": 1}, said
    say(world, 0)
    world.on_trial(3)
    code, said = run(world, "promote", "m:3", "--override", "--reason", "urgent")
    assert code == 0 and world.state.champion == 3, "beside a manager, too: " + said


def test_the_exit_codes_of_a_lost_race_and_of_a_canary_that_was_taken_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_gate(*_: Any) -> Evidence:
        world.write("evaluate", 2)
        evidence = passed(world)
        world.on_trial(3)
        return evidence

    monkeypatch.setattr(verbs, "read_exam", lambda *_: None)
    monkeypatch.setattr(verbs, "judge", slow_gate)
    code, said = run(world, "promote", "m:2", "--reason", "x")
    assert code == 4 and "lost to event" in said and world.state.stages[2] == "aborted", said

    say(world, 0)
    clock = Clock({2: lambda: world.write("abort", 3)})
    monkeypatch.setattr(follow, "time", clock)
    code, said = run(world, "promote", "m:3", "--reason", "x")
    assert code == 5 and "m:3 was taken back by ann" in said and world.state.champion == 1, said


def test_a_manager_that_comes_while_the_gate_is_asked_gets_its_canary(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_gate(*_: Any) -> Evidence:
        world.write("evaluate", 2)
        say(world, 0)
        return passed(world)

    monkeypatch.setattr(verbs, "read_exam", lambda *_: None)
    monkeypatch.setattr(verbs, "judge", slow_gate)
    code, said = run(world, "promote", "m:2", "--reason", "x", "--no-wait")
    assert code == 0 and world.state.stages == {1: "champion", 2: "challenger"}, said
    assert len(world.state.trial.plan) == len(CanaryPlan().steps)


def test_a_version_without_a_digest_is_refused_before_anything_is_written(world: World) -> None:
    MlflowClient(tracking_uri=world.uri, registry_uri=world.uri).delete_model_version_tag("m", "2", "sightloom.digest")
    before = world.ledger.read().head
    code, said = run(world, "promote", "m:2", "--reason", "x", "--gate", "gone.yaml")
    assert code == 2 and "carries no tag sightloom.digest" in said and "sightloom register" in said, said
    assert world.ledger.read().head == before
