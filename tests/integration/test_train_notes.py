"""What MLflow knows of a run afterwards, on sqlite and on a server: data, curves, samples with pictures, models."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image
from tests.mlflow_server import Server
from tests.training.conftest import write_shards

from sightloom.config import load
from sightloom.data.shards.manifest import read_manifest
from sightloom.errors import UserMistake
from sightloom.progress import NullProgress
from sightloom.records import CAPTION_PROMPT
from sightloom.registry import Registry
from sightloom.tracking import MlflowTracker
from sightloom.training.curriculum import Curriculum
from sightloom.training.stages import TrainResult, train

NANO = Path(__file__).parents[2] / "pipelines" / "curricula" / "nano.yaml"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shards(tmp_path_factory.mktemp("shards"), 60, 40)


def curriculum(manifest: str) -> Curriculum:
    sets = [f"data.manifest={manifest}", "gates=warn", "ray.workers=0", "data.heldout=0.2", "run.name=noted"]
    sets += ["defaults.evaluate.per_domain=4", "defaults.evaluate.max_new_tokens=6", "defaults.batch.window=64"]
    sets += ["stages.0.steps=null", "stages.0.epochs=0.2", "stages.0.batch.max_tokens=400", "tracking.peak_tflops=0.1"]
    sets += ["stages.0.objective.grad_cache=true", "stages.1.steps=2", "stages.1.batch.max_tokens=400"]
    sets += ["stages.1.register=true", "stages.1.mix.replay.by=domain"]
    sets += ["stages.1.promote_if=[{metric: eval/*/accuracy, not_below: init, margin: 1.0}]"]
    whole = load(Curriculum, NANO, sets)
    return whole.model_copy(update={"stages": whole.stages[:2]})


@pytest.fixture(scope="module", params=["sqlite", pytest.param("server", marks=pytest.mark.long)])
def uri(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(request.getfixturevalue("mlflow_uri"))
        return
    server = Server(tmp_path_factory.mktemp("server"))
    yield server.uri
    server.down()


@pytest.fixture(scope="module")
def done(manifest: str, uri: str, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    out = str(tmp_path_factory.mktemp("out"))
    first = train(curriculum(manifest), out, NullProgress(), MlflowTracker(uri, "noted"), only="align")
    assert [stage.name for stage in first.stages] == ["align"]
    result = train(curriculum(manifest), out, NullProgress(), MlflowTracker(uri, "noted"), only="instruct")
    assert [stage.name for stage in result.stages] == ["align", "instruct"] and result.stages[0] == first.stages[0]
    assert train(curriculum(manifest), out, NullProgress(), MlflowTracker(uri, "noted")) == result
    return result


def inputs(run: Any) -> dict[str, dict[str, str]]:
    return {
        entry.dataset.name: {tag.key: tag.value for tag in entry.tags} | {"digest": entry.dataset.digest}
        for entry in run.inputs.dataset_inputs
    }


def test_a_stage_names_every_source_with_its_rows_weight_and_domains(
    done: TrainResult, uri: str, manifest: str
) -> None:
    noted = inputs(MlflowClient(uri).get_run(done.stages[1].run_id))
    assert set(noted) == {"dialogues", "direct", "replay"}
    assert noted["replay"]["weight"] == "0.25" and int(noted["replay"]["rows"]) > 20
    assert noted["replay"]["domain"].split(",") == sorted(noted["replay"]["domain"].split(","))
    assert noted["replay"]["mlflow.data.context"] == "training"
    assert read_manifest(manifest).digest.startswith(noted["replay"]["digest"])


def test_the_curves_tell_speed_use_and_each_domain(done: TrainResult, uri: str) -> None:
    client = MlflowClient(uri)
    align, instruct = (client.get_run(stage.run_id).data.metrics for stage in done.stages)
    for metrics in (align, instruct):
        assert {"data/wait_share", "data/pack_fill", "speed/tokens_per_s", "speed/images_per_s"} <= set(metrics)
        assert 0 < metrics["speed/mfu"] < 1 and 0 < metrics["data/pack_fill"] <= 1
        assert metrics["speed/mfu"] == pytest.approx(metrics["speed/tflops_per_s"] / 0.1)
        assert metrics["system/node_0/system_memory_usage_megabytes"] > 0
    assert {name for name in align if name.startswith("train/caption_loss/")}
    assert {name for name in instruct if name.startswith("train/loss/")}
    assert align["train/contrastive_loss"] > 0


def test_sample_predictions_lie_with_their_pictures_in_a_table_and_on_a_page(
    done: TrainResult, uri: str, tmp_path: Path
) -> None:
    client = MlflowClient(uri)
    for stage, kind in zip(done.stages, ("caption", "question"), strict=True):
        _check_samples(client, stage.run_id, kind, tmp_path / kind)
    metrics = client.get_run(done.stages[0].run_id).data.metrics
    assert metrics["eval/all/cider"] >= 0 and not [name for name in metrics if name.endswith("/accuracy")]


def _check_samples(client: MlflowClient, run_id: str, kind: str, tmp_path: Path) -> None:
    tmp_path.mkdir()
    (logged,) = json.loads(client.get_run(run_id).data.tags["mlflow.loggedArtifacts"])
    assert logged == {"path": "predictions/predictions.json", "type": "table"}
    table = json.loads(Path(client.download_artifacts(run_id, logged["path"], str(tmp_path))).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert 4 <= len(rows) <= 64 and len({row["domain"] for row in rows[:5]}) == min(5, len({r["domain"] for r in rows}))
    assert all((row["question"] == CAPTION_PROMPT) == (kind == "caption") for row in rows)
    picture = client.download_artifacts(run_id, rows[0]["picture"]["filepath"], str(tmp_path))
    with Image.open(picture) as opened:
        assert opened.width > 16
    page = Path(client.download_artifacts(run_id, "predictions/report.html", str(tmp_path))).read_text()
    assert "data:image" in page


def test_a_promoted_export_is_a_logged_model_and_one_that_is_registered_a_version(done: TrainResult, uri: str) -> None:
    client = MlflowClient(uri)
    align, instruct = done.stages
    (model,) = _models(client, align.run_id)
    assert model.tags["sightloom.digest"] == align.digest and model.name == "noted-align"
    assert {metric.key for metric in model.metrics} >= {"eval/all/caption_loss"}
    assert align.registered is None and instruct.registered == "noted:1"
    version = Registry(uri).resolve("noted:1")
    assert version.digest == instruct.digest and version.tags["sightloom.parent"] == align.digest
    assert Registry(uri).aliases("noted") == {}  # they belong to the release
    (registered,) = _models(client, instruct.run_id)
    assert {metric.key for metric in registered.metrics} >= {"eval/all/accuracy"}


def _models(client: MlflowClient, run_id: str) -> list[Any]:
    experiment = client.get_run(run_id).info.experiment_id
    return list(client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'"))


def test_what_was_trained_on_and_measured_on_is_a_matrix_and_the_gate_a_lower_bound(
    done: TrainResult, uri: str, tmp_path: Path
) -> None:
    (row,) = done.matrix()
    assert row.name == "instruct" and set(row.change) == set(row.accuracy) and len(row.accuracy) > 1
    assert set(row.trained_on) >= set(row.accuracy)
    assert all("against the start, with 95 % at least" in text for text in done.stages[1].gates)
    assert len(done.stages[1].gates) == len(row.accuracy)
    file = MlflowClient(uri).download_artifacts(done.run_id, "trained-on-measured-on.json", str(tmp_path))
    assert json.loads(Path(file).read_text())[0]["name"] == "instruct"


def test_a_stage_that_registers_needs_a_name_that_can_be_registered(manifest: str) -> None:
    with pytest.raises(UserMistake, match="cannot name a registered model"):
        load(Curriculum, NANO, [f"data.manifest={manifest}", "run.name=No.Name", "stages.1.register=true"])
