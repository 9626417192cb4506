"""A job as Ray's Jobs API takes it, and the same as a shell script."""

import json
import shlex
from dataclasses import dataclass
from typing import Any, Final

from sightloom.cluster.jobspec import JobSpec
from sightloom.config import digest
from sightloom.errors import UserMistake

SECRETS_FOLDER: Final = "/run/secrets"
IMAGE_FOLDER: Final = "/opt/sightloom"  # the Dockerfile's WORKDIR: pipelines/ lies in it
DATA_FOLDER: Final = "/data"
IMAGE: Final = "sightloom:0.1.0"
_GB: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the code lies (an empty `working_dir`: in the image).

    For Kubernetes also the image, and the claim that all pods find at /data (empty: none).
    """

    working_dir: str = ""
    py_modules: tuple[str, ...] = ()
    image: str = IMAGE
    claim: str = ""


def submission(spec: JobSpec, placed: Placed, attempt: int) -> dict[str, Any]:
    """The body of `POST /api/jobs/`.

    The id says what it is: `{name}-{digest8}-{attempt}`, the digest over spec and code, so that submitting the same
    thing twice meets the first.
    """
    driver = spec.resources.driver
    body: dict[str, Any] = {
        "submission_id": f"{spec.name}-{job_digest(spec, placed)[:8]}-{attempt}",
        "entrypoint": shlex.join(entrypoint(spec, placed)),
        "entrypoint_num_cpus": driver.cpus,
        "entrypoint_num_gpus": driver.gpus,
        "runtime_env": runtime_env(spec, placed),
        "metadata": metadata(spec, placed),
    }
    if driver.memory_gb is not None:
        body["entrypoint_memory"] = int(driver.memory_gb * _GB)
    if driver.resources:
        body["entrypoint_resources"] = driver.resources
    if driver.labels:
        body["entrypoint_label_selector"] = driver.labels
    return body


def job_digest(spec: JobSpec, placed: Placed) -> str:
    """64 hex digits over all that decides what a job does."""
    return digest({"spec": spec, "working_dir": placed.working_dir, "py_modules": placed.py_modules})


def entrypoint(spec: JobSpec, placed: Placed) -> list[str]:
    """The job's words behind its starter, on somebody else's Ray: secrets are the node's files and variables."""
    needs = [f"{name}={_file(ref.file)}" if ref.file else name for name, ref in sorted(spec.secrets.items())]
    folder = [] if placed.working_dir else ["--in", IMAGE_FOLDER]
    return ["python", "-m", "sightloom.cluster.start", *needs, *folder, "--", *spec.argv_list]


def runtime_env(spec: JobSpec, placed: Placed) -> dict[str, Any]:
    """Ray's runtime environment: the code's addresses and the plain variables."""
    env: dict[str, Any] = {"env_vars": dict(spec.env)} if spec.env else {}
    if placed.working_dir:
        env |= {"working_dir": placed.working_dir, "py_modules": list(placed.py_modules)}
    return env


def metadata(spec: JobSpec, placed: Placed) -> dict[str, str]:
    """What stands beside the job in Ray's list: who it is, and the spec for a later retry (no secret is in it)."""
    return {
        "sightloom.name": spec.name,
        "sightloom.kind": spec.kind,
        "sightloom.digest": job_digest(spec, placed),
        "sightloom.spec": json.dumps(spec.model_dump(mode="json", exclude_defaults=True), sort_keys=True),
        "mlflow.experiment": spec.mlflow.experiment or spec.name,
        **{f"mlflow.tag.{name}": value for name, value in sorted(spec.mlflow.tags.items())},
    }


def script(spec: JobSpec, placed: Placed) -> str:
    """A shell script with Ray's own command.

    Raises:
        UserMistake: code of mode package without an address that Ray's command can take.
    """
    if spec.code.mode == "package" and not placed.working_dir.startswith(("s3://", "gs://", "https://")):
        raise UserMistake(
            f"job '{spec.name}': a script needs the code's address",
            "sightloom package JOB --to s3://…, or code: {mode: image}",
        )
    body = submission(spec, placed, 1)
    options = [
        ("--submission-id", body["submission_id"]),
        ("--entrypoint-num-cpus", f"{body['entrypoint_num_cpus']:g}"),
        ("--entrypoint-num-gpus", f"{body['entrypoint_num_gpus']:g}"),
        ("--entrypoint-memory", str(body.get("entrypoint_memory", ""))),
        ("--entrypoint-resources", _json(body.get("entrypoint_resources"))),
        ("--entrypoint-label-selector", _json(body.get("entrypoint_label_selector"))),
        ("--runtime-env-json", _json(body["runtime_env"])),
        ("--metadata-json", _json(body["metadata"])),
    ]
    lines = ["exec ray job submit --no-wait", *(f"{flag} {shlex.quote(value)}" for flag, value in options if value)]
    told = "RAY_API_SERVER_ADDRESS names the cluster, RAY_AUTH_TOKEN_PATH its token's file"
    return f"#!/bin/sh\n# {spec.name}; {told}\n" + " \\\n  ".join([*lines, f"-- {body['entrypoint']}\n"])


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True) if value else ""


def _file(name: str) -> str:
    return name if name.startswith("/") else f"{SECRETS_FOLDER}/{name}"
