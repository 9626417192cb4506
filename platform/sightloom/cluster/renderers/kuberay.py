"""A job as KubeRay's resources: RayJob, RayCronJob, RayCluster (ray.io/v1; ../shared/crds)."""

import json
import math
import shlex
from typing import Any, Final

import yaml

from sightloom.cluster.jobspec import JobSpec, WorkerGroup
from sightloom.cluster.renderers.submission import DATA_FOLDER, SECRETS_FOLDER, Placed, metadata, runtime_env
from sightloom.errors import UserMistake

RAY_VERSION: Final = "2.60.0"
FILES_SECRET: Final = "sightloom-files"  # the Kubernetes secret whose keys are the files of `{file}`
_HEAD_GB: Final = 4.0  # GCS, dashboard and a driver that asks for nothing
_PORTS: Final = {"gcs": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}


def rayjob(spec: JobSpec, placed: Placed) -> dict[str, Any]:
    """A RayJob: its own cluster for the time of the job.

    Raises:
        UserMistake: Kubernetes has no word for something that the job asks for.
    """
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": named(spec), "spec": _job(spec, placed)}


def raycronjob(spec: JobSpec, placed: Placed) -> dict[str, Any]:
    """A RayCronJob: a RayJob whenever the schedule says.

    Raises:
        UserMistake: the job has no schedule, or as `rayjob`.
    """
    if spec.schedule is None:
        raise UserMistake(f"job '{spec.name}' has no schedule", "add schedule: {cron: …, time_zone: …}")
    body = {
        "schedule": spec.schedule.cron,
        "timeZone": spec.schedule.time_zone,
        "jobTemplate": _job(spec, placed),
    }
    return {"apiVersion": "ray.io/v1", "kind": "RayCronJob", "metadata": named(spec), "spec": body}


def raycluster(spec: JobSpec, placed: Placed) -> dict[str, Any]:
    """A RayCluster that stays, as large as the job asks for."""
    return {
        "apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": named(spec), "spec": cluster_spec(spec, placed),
    }  # fmt: skip


def named(spec: JobSpec) -> dict[str, Any]:
    """Name and labels."""
    labels = {"app.kubernetes.io/name": "sightloom", "app.kubernetes.io/component": spec.kind}
    return {"name": spec.name, "labels": labels}


class _Plain(yaml.SafeDumper):
    """YAML as a person would write it: no anchors, texts of several lines as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Plain.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def as_yaml(value: Any) -> str:
    """YAML, keys in the order they were made."""
    return yaml.dump(value, Dumper=_Plain, sort_keys=False, width=120)


def _job(spec: JobSpec, placed: Placed) -> dict[str, Any]:
    _check_code(spec, placed)
    driver = spec.resources.driver
    if driver.labels:
        raise UserMistake(
            f"job '{spec.name}': a RayJob cannot choose its driver's node by labels",
            "use resources.driver.resources, or --to ray-jobs",
        )
    over = [({"jobStatus": "SUCCEEDED"}, spec.ttl.success_s), ({"jobStatus": "FAILED"}, spec.ttl.failure_s)]
    if spec.deadline_s is not None:
        over.append(({"jobDeploymentStatus": "Failed"}, spec.ttl.failure_s))
    job: dict[str, Any] = {
        "entrypoint": shlex.join(_entrypoint(spec)),
        "entrypointNumCpus": driver.cpus,
        "entrypointNumGpus": driver.gpus,
        "submissionMode": "SidecarMode",
        "metadata": metadata(spec, placed),
        "backoffLimit": spec.retries.max,
        "preRunningDeadlineSeconds": spec.start_deadline_s,
        "deletionStrategy": {
            "deletionRules": [
                {"policy": "DeleteCluster", "condition": {**when, "ttlSeconds": after}} for when, after in over
            ]
        },
        "rayClusterSpec": cluster_spec(spec, placed),
    }
    if driver.resources:
        job["entrypointResources"] = json.dumps(driver.resources, sort_keys=True)
    if spec.deadline_s is not None:
        job["activeDeadlineSeconds"] = spec.deadline_s
    if environment := runtime_env(spec, placed):
        job["runtimeEnvYAML"] = as_yaml(environment)
    return job


def cluster_spec(spec: JobSpec, placed: Placed) -> dict[str, Any]:
    """The cluster of a job: a head with room for the driver, and the worker groups."""
    driver, groups = spec.resources.driver, spec.resources.workers
    start = {
        "dashboard-host": "0.0.0.0",
        "num-cpus": f"{math.ceil(driver.cpus)}",
    }  # 0.0.0.0: of the pod, behind its policy
    if driver.resources:
        start["resources"] = _ray_resources(driver.resources)
    head = _pod(spec, placed, "ray-head", max(driver.cpus, 1), driver.gpus, driver.memory_gb or _HEAD_GB)
    head["spec"]["containers"][0]["ports"] = [{"name": name, "containerPort": port} for name, port in _PORTS.items()]
    made: dict[str, Any] = {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {"rayStartParams": start, "template": head},
        "workerGroupSpecs": [_group(spec, placed, group) for group in groups],
    }
    if any(group.min < group.max for group in groups):
        made |= {"enableInTreeAutoscaling": True, "autoscalerOptions": {"version": "v2"}}
    return made


def _group(spec: JobSpec, placed: Placed, group: WorkerGroup) -> dict[str, Any]:
    template = _pod(spec, placed, "ray-worker", group.cpus, group.gpus, group.memory_gb)
    template["spec"]["containers"][0]["ports"] = [{"name": "metrics", "containerPort": _PORTS["metrics"]}]
    if group.accelerator:
        template["spec"]["nodeSelector"] = {"sightloom/accelerator": group.accelerator}
    return {
        "groupName": group.group,
        "replicas": group.min,
        "minReplicas": group.min,
        "maxReplicas": group.max,
        "rayStartParams": {"resources": _ray_resources(group.resources)} if group.resources else {},
        "template": template,
    }


def _pod(spec: JobSpec, placed: Placed, name: str, cpus: float, gpus: float, memory_gb: float) -> dict[str, Any]:
    limits: dict[str, Any] = {"cpu": f"{cpus:g}", "memory": f"{memory_gb:g}G"}
    if gpus:
        limits["nvidia.com/gpu"] = f"{gpus:g}"
    container: dict[str, Any] = {
        "name": name,
        "image": placed.image,
        "resources": {"limits": limits, "requests": dict(limits)},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    if keys := [_from_secret(variable, ref.secret, ref.key) for variable, ref in _sorted(spec) if ref.secret]:
        container["env"] = keys
    pod: dict[str, Any] = {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    volumes, mounts = _volumes(spec, placed)
    if volumes:
        pod["volumes"], container["volumeMounts"] = volumes, mounts
    return {"spec": pod}


def _volumes(spec: JobSpec, placed: Placed) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    if files := sorted({_mounted(spec, ref.file) for _, ref in _sorted(spec) if ref.file}):
        items = [{"key": file, "path": file} for file in files]
        volumes.append({"name": "secrets", "secret": {"secretName": FILES_SECRET, "items": items}})
        mounts.append({"name": "secrets", "mountPath": SECRETS_FOLDER, "readOnly": True})
    if placed.claim:
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": placed.claim}})
        mounts.append({"name": "data", "mountPath": DATA_FOLDER})
    return volumes, mounts


def _entrypoint(spec: JobSpec) -> list[str]:
    """The job's words behind its starter in a pod, where secrets' variables and the image's folder are set already."""
    files = [f"{name}={SECRETS_FOLDER}/{ref.file}" for name, ref in _sorted(spec) if ref.file]
    variables = [name for name, ref in _sorted(spec) if ref.secret]
    return ["python", "-m", "sightloom.cluster.start", *variables, *files, "--", *spec.argv_list]


def _check_code(spec: JobSpec, placed: Placed) -> None:
    if spec.code.mode == "package" and not placed.working_dir:
        raise UserMistake(
            f"job '{spec.name}': a manifest needs the code's address",
            "sightloom package JOB --to s3://…, then render with --working-dir and --py-module; or code: {mode: image}",
        )


def _mounted(spec: JobSpec, file: str) -> str:
    if "/" in file or file.startswith("."):
        raise UserMistake(
            f"job '{spec.name}': secret file '{file}' is not a plain name",
            f"on Kubernetes a file is a key of the secret {FILES_SECRET}",
        )
    return file


def _from_secret(variable: str, secret: str, key: str) -> dict[str, Any]:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _sorted(spec: JobSpec) -> list[tuple[str, Any]]:
    return sorted(spec.secrets.items())


def _ray_resources(resources: dict[str, float]) -> str:
    """JSON as `rayStartParams` wants it: quoted once more, for the shell that KubeRay starts Ray with."""
    whole = {name: int(amount) if amount == int(amount) else amount for name, amount in resources.items()}
    return f"'{json.dumps(whole, sort_keys=True)}'"
