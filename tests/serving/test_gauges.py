"""Gauges of what is under way, of engines and of routes; replicas as Serve's controller counts them."""

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
    ReplicaState,
    ServeStatus,
)

from sightloom.serving.engines.base import EngineLoad
from sightloom.serving.gauges import Busy, EngineGauges, RouteGauges
from sightloom.serving.meters import LocalMeters, RayMeters
from sightloom.serving.replicas import count
from sightloom.serving.routes import Live, ModelRoutes, Routes, Shadow


def read(meters: LocalMeters) -> dict[tuple[str, ...], float]:
    """Name and the labels' values, in the order of the labels' names, to the value."""
    return {
        (sample.name.removeprefix("sightloom_"), *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(meters.text().decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_a_request_waits_until_its_first_token_and_leaves_once() -> None:
    meters = LocalMeters()
    busy = Busy(meters)
    busy.enter(("m", "1"))
    busy.enter(("m", "1"))
    busy.first(("m", "1"))
    assert read(meters) == {("inflight", "m", "1"): 2, ("queue_depth", "m", "1"): 1}
    busy.leave(("m", "1"), waited=False)
    busy.leave(("m", "1"), waited=True)
    assert read(meters) == {("inflight", "m", "1"): 0, ("queue_depth", "m", "1"): 0}


def test_an_engine_tells_its_load_and_each_restart_once() -> None:
    meters = LocalMeters()
    gauges = EngineGauges(meters, "m", "1")
    gauges.started({"engine": 2.5, "warmup": 0.5}, 0.75)
    for restarts in ({}, {"died": 1}, {"died": 1, "stalled": 1}, {"died": 1, "stalled": 1}):
        gauges.tell(EngineLoad(True, 3, 2, 0.25, restarts))
    gauges.tell(EngineLoad(False, 0, 0, None, {"died": 2, "stalled": 1}))
    assert read(meters) == {
        ("startup_seconds", "m", "engine", "1"): 2.5, ("startup_seconds", "m", "warmup", "1"): 0.5,
        ("probe_match", "m", "1"): 0.75, ("engine_up", "m", "1"): 0, ("engine_running", "m", "1"): 0,
        ("engine_waiting", "m", "1"): 0, ("engine_kv_used", "m", "1"): 0.25,
        ("engine_restarts_total", "m", "died", "1"): 2, ("engine_restarts_total", "m", "stalled", "1"): 1,
    }  # fmt: skip


def test_a_version_that_has_left_the_routes_weighs_nothing() -> None:
    meters = LocalMeters()
    gauges = RouteGauges(meters)
    one, two = Live(version="1", app="a", bp=9000), Live(version="2", app="b", bp=1000)
    gauges.tell(Routes(models={"m": ModelRoutes(live=(one, two))}))
    gauges.tell(Routes(models={"m": ModelRoutes(live=(one,), shadow=(Shadow(version="2", app="b", share=0.2),))}))
    assert read(meters) == {
        ("route_weight", "m", "champion", "1"): 9000, ("route_weight", "m", "challenger", "2"): 0,
        ("route_weight", "m", "shadow", "2"): 2000,
    }  # fmt: skip


def test_replicas_that_start_or_stop_are_not_counted() -> None:
    states = {ReplicaState.RUNNING: 2, ReplicaState.STARTING: 1, ReplicaState.STOPPING: 3}
    deployment = DeploymentStatusOverview(
        DeploymentStatus.UPDATING, DeploymentStatusTrigger.CONFIG_UPDATE_STARTED, states, ""
    )
    app = ApplicationStatusOverview(ApplicationStatus.RUNNING, "", 0.0, {"engine": deployment})
    assert count(ServeStatus(applications={"m-v1": app})) == {"m-v1": 2}


def test_gauges_are_said_again_because_ray_forgets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[float, dict[str, str]]] = []

    class Gauge:
        def set(self, value: float, labels: dict[str, str]) -> None:
            said.append((value, labels))

    meters = RayMeters(again_s=0.05)
    monkeypatch.setattr(meters, "_metric", lambda _: Gauge())
    meters.set("build_info", 1, version="0.1")
    meters.set("build_info", 2, version="0.1")
    until = time.monotonic() + 5
    while len(said) < 4 and time.monotonic() < until:
        time.sleep(0.02)
    assert said[:2] == [(1, {"version": "0.1"}), (2, {"version": "0.1"})]
    assert said[2:4] == [(2, {"version": "0.1"})] * 2, "the last value, again and again"
