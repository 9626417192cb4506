"""Canary, promotion, rollback and failures on a real Ray Serve that a real manager steers, under load."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import ray
from mlflow.tracking import MlflowClient

from sightloom import runtime
from sightloom.errors import UserMistake
from sightloom.promotion.canary import CanaryPlan, CanaryStep, SloRules
from sightloom.promotion.endpoint import follow_ledger
from sightloom.promotion.fold import accepted
from sightloom.promotion.manager import find_manager, start_manager
from sightloom.registry import Registry
from sightloom.serving.clip import ClipSettings

from .releasing import MODEL, QUICK, Stage, ask, cluster, load, mute_folder, slow_folder, stage

pytestmark = [pytest.mark.long, pytest.mark.timeout(580)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Iterator[Stage]:
    folder, clips = tmp_path_factory.mktemp("rollout"), {"tiny": ClipSettings(model=f"local-dir:{tiny_clip}")}
    with cluster() as dashboard, stage(f"sqlite:///{folder}/mlflow.db", folder, dashboard, 4, clips) as there:
        yield there


def kinds(there: Stage) -> list[str]:
    return [line.event.kind for line in accepted(there.ledger.read().lines) if line.event is not None]


def test_a_canary_becomes_champion_and_a_rollback_takes_it_back_and_no_request_fails(running: Stage) -> None:
    with load(running.address, 6) as seen:
        running.begin(2)
        running.until("champion", 2)
        running.until_answered_by(2)
        running.write("rollback", 1)
        running.until_answered_by(1)
    assert seen.failed == []
    ways = {route for _, route in seen.answered}
    assert {"champion", "challenger"} <= ways
    assert seen.answered[f"{MODEL}:2", "challenger"] >= 10
    assert seen.answered[f"{MODEL}:2", "champion"] > 0
    assert kinds(running)[-6:] == ["verdict", "start", "step", "step", "promote", "rollback"]
    assert Registry(running.uri).aliases(MODEL) == {"champion": 1}


def test_a_session_stays_with_its_version_and_pins_and_headers_say_which(running: Stage) -> None:
    running.begin(3, QUICK.model_copy(update={"auto": False}))
    running.until("challenger", 3)
    with httpx.Client(base_url=running.address, trust_env=False, timeout=60) as client:
        end = time.monotonic() + 90
        while not any(ask(client, f"s{n}").headers["x-sightloom-route"] == "challenger" for n in range(40)):
            assert time.monotonic() < end, running.status()
        first = {n: ask(client, f"s{n}").headers["x-sightloom-model"] for n in range(20)}
        body = {"model": f"{MODEL}@challenger", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        pinned = client.post("/v1/chat/completions", json=body)
        assert (pinned.headers["x-sightloom-model"], pinned.headers["x-sightloom-route"]) == (f"{MODEL}:3", "pin")
        again = {n: ask(client, f"s{n}").headers["x-sightloom-model"] for n in range(20)}
    moved = [n for n in first if first[n] == f"{MODEL}:3" and again[n] != f"{MODEL}:3"]
    assert moved == [], "raising the share only adds sessions"


def test_a_manager_and_a_replica_that_are_killed_change_nothing_for_clients(running: Stage) -> None:
    state = running.ledger.read().model(MODEL)
    assert state.challenger == 3
    with load(running.address, 4) as seen:
        os.kill(running.status()["pid"], signal.SIGKILL)
        victims = [
            actor
            for actor in ray.util.list_named_actors(all_namespaces=True)
            if actor["namespace"] == "serve" and f"{MODEL}-v3#" in actor["name"]
        ]
        assert victims, ray.util.list_named_actors(all_namespaces=True)
        ray.kill(ray.get_actor(victims[0]["name"], namespace="serve"), no_restart=True)
        running.write("promote", 3, override=True)
        running.until_answered_by(3)
        assert running.status()["error"] == ""
    # A stream that had begun in the killed replica ends with an error event; nothing else may fail.
    assert [trouble for trouble in seen.failed if "stream with an error" not in trouble] == []
    assert len(seen.failed) <= 4
    assert seen.answered[f"{MODEL}:3", "champion"] > 0


def test_an_alias_moved_in_mlflow_is_recorded_once_and_put_back(running: Stage) -> None:
    client = MlflowClient(tracking_uri=running.uri, registry_uri=running.uri)
    end = time.monotonic() + 60
    while Registry(running.uri).aliases(MODEL) != {"champion": 3, "previous": 1}:
        assert time.monotonic() < end
        time.sleep(0.2)
    time.sleep(2)
    before = kinds(running).count("drift")
    client.set_registered_model_alias(MODEL, "champion", "2")
    ray.get(running.manager.poke.remote())
    while Registry(running.uri).aliases(MODEL)["champion"] != 3:
        assert time.monotonic() < end, running.status()
        time.sleep(0.2)
    time.sleep(2)
    assert kinds(running).count("drift") == before + 1
    with httpx.Client(base_url=running.address, trust_env=False, timeout=60) as http:
        assert ask(http, "x").headers["x-sightloom-model"] == f"{MODEL}:3"


def test_a_version_whose_file_was_changed_is_taken_back_and_the_file_is_named(running: Stage) -> None:
    folder = Registry(running.uri).materialize(running.versions[3], Path("/nowhere"))
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    running.begin(4)
    running.until("aborted", 4, 180)
    event = accepted(running.ledger.read().lines)[-1].event
    assert event is not None
    assert event.actor == "release-manager"
    assert "model.safetensors" in event.reason
    with httpx.Client(base_url=running.address, trust_env=False, timeout=60) as http:
        assert ask(http, "x").headers["x-sightloom-model"] == f"{MODEL}:3"


def test_one_manager_a_cluster_and_old_versions_leave(running: Stage) -> None:
    assert start_manager(running.config)._actor_id == running.manager._actor_id
    assert find_manager() is not None
    assert runtime.dashboard() == running.config.dashboard and runtime.code_of_this_job() == {}
    there = follow_ledger(running.config.model_copy(update={"runtime_env": {"env_vars": {"OF": "another job"}}}))
    assert (there.address, there.champions, there.started) == (running.address, {MODEL: "3"}, False)
    with pytest.raises(UserMistake, match=r"started with another cpus 0\.1, not 3"):
        follow_ledger(running.config.model_copy(update={"cpus": 3.0}))
    end = time.monotonic() + 90
    while True:
        apps = set(running.serve.read().apps)
        if apps == {"router", "clip-tiny", f"{MODEL}-v3", f"{MODEL}-v1"}:
            break
        assert time.monotonic() < end, apps
        time.sleep(0.5)


def test_an_open_clip_model_answers_beside_the_versions(running: Stage) -> None:
    with httpx.Client(base_url=running.address, trust_env=False, timeout=60) as client:
        end = time.monotonic() + 120
        while (reply := client.post("/v1/embeddings", json={"model": "tiny", "input": ["x", "y"]})).status_code == 503:
            assert time.monotonic() < end, reply.text
            time.sleep(1)
        assert [len(one["embedding"]) > 0 for one in reply.json()["data"]] == [True, True], reply.text
        assert client.post("/v1/embeddings", json={"model": "other", "input": "x"}).status_code == 404


def test_a_shadow_is_asked_and_counted_and_live_answers_stay_as_they_are(running: Stage) -> None:
    champion = f"{MODEL}:{running.ledger.read().model(MODEL).champion}"
    step = CanaryStep(shadow=1.0, min_requests=10, min_minutes=0)
    with httpx.Client(base_url=running.address, trust_env=False, timeout=60) as client:
        before = ask(client, "alone").json()["choices"]
        running.begin(2, CanaryPlan(steps=(step,), auto=False))
        end = time.monotonic() + 120
        while not (trial := running.ledger.read().model(MODEL).trial).done:
            assert trial.plan and time.monotonic() < end, running.status()
            during = ask(client, "alone")
            seen = during.headers["x-sightloom-model"], during.headers["x-sightloom-route"]
            assert (seen, during.json()["choices"]) == ((champion, "champion"), before)
    event = accepted(running.ledger.read().lines)[-1].event
    assert event is not None and event.kind == "step"
    shadowed = re.match(r"(\d+) requests, 0 errors", event.evidence["challenger"])
    assert shadowed and int(shadowed[1]) >= 10 and "agree" in event.evidence["challenger"], event.evidence
    counted = 0.0
    while counted < 10:  # the routers' counters reach the node's exporter every few seconds
        assert time.monotonic() < end + 60, running.status()
        time.sleep(1)
        counted = shadows_of(2)
    running.write("abort", 2)


def shadows_of(version: int) -> float:
    """How many requests were shadowed to a version and answered, as the node's exporter says it."""
    page = httpx.get(f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics", trust_env=False).text
    lines = [line for line in page.splitlines() if line.startswith("ray_sightloom_shadow_total{")]
    ours = [line for line in lines if f'version="{version}"' in line and re.search('outcome="(agrees|differs)"', line)]
    return sum(float(line.rpartition(" ")[2]) for line in ours)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (slow_folder, r"p95 of (TTFT|TPOT) is [\d.]+ times the champion's"),
        (mute_folder, r"empty: (\d+) of \1 requests, the champion's \d+ of"),
    ],
    ids=["slow", "mute"],
)
def test_a_challenger_that_is_worse_under_traffic_is_taken_back_by_itself(
    running: Stage, tmp_path: Path, make: Callable[[Path], Path], said: str
) -> None:
    champion, version = running.ledger.read().model(MODEL).champion, running.register(make(tmp_path))
    rules = SloRules(min_latency_samples=20, max_latency_ratio=2)
    step = CanaryStep(bp=5000, min_requests=25, min_minutes=0)
    with load(running.address, 1) as seen:  # one after the other: no answer waits for another version's
        running.begin(version, CanaryPlan(steps=(step,), rules=rules))
        running.until("aborted", version)
        running.until_answered_by(champion or 0)
    event = accepted(running.ledger.read().lines)[-1].event
    assert event is not None and (event.kind, event.actor) == ("abort", "release-manager")
    assert re.match(said, event.reason), event.reason
    assert re.match(r"\d+ requests, 0 errors", event.evidence["challenger"]), event.evidence
    assert seen.failed == [] and seen.answered[f"{MODEL}:{version}", "challenger"] >= 25
    assert running.ledger.read().model(MODEL).champion == champion
