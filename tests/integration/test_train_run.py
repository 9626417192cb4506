"""The driver with real Ray Train workers and a real MLflow store: stages, a killed worker, a run with nothing to do."""

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from tests.mlflow_server import Server
from tests.training.conftest import write_shards

from sightloom.config import load
from sightloom.errors import SightloomError, UserMistake
from sightloom.progress import NullProgress
from sightloom.tracking import MlflowTracker, NullTracker
from sightloom.training.curriculum import Curriculum
from sightloom.training.planning import plan
from sightloom.training.stages import train

NANO = Path(__file__).parents[2] / "pipelines" / "curricula" / "nano.yaml"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shards(tmp_path_factory.mktemp("shards"), 150, 40)


def curriculum(manifest: str, *overrides: str, stages: int = 2) -> Curriculum:
    sets = [f"data.manifest={manifest}", "gates=warn", "defaults.evaluate.per_domain=4", "defaults.batch.window=64"]
    sets += ["defaults.evaluate.max_new_tokens=8", "stages.0.steps=6", "stages.1.steps=3", "defaults.batch.packs=2"]
    sets += ["stages.0.batch.max_tokens=400", "stages.1.batch.max_tokens=400", "checkpoint.every_steps=2"]
    whole = load(Curriculum, NANO, [*sets, *overrides])
    return whole.model_copy(update={"stages": whole.stages[:stages]})


class KillsAWorker(MlflowTracker):
    """A tracker of the real store that kills one training worker when the first metrics arrive."""

    killed = 0

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int, model_id: str = "") -> None:
        super().log_metrics(run_id, metrics, step, model_id)
        if not self.killed and "speed/steps_per_s" in metrics:
            self.killed = _our_worker()
            os.kill(self.killed, signal.SIGKILL)


def _our_worker() -> int:
    """A Ray Train worker that descends from this very process: other sessions on the machine are not ours to kill."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            name, pid = (folder / "cmdline").read_text(), int(folder.name)
            while "RayTrainWorker" in name and pid > 1:
                if pid == os.getpid():
                    return int(folder.name)
                pid = int((Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError):
            continue
    raise AssertionError("no Ray Train worker of ours is running")


@pytest.mark.long
@pytest.mark.timeout(900)  # two starts of two workers, each importing torch: 80 s alone, minutes on a busy machine
def test_a_killed_worker_costs_no_stage_and_a_second_run_does_nothing(
    manifest: str, tmp_path: Path, ray_session: None, mlflow_uri: str
) -> None:
    options = curriculum(manifest, "ray.workers=2")
    tracker = KillsAWorker(mlflow_uri, "killed")
    result = train(options, str(tmp_path / "out"), NullProgress(), tracker)
    assert tracker.killed
    assert [stage.steps for stage in result.stages] == [6, 3]
    assert result.stages[0].metrics["eval/all/caption_loss"] < 7.0
    assert 0 <= result.stages[1].metrics["eval/all/accuracy"] <= 1
    client = MlflowClient(mlflow_uri)
    runs = [client.get_run(run_id) for run_id in (result.run_id, *(stage.run_id for stage in result.stages))]
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert {run.data.tags["mlflow.parentRunId"] for run in runs[1:]} == {result.run_id}
    assert "system/node_0/cpu_utilization_percentage" in runs[1].data.metrics
    for key in runs[1].data.metrics:
        steps = [point.step for point in client.get_metric_history(result.stages[0].run_id, key)]
        assert steps == sorted(set(steps)), key
        assert steps[-1] == 6 or key.startswith(("system/", "checkpoint/")), key

    began = time.monotonic()
    again = train(options, str(tmp_path / "out"), NullProgress(), MlflowTracker(mlflow_uri, "killed"))
    assert time.monotonic() - began < 10
    assert again == result


def test_a_changed_rate_runs_its_stage_and_those_behind_it_again_alone(manifest: str, tmp_path: Path) -> None:
    def run(*overrides: str) -> list[str]:
        options = curriculum(manifest, "ray.workers=0", "stages.0.steps=2", "stages.1.steps=2", *overrides)
        return [stage.model_dir for stage in train(options, str(tmp_path), NullProgress(), NullTracker()).stages]

    def planned(*overrides: str) -> list[str]:
        options = curriculum(manifest, "ray.workers=0", "stages.0.steps=2", "stages.1.steps=2", *overrides)
        stages = plan(options, str(tmp_path))
        assert [stage.max_tokens for stage in stages] == [2 * 2 * 400] * 2
        return ["done" if stage.status in ("promoted", "warned") else stage.status for stage in stages]

    assert planned() == ["to do", "to do"] and not list(tmp_path.iterdir())
    first = run()
    assert planned() == ["done", "done"]
    assert planned("stages.1.train.decoder=0.002") == ["done", "to do"]
    assert planned("stages.0.train.decoder=0.002") == ["to do", "to do"]
    changed = run("stages.1.train.decoder=0.002")
    assert changed[0] == first[0] and changed[1] != first[1]
    assert run() == first


def test_a_gate_that_does_not_pass_holds_the_stage_and_keeps_its_model(manifest: str, tmp_path: Path) -> None:
    rule = "stages.0.promote_if=[{metric: eval/all/retrieval_r1, min: 2.0}]"
    options = curriculum(manifest, "ray.workers=0", "stages.0.steps=1", rule, "gates=stop", stages=1)
    with pytest.raises(SightloomError, match=r"is held.*retrieval_r1 .* >= 2") as caught:
        train(options, str(tmp_path), NullProgress(), NullTracker())
    assert caught.value.exit_code == 1
    assert list(tmp_path.glob("align-*/held.json")) and list(tmp_path.glob("align-*/model/model.safetensors"))
    assert not list(tmp_path.glob("align-*/promoted.json"))


def test_what_cannot_be_trained_on_is_a_mistake_in_words(manifest: str, tmp_path: Path) -> None:
    def run(*overrides: str) -> None:
        train(curriculum(manifest, "ray.workers=0", *overrides), str(tmp_path), NullProgress(), NullTracker())

    with pytest.raises(UserMistake, match="nowhere"):
        run("data.manifest=nowhere/manifest.json")
    with pytest.raises(SightloomError, match=r"mix\.captions: nothing to train on is left .it chooses none."):
        run("stages.0.mix.captions.where=width > 4000")


def test_shards_that_are_not_those_of_the_manifest_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    uri = write_shards(tmp_path / "shards", 100, 0)
    tars = sorted((tmp_path / "shards").glob("*.tar"))

    def run(*overrides: str) -> None:
        options = curriculum(uri, "ray.workers=0", "stages.0.steps=1", *overrides, stages=1)
        train(options, str(tmp_path / "out"), NullProgress(), NullTracker())

    whole = tars[0].read_bytes()
    tars[0].unlink()
    with pytest.raises(UserMistake, match=rf"1 of {len(tars)} shards .* cannot be trained on: nothing at .*{tars[0]}"):
        run()
    tars[0].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserMistake, match=r"is cut"):
        run("data.checksums=false")
    data = bytearray(whole)
    data[700] ^= 1
    tars[0].write_bytes(data)
    with pytest.raises(UserMistake, match=r"its SHA-256 differs"):
        run()
    assert [file.name for file in (tmp_path / "out").iterdir() if file.is_dir()] == []


class LosesItsServer(MlflowTracker):
    """A tracker whose server goes away when the first metrics of a stage come, and returns six seconds later."""

    server: Server | None = None

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int, model_id: str = "") -> None:
        if self.server is not None and "speed/steps_per_s" in metrics:
            server, self.server = self.server, None
            server.down()
            self.back = threading.Timer(6, server.up)
            self.back.start()
        super().log_metrics(run_id, metrics, step, model_id)


@pytest.mark.long
@pytest.mark.timeout(400)  # a server starts twice
def test_a_run_whose_mlflow_goes_away_for_a_while_ends_with_all_of_its_diary(
    manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # its own retries: they would only make it slower
    server = Server(tmp_path)
    try:
        tracker = LosesItsServer(server.uri, "away")
        tracker.server = server
        options = curriculum(manifest, "ray.workers=0", "stages.0.steps=40")
        result = train(options, str(tmp_path / "out"), NullProgress(), tracker)
        tracker.back.join()
        client = MlflowClient(server.uri)
        runs = [client.get_run(run_id) for run_id in (result.run_id, *(stage.run_id for stage in result.stages))]
        assert [run.info.status for run in runs] == ["FINISHED"] * 3 and tracker.lost_points == 0
        for run, stage in zip(runs[1:], result.stages, strict=True):
            assert run.data.tags["model_digest"] == stage.digest
            assert set(stage.metrics) <= set(run.data.metrics)
            steps = [point.step for point in client.get_metric_history(stage.run_id, "train/grad_norm")]
            assert steps == sorted(set(steps)) and steps[-1] == stage.steps
    finally:
        server.down()
