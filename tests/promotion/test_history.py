"""`sightloom history`: the proof of what the ledger rests on, whatever was changed under it, and the new anchor."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from sightloom import storage
from sightloom.cli import cli
from sightloom.promotion.ledger import LEDGER
from sightloom.promotion.reconcile import project
from sightloom.tracking import MlflowTracker

from .world import World

EVENT = "sightloom.event"


@pytest.fixture
def world(make: Callable[[], World], tmp_path: Path) -> World:
    """Version 1 became champion on a report that lies beside its run."""
    made = make()
    tracker = MlflowTracker(made.uri, "gates")
    run_id = tracker.start_run("gate m:1")
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate" / "report.html").write_text("<p>better</p>")
    tracker.log_file(run_id, tmp_path / "gate")
    tracker.end_run(run_id)
    proof = {"run_id": run_id, "report_sha256": hashlib.sha256(b"<p>better</p>").hexdigest()}
    made.write("evaluate", 1)
    state = made.ledger.read()
    made.ledger.append(state, "verdict", "m", 1, "ann", "test", {"outcome": "passed"}, proof)
    made.write("promote", 1)
    project(made.ledger.read(), made.registry, "m")
    return made


def run(world: World, *words: str) -> tuple[int, dict[str, Any], str]:
    outcome = CliRunner().invoke(cli, ["history", *words, "--store", world.uri, "--json"])
    return outcome.exit_code, json.loads(outcome.stdout or "{}"), " ".join(outcome.stderr.split())


def client(world: World) -> MlflowClient:
    return MlflowClient(tracking_uri=world.uri, registry_uri=world.uri)


def test_a_ledger_that_holds_is_proved_line_by_line(world: World) -> None:
    code, found, _ = run(world, "--verify")
    assert (code, found["whole"]) == (0, True)
    told = [check["what"] for check in found["checks"]]
    assert told[0].startswith("chain: 3 accepted of 3 entries")
    assert told[1].startswith("event 2: report of run") and told[2:] == ["aliases of m", "files of m:1 (champion)"]


def test_a_report_and_an_alias_that_were_changed_are_named(world: World) -> None:
    run_id = next(line.event.evidence["run_id"] for line in world.ledger.read().lines
                  if line.event is not None and line.event.kind == "verdict")  # fmt: skip
    folder = storage.local_path(client(world).get_run(run_id).info.artifact_uri)
    (folder / "report.html").write_text("<p>much better</p>")
    client(world).set_registered_model_alias("m", "champion", "2")
    code, found, said = run(world, "--verify")
    assert (code, found["whole"]) == (1, False) and "not everything" in said
    troubles = {check["what"].partition(":")[0]: check["trouble"] for check in found["checks"] if check["trouble"]}
    assert troubles == {
        "event 2": "report.html is not the one that the verdict names",
        "aliases of m": "champion 2 instead of 1",
    }


def edit(world: World) -> None:
    text = client(world).get_model_version(LEDGER, "2").tags[EVENT]
    client(world).set_model_version_tag(LEDGER, "2", EVENT, text.replace('"ann"', '"eve"'))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (edit, "event 3 follows"),
        (lambda world: client(world).delete_model_version(LEDGER, "2"), "event 2 is missing"),
        (lambda world: client(world).delete_model_version(LEDGER, "3"), "it was edited or cut"),
    ],
)
def test_an_edit_and_a_deletion_are_found_and_an_anchor_begins_anew(
    world: World, harm: Callable[[World], None], said: str
) -> None:
    harm(world)
    for words in ((), ("--verify",)):
        code, _, error = run(world, *words)
        assert code == 1 and said in error and "sightloom history --reanchor" in error, error
    code, _, error = run(world, "--reanchor")
    assert code == 2 and "an anchor needs a reason" in error
    code, found, error = run(world, "--reanchor", "--reason", "looked at it")
    assert code == 0 and found["event"] == 4, error
    code, found, _ = run(world)
    assert (code, found["events"][-1]["kind"], found["events"][-1]["reason"]) == (0, "anchor", "looked at it")
    code, _, error = run(world, "--reanchor", "--reason", "again")
    assert code == 2 and "the ledger is whole" in error
