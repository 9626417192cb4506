"""Each renderer has a golden file; `python tests/cluster/test_renderers.py` writes them anew: then look at the diff."""

import importlib.metadata
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from sightloom.cli import cli
from sightloom.cluster.infra.crds import problems
from sightloom.cluster.jobspec import JobSpec
from sightloom.cluster.renderers import TARGETS, Placed, render
from sightloom.cluster.renderers.kuberay import RAY_VERSION
from sightloom.config import load
from sightloom.errors import UserMistake
from sightloom.serving.builders import RouterArgs
from sightloom.serving.clip import ClipSettings
from sightloom.serving.engines.settings import ENGINE_SETTINGS, engine_settings

CRDS = Path(__file__).parent.parent.parent.parent / "shared" / "crds"
GOLDEN = Path(__file__).parent / "golden"
PLACED = Placed("s3://bucket/code/_ray_pkg_1.zip", ("s3://bucket/code/_ray_pkg_2.zip",))
ENDINGS = {"ray-jobs": "json", "cli": "sh"}


def golden(target: str) -> Path:
    return GOLDEN / f"{target}.{ENDINGS.get(target, 'yaml')}"


def made(target: str) -> str:
    spec = load(JobSpec, GOLDEN / ("serve.job.yaml" if target == "rayservice" else "train.job.yaml"))
    return render(spec, target, PLACED)


def train(**keys: Any) -> JobSpec:
    data = yaml.safe_load((GOLDEN / "train.job.yaml").read_text())
    return JobSpec.model_validate({**data, **keys})


@pytest.mark.parametrize("target", TARGETS)
def test_a_job_is_rendered_as_its_golden_file(target: str) -> None:
    assert made(target) == golden(target).read_text()


@pytest.mark.parametrize("target", ["rayjob", "raycronjob", "rayservice", "raycluster"])
def test_kuberays_schema_with_unknown_keys_forbidden_accepts_it(target: str) -> None:
    if not CRDS.is_dir():
        pytest.skip("KubeRay's schemas are not in ../shared/crds beside this checkout")
    resource = yaml.safe_load(made(target))
    assert problems(resource, CRDS) == []
    resource["spec"]["entryPoint"] = "x"
    assert "entryPoint" in problems(resource, CRDS)[0]


def test_a_rayjobs_life_is_bounded_and_its_cluster_asks_for_a_token() -> None:
    spec = yaml.safe_load(made("rayjob"))["spec"]
    assert spec["submissionMode"] == "SidecarMode"
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"], spec["preRunningDeadlineSeconds"]) == (2, 86400, 900)
    rules = spec["deletionStrategy"]["deletionRules"]
    assert [(rule["condition"].get("jobStatus"), rule["condition"]["ttlSeconds"]) for rule in rules] == [
        ("SUCCEEDED", 600), ("FAILED", 86400), (None, 86400),
    ]  # fmt: skip
    # KubeRay refuses these beside deletionRules, and a submitter's template in SidecarMode
    assert not {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "submitterPodTemplate"} & spec.keys()


def test_secrets_stay_references_everywhere() -> None:
    pod = yaml.safe_load(made("rayjob"))["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert pod["containers"][0]["env"] == [
        {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "secret"}}}
    ]
    assert pod["volumes"][0]["secret"] == {
        "secretName": "sightloom-files", "items": [{"key": "hf_token", "path": "hf_token"}],
    }  # fmt: skip
    body = json.loads(made("ray-jobs"))
    words = shlex.split(body["entrypoint"])
    assert words[:6] == [
        "python", "-m", "sightloom.cluster.start", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN=/run/secrets/hf_token", "--",
    ]  # fmt: skip
    assert "HF_TOKEN" not in body["runtime_env"]["env_vars"]


def test_serve_reads_the_rayservices_configuration() -> None:
    config = yaml.safe_load(yaml.safe_load(made("rayservice"))["spec"]["serveConfigV2"])
    schema = ServeDeploySchema.model_validate(config)
    assert [app.route_prefix for app in schema.applications] == [None, "/"]
    for app in schema.applications:
        module, _, name = app.import_path.partition(":")
        builder = getattr(importlib.import_module(module), name)
        parsed = builder.__annotations__["args"].model_validate(app.args)
        assert type(builder(parsed)).__name__ == "Application"


def test_the_manifests_name_the_ray_that_is_installed() -> None:
    assert importlib.metadata.version("ray") == RAY_VERSION


@pytest.mark.parametrize(
    ("target", "keys", "placed", "said"),
    [
        ("rayjbo", {}, PLACED, "did you mean 'rayjob'"),
        ("rayjob", {}, Placed(), "needs the code's address"),
        ("cli", {}, Placed("gcs://_ray_pkg_1.zip"), "needs the code's address"),
        ("raycronjob", {"schedule": None}, PLACED, "has no schedule"),
        ("rayservice", {}, PLACED, "is of kind train"),
        ("rayjob", {"resources": {"driver": {"labels": {"zone": "a"}}}}, PLACED, "by labels"),
        ("rayjob", {"secrets": {"A": {"file": "/etc/a"}}}, PLACED, "not a plain name"),
    ],
)
def test_what_a_target_has_no_word_for_is_an_error(
    target: str, keys: dict[str, Any], placed: Placed, said: str
) -> None:
    with pytest.raises(UserMistake, match=said):
        render(train(**keys), target, placed)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["models/nano", "--on", "ray", "--keys", "k"], "no absolute folder"),
        (["/models/nano", "--on", "ray"], "no key file"),
        (["/models/nano", "--on", "process", "--keys", "k"], "process"),
        (["/models/nano", "--on", "ray", "--store", "s"], "--store"),
        (["/models/nano", "--on", "ray", "--follow", "--keys", "k"], "does not follow the ledger"),
        (["/models/nano", "--on", "ray", "--keys", "k", "--engine", "tgi"], "--engine tgi is not known"),
        (["/models/nano", "--on", "ray", "--keys", "k", "--engine-gpus", "1"], "belong to vLLM"),
        (["/models/nano", "--on", "ray", "--keys", "k", "--clip", "b=local-dir:models/b"], "is no absolute folder"),
    ],
)
def test_a_rayservice_takes_only_what_it_can_do(argv: list[str], said: str) -> None:
    with pytest.raises(UserMistake, match=said):
        render(JobSpec(name="s", kind="serve", argv=tuple(argv)), "rayservice", PLACED)


KEYED = ("/models/nano", "--on", "ray", "--keys", "/run/secrets/keys.json")


def test_a_rayservices_engine_is_the_one_that_the_verb_would_serve_with() -> None:
    workers = [{"group": "engine", "min": 1, "max": 1, "cpus": 4, "gpus": 2, "accelerator": "H100"}]
    words = ("--engine", "vllm", "--engine-gpus", "2", "--engine-arg", "tensor-parallel-size=2", "--dtype", "bfloat16")
    spec = JobSpec.model_validate(
        {"name": "s", "kind": "serve", "argv": [*KEYED, *words], "resources": {"workers": workers}}
    )
    config = yaml.safe_load(yaml.safe_load(render(spec, "rayservice", PLACED))["spec"]["serveConfigV2"])
    told = ENGINE_SETTINGS.validate_python(config["applications"][0]["args"]["engine"])
    asked = engine_settings("vllm", None, None, ["tensor-parallel-size=2"], 2, "bfloat16", "cpu")
    assert told == asked and ServeDeploySchema.model_validate(config)
    with pytest.raises(UserMistake, match="reserves 2 GPUs, and no node of its workers has more than 0"):
        render(JobSpec(name="s", kind="serve", argv=(*KEYED, *words)), "rayservice", PLACED)


def test_a_rayservice_has_the_open_clip_models_of_the_verb() -> None:
    words = ("--clip", "tiny=local-dir:/models/tiny", "--clip", "b=ViT-B-32,openai")
    spec = JobSpec(name="s", kind="serve", argv=(*KEYED, *words))
    config = yaml.safe_load(yaml.safe_load(render(spec, "rayservice", PLACED))["spec"]["serveConfigV2"])
    apps = {app.name: app for app in ServeDeploySchema.model_validate(config).applications}
    assert apps.keys() == {"sightloom-v1", "clip-tiny", "clip-b", "router"}
    assert RouterArgs.model_validate(apps["router"].args).clips == ("b", "tiny")
    assert ClipSettings.model_validate(apps["clip-b"].args) == ClipSettings(model="ViT-B-32", pretrained="openai")
    assert apps["clip-b"].import_path == "sightloom.serving.builders:clip_app"


def test_the_verb_prints_the_manifest_as_it_is_however_narrow_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN.parent.parent.parent)
    monkeypatch.setenv("COLUMNS", "40")
    words = ["render", "jobs/train.yaml", "--to", "rayjob", "--set", "code.mode=image"]
    shown = CliRunner().invoke(cli, words)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == json.loads(CliRunner().invoke(cli, [*words, "--json"]).stdout)["text"]
    assert yaml.safe_load(shown.stdout)["kind"] == "RayJob"


if __name__ == "__main__":
    for each in TARGETS:
        golden(each).write_text(made(each))
