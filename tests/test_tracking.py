"""MLflow on a real sqlite file."""

import math
import threading
import time
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from tests.mlflow_server import Server

from sightloom.errors import SightloomError, UserMistake
from sightloom.tracking import MlflowTracker, NullTracker, Tracker, open_tracker


@pytest.fixture
def tracker(mlflow_uri: str) -> MlflowTracker:
    return MlflowTracker(mlflow_uri, "tracking-tests")


def client(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def test_a_nested_run_keeps_params_metrics_tags_files_and_inputs(tracker: MlflowTracker, tmp_path: Path) -> None:
    parent = tracker.start_run("curriculum", params={"seed": "7"})
    child = tracker.start_run("align", parent=parent, tags={"stage": "align"}, params={"lr": "0.001"})
    for step in range(3):
        tracker.log_metrics(child, {"train/loss": 3.0 - step, "grad_norm": 1.0}, step)
    (tmp_path / "plan.json").write_text("{}")
    tracker.log_file(child, tmp_path / "plan.json", "config")
    tracker.log_input(child, "shards", "ab" * 32, "training")
    tracker.end_run(child)
    tracker.end_run(parent, "KILLED")

    store = client(tracker.uri)
    run = store.get_run(child)
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.params == {"lr": "0.001"}
    assert [point.value for point in store.get_metric_history(child, "train/loss")] == [3.0, 2.0, 1.0]
    assert [file.path for file in store.list_artifacts(child, "config")] == ["config/plan.json"]
    assert run.inputs.dataset_inputs[0].dataset.digest == ("ab" * 32)[:36]
    assert (run.info.status, store.get_run(parent).info.status) == ("FINISHED", "KILLED")


def test_a_resumed_run_writes_no_step_twice(tracker: MlflowTracker) -> None:
    run = tracker.start_run("resume")
    tracker.log_metrics(run, {"loss": 2.0}, 1)
    tracker.log_metrics(run, {"loss": 1.0}, 2)
    tracker.end_run(run, "FAILED")
    again = MlflowTracker(tracker.uri, "tracking-tests")
    again.resume_run(run)
    for step in (1, 2, 3):
        again.log_metrics(run, {"loss": 0.5}, step)
    again.end_run(run)
    history = client(tracker.uri).get_metric_history(run, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0), (3, 0.5)]
    assert again.repeated_points == 2
    assert client(tracker.uri).get_run(run).info.status == "FINISHED"


def test_a_models_metrics_are_the_runs_too_once(tracker: MlflowTracker) -> None:
    run = tracker.start_run("model")
    store = client(tracker.uri)
    model = store.create_logged_model(store.get_run(run).info.experiment_id, "measured", run)
    tracker.log_metrics(run, {"eval/ui/accuracy": 0.5}, 40, model.model_id)
    tracker.end_run(run)
    assert [(point.step, point.value) for point in store.get_metric_history(run, "eval/ui/accuracy")] == [(40, 0.5)]
    kept = store.get_logged_model(model.model_id).metrics
    assert [(metric.key, metric.value, metric.step) for metric in kept or ()] == [("eval/ui/accuracy", 0.5, 40)]


def test_the_same_parameter_again_is_fine_and_another_value_is_an_error(tracker: MlflowTracker) -> None:
    run = tracker.start_run("params", params={"lr": "1"})
    tracker.log_params(run, {"lr": "1", **{f"key.{n}": "v" for n in range(150)}, "long": "x" * 7000})
    with pytest.raises(SightloomError, match="refused by MLflow"):
        tracker.log_params(run, {"lr": "2"})
    kept = client(tracker.uri).get_run(run).data.params
    assert len(kept) == 152
    assert kept["long"].startswith("sha256:")


def test_metrics_survive_an_outage_and_arrive_later(tracker: MlflowTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tracker.start_run("outage")

    def away(*args: object, **kwargs: object) -> None:
        raise MlflowException("connection refused")

    with monkeypatch.context() as outage:
        outage.setattr(tracker._client, "log_batch", away)
        for step in range(1200):
            tracker.log_metrics(run, {"loss": float(step)}, step)
        tracker.flush()
    tracker.end_run(run)
    assert len(client(tracker.uri).get_metric_history(run, "loss")) == 1200


def test_a_value_that_is_not_a_number_is_kept_as_such(tracker: MlflowTracker) -> None:
    run = tracker.start_run("nan")
    tracker.log_metrics(run, {"loss": math.nan}, 0)
    tracker.end_run(run)
    assert math.isnan(client(tracker.uri).get_metric_history(run, "loss")[0].value)


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "mlruns", "sqlite://", "postgres://x"])
def test_an_address_that_is_no_store_is_the_users_mistake(uri: str) -> None:
    with pytest.raises(UserMistake, match="is no MLflow address"):
        MlflowTracker(uri, "x")


def test_an_unknown_run_cannot_be_resumed(tracker: MlflowTracker) -> None:
    with pytest.raises(UserMistake, match="is not in"):
        tracker.resume_run("0" * 32)


def test_without_an_address_nothing_is_kept() -> None:
    tracker: Tracker = open_tracker(None, "x")
    assert isinstance(tracker, NullTracker)
    first, second = tracker.start_run("a"), tracker.start_run("b", parent="p")
    assert first != second
    tracker.log_metrics(first, {"loss": 1.0}, 0)
    tracker.end_run(first)


@pytest.mark.long
@pytest.mark.timeout(400)  # a server starts twice
def test_a_server_that_goes_away_for_a_while_misses_nothing_and_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # its own retries: they would only make it slower
    server = Server(tmp_path)
    try:
        tracker = MlflowTracker(server.uri, "outage")
        parent = tracker.start_run("curriculum")
        run = tracker.start_run("align", parent=parent)
        for step in range(0, 100):
            tracker.log_metrics(run, {"loss": float(step)}, step)
        tracker.flush()
        server.down()

        began = time.monotonic()
        (tmp_path / "plan.json").write_text("{}")
        tracker.set_tags(run, {"while": "away"})
        tracker.log_file(run, tmp_path / "plan.json", "config")
        (tmp_path / "plan.json").unlink()
        tracker.log_input(run, "shards", "ab" * 32, "training")
        for step in range(100, 2000):
            tracker.log_metrics(run, {"loss": float(step)}, step)
        assert time.monotonic() - began < 10
        back = threading.Timer(3, server.up)
        back.start()
        tracker.end_run(run)
        second = tracker.start_run("instruct", parent=parent)
        tracker.end_run(second)
        tracker.end_run(parent)
        back.join()

        store = client(server.uri)
        kept = store.get_run(run)
        assert (kept.info.status, kept.data.tags["while"]) == ("FINISHED", "away")
        assert [file.path for file in store.list_artifacts(run, "config")] == ["config/plan.json"]
        assert len(kept.inputs.dataset_inputs) == 1
        assert [point.step for point in store.get_metric_history(run, "loss")] == list(range(2000))
        assert tracker.lost_points == 0
    finally:
        server.down()
