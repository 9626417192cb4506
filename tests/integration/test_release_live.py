"""A release beside live traffic, with MLflow as a server: the gate asks the endpoint, and the store goes away."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml
from click.testing import Result
from mlflow.tracking import MlflowClient
from tests.mlflow_server import Server
from typer.testing import CliRunner

from sightloom.cli import cli
from sightloom.promotion import asking
from sightloom.promotion.fold import accepted

from .releasing import MODEL, QUICK, Stage, ask, cluster, load, stage

pytestmark = [pytest.mark.long, pytest.mark.timeout(580)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.down()


@pytest.fixture(scope="module")
def running(store: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("release")
    with cluster() as dashboard, stage(store.uri, folder, dashboard, 3) as there:
        yield there


def promote(there: Stage, folder: Path, version: int, floor: float) -> Result:
    """The verb, with a gate of a dozen questions and a quick canary."""
    lines = [{"id": str(i), "question": f"{i}?", "answer": "x", "domain": "art"} for i in range(12)]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    suite: dict[str, Any] = {"name": "s", "sources": [{"kind": "jsonl", "path": str(folder / "q.jsonl")}]}
    suite["perf"] = {"requests": 10, "clients": [2], "max_new_tokens": 4, "warm_up": 1}
    (folder / "s.yaml").write_text(yaml.safe_dump(suite))
    rules = {
        "suites": "s.yaml", "decoding": {"max_new_tokens": 8}, "improvement": {"require": "none"},
        "statistics": {"resamples": 200},
        "domains": {"art": {"metric": "accuracy", "floor": floor, "margin": 1.0, "min_n": 10}},
        "perf": [{"metric": "ttft_p95_s", "clients": 2, "ceiling": 60, "min_n": 10}],
    }  # fmt: skip
    (folder / "g.yaml").write_text(yaml.safe_dump(rules))
    (folder / "p.yaml").write_text(yaml.safe_dump(QUICK.model_dump(mode="json")))
    words = ["promote", f"{MODEL}:{version}", "--gate", str(folder / "g.yaml"), "--plan", str(folder / "p.yaml")]
    return CliRunner().invoke(cli, [*words, "--store", there.uri, "--reason", "better", "--json"])


def kinds(there: Stage) -> list[str]:
    return [line.event.kind for line in accepted(there.ledger.read().lines) if line.event is not None]


def test_the_gate_asks_the_version_behind_the_endpoint(
    running: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(folder: str) -> None:
        raise AssertionError(f"{folder} was loaded by the command line")

    monkeypatch.setattr(asking, "load", nobody)
    with load(running.address, 4) as seen:
        done = promote(running, tmp_path, 2, floor=0.0)
    assert done.exit_code == 0, done.output
    assert seen.failed == []
    assert kinds(running)[-6:] == ["evaluate", "verdict", "start", "step", "step", "promote"]
    client = MlflowClient(tracking_uri=running.uri, registry_uri=running.uri)
    run_id = next(line.event.evidence["run_id"] for line in accepted(running.ledger.read().lines)[::-1]
                  if line.event is not None and line.event.kind == "verdict")  # fmt: skip
    assert client.get_run(run_id).data.tags["sightloom.asked"] == f"{running.address}, by version"
    assert {file.path for file in client.list_artifacts(run_id)} >= {"report.html", "rows.jsonl"}


def test_a_version_that_fails_the_gate_goes_down_again(running: Stage, tmp_path: Path) -> None:
    done = promote(running, tmp_path, 3, floor=1.0)
    assert done.exit_code == 3, done.output
    assert running.ledger.read().model(MODEL).stages[3] == "rejected"
    end = time.monotonic() + 120
    while f"{MODEL}-v3" in running.serve.read().apps:
        assert time.monotonic() < end, running.status()
        time.sleep(0.5)
    with httpx.Client(base_url=running.address, trust_env=False, timeout=60) as client:
        assert ask(client, "x").headers["x-sightloom-model"] == f"{MODEL}:2"


def test_while_mlflow_is_away_the_champion_serves_and_even_comes_back(
    running: Stage, store: Server, tmp_path: Path
) -> None:
    with load(running.address, 4) as seen:
        store.down()
        end = time.monotonic() + 90
        while "MLflow" not in running.status()["error"]:
            assert time.monotonic() < end, running.status()
            time.sleep(0.5)
        began = time.monotonic()
        done = promote(running, tmp_path, 3, floor=0.0)
        assert done.exit_code == 1 and "MLflow" in done.stderr, done.output
        assert "Traceback" not in done.stderr and time.monotonic() - began < 90
    assert seen.failed == [] and seen.total > 20

    (victim,) = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)
                 if actor["namespace"] == "serve" and f"{MODEL}-v2#" in actor["name"]]  # fmt: skip
    ray.kill(ray.get_actor(victim, namespace="serve"), no_restart=True)
    with httpx.Client(base_url=running.address, trust_env=False, timeout=180) as client:
        reply = ask(client, "x")
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-sightloom-model"] == f"{MODEL}:2", "its files were in the node's cache"

    store.up()  # the heartbeat in it is old: the verb waits for the next one, and no canary is left out
    with load(running.address, 4) as seen:
        done = promote(running, tmp_path, 3, floor=0.0)
    assert done.exit_code == 0, done.output
    assert seen.failed == [] and running.ledger.read().model(MODEL).champion == 3
    assert kinds(running)[-6:] == ["evaluate", "verdict", "start", "step", "step", "promote"]
