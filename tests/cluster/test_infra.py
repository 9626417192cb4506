"""What lies in jobs/ and infra/; `sightloom infra check` is run by test_infra_check.py."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from sightloom.cluster.infra import check, crds, files
from sightloom.cluster.jobspec import JobSpec, read_job
from sightloom.cluster.plain import suspicion
from sightloom.cluster.renderers import Placed, render

ROOT = Path(__file__).parent.parent.parent
INFRA = ROOT / "infra"
BASE = INFRA / files.BASE
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
CRDS = ROOT.parent / "shared" / "crds"
TOOLS = ROOT / ".tools" / "infra" / "bin"


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


@cache
def built(overlay: str) -> tuple[dict[str, Any], ...]:
    """An overlay as kustomize makes it."""
    try:
        return tuple(check.built(ROOT, overlay, check._finder(TOOLS)))
    except check.Missing as missing:
        pytest.skip(str(missing))


def problems(resource: dict[str, Any]) -> list[str]:
    if not CRDS.is_dir():
        pytest.skip("KubeRay's schemas are not in ../shared/crds beside this checkout")
    return crds.problems(resource, CRDS)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_is_valid_with_its_config_and_has_words_for_ray(path: Path) -> None:
    spec = read_job(path, root=ROOT)
    body = json.loads(render(spec, "ray-jobs", Placed("gcs://a.zip", ("gcs://b.zip",))))
    assert f" -- python pipelines/{spec.kind}.py " in body["entrypoint"]
    assert (ROOT / "pipelines" / f"{spec.kind}.py").is_file()


def test_there_is_a_job_of_each_kind_of_work() -> None:
    kinds = {JobSpec.model_validate(yaml.safe_load(path.read_text())).kind for path in JOBS}
    assert kinds == {"curate", "train", "evaluate", "release", "serve"}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_jobs_words_are_what_its_verb_understands(path: Path) -> None:
    """The verb's own parser reads them; an option that it does not have would be refused."""
    import typer.main

    from sightloom.cli import cli

    spec = read_job(path, root=ROOT)
    words = spec.argv_list[2:]
    group = typer.main.get_command(cli)
    verb = {"release": "promote"}.get(spec.kind, spec.kind)
    command = group.get_command(None, verb)  # type: ignore[attr-defined]
    assert command.make_context(verb, words, resilient_parsing=False).params


@pytest.mark.parametrize("target", files.MANIFESTS)
def test_the_ray_manifests_are_rendered_from_the_jobs_and_pass_kuberays_schema(target: str) -> None:
    text = files.manifest(ROOT, target)
    assert (INFRA / files.BASE / f"{target}.yaml").read_text() == text
    assert problems(yaml.safe_load(text)) == []
    wrong = yaml.safe_load(text)
    wrong["spec"]["rayCulster"] = {}
    assert any("rayCulster" in words for words in problems(wrong))


@pytest.mark.parametrize("overlay", ["dev", "gpu"])
def test_an_overlay_builds_and_its_ray_resources_still_pass(overlay: str) -> None:
    resources = built(overlay)
    kinds = [one["kind"] for one in resources]
    assert {"RayCluster", "RayJob", "RayCronJob", "RayService", "NetworkPolicy", "PodMonitor", "Deployment"} <= {*kinds}
    assert {one["metadata"].get("namespace", "sightloom") for one in resources} == {"sightloom"}
    for one in resources:
        assert one["kind"] not in crds.FILES or problems(one) == []
    (job,) = [one for one in resources if one["kind"] == "RayJob"]
    worker = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert job["spec"].get("suspend", False) is (overlay == "dev")
    assert ("nvidia.com/gpu" in worker["containers"][0]["resources"]["limits"]) is (overlay == "gpu")


@pytest.mark.parametrize("overlay", ["dev", "gpu"])
def test_every_pod_is_non_root_and_every_claim_and_secret_is_a_reference(overlay: str) -> None:
    resources = built(overlay)
    claims = {one["metadata"]["name"] for one in resources if one["kind"] == "PersistentVolumeClaim"}
    pods = [pod for one in resources for pod in _pods(one)]
    assert len(pods) >= 9
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        for volume in pod.get("volumes", []):
            assert volume.get("persistentVolumeClaim", {"claimName": "data"})["claimName"] in claims
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            for variable in container.get("env", []):
                assert "valueFrom" in variable or suspicion(variable["name"], variable["value"]) is None
    assert not [one for one in resources if one["kind"] == "Secret"]


def test_network_policies_start_from_nothing_and_name_pods_that_exist() -> None:
    policies = documents(BASE / "network.yaml")
    assert policies[0]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    named = {label for one in policies[1:] for label in one["spec"]["podSelector"]["matchLabels"].items()}
    labels = {label for one in documents(BASE / "mlflow.yaml") for label in _labels(one)}
    assert named - {("ray.io/is-ray-node", "yes")} <= labels  # that one is KubeRay's own


def test_rays_autoscaler_accepts_the_cluster_file() -> None:
    validate_config(prepare_config(yaml.safe_load((INFRA / "ray-cluster.yaml").read_text())))


def test_compose_holds_no_secret_and_names_only_what_it_defines() -> None:
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        assert set(service.get("secrets", [])) <= compose["secrets"].keys(), name
        assert set(service.get("depends_on", [])) <= compose["services"].keys(), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (INFRA / source).is_dir() if source.startswith("./") else source in compose["volumes"], name
        for variable, value in service.get("environment", {}).items():
            looks = suspicion(variable, value)
            assert looks is None or str(value).startswith("/run/secrets/"), f"{name}: {variable} {looks}"
    assert all(set(secret) == {"file"} for secret in compose["secrets"].values())


def test_the_image_has_what_the_manifests_start_and_ends_as_nobody_special() -> None:
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000"]
    assert "WORKDIR /opt/sightloom" in lines
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert {"platform", "pipelines"} <= {*copied} and all((ROOT / word).exists() for word in copied)
    extra = re.search(r"\[server\]", "\n".join(lines))
    assert extra and "server = [" in (ROOT / "pyproject.toml").read_text()


def _pods(resource: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod specs anywhere in a resource: under a key `template` or `spec` that holds containers."""
    found = []
    for key, value in resource.items():
        if isinstance(value, dict):
            found += [value] if key == "spec" and "containers" in value else _pods(value)
        elif isinstance(value, list):
            found += [pod for one in value if isinstance(one, dict) for pod in _pods(one)]
    return found


def _labels(resource: dict[str, Any]) -> list[tuple[str, str]]:
    return list(resource["metadata"].get("labels", {}).items())
