"""The parts of a local stack: how each is started, where it answers, and how it says that it is well."""

import contextlib
import functools
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from sightloom.cluster.client import JobsApi
from sightloom.cluster.clusters import Cluster
from sightloom.cluster.infra.alerts import groups
from sightloom.cluster.local.options import HOST, StackOptions
from sightloom.cluster.local.state import MARK, PART
from sightloom.errors import SightloomError

TOKEN_FILE: Final = "ray_token"
MODEL: Final = "sightloom"  # what the ledger knows of other models is served, too
RULES_FILE: Final = "rules.json"
_ASK_S: Final = httpx.Timeout(5, connect=2)
_OBJECT_STORE_BYTES: Final = 1_000_000_000
_SCRAPE_S: Final = 15
_STOP_S: Final = 20  # of a job that is asked to end; in Ray's own 3 s an endpoint cannot let its answers finish


@dataclass(frozen=True, slots=True)
class Part:
    """One program. `ports`: names of what it listens on, the first is where it answers; `tries`: starts, at most."""

    name: str
    command: tuple[str, ...]
    ports: tuple[str, ...]
    probe: Callable[[], str]
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    tries: int = 1


def make_token(folder: Path) -> Path:
    """The token's file, readable by its owner alone; made once, so that a clusters file may name it."""
    file = folder / TOKEN_FILE
    if not file.exists():
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as sink:
            sink.write(secrets.token_urlsafe(32))
    file.chmod(0o600)
    return file


def environment_of(id: str, part: Part, folder: Path, options: StackOptions) -> dict[str, str]:
    """What a part's processes find: the user's own variables, the stores, Ray's token, and the stack's marks."""
    own = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    return own | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{own.get('PATH', '')}",
        "MLFLOW_TRACKING_URI": options.tracking_uri,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / TOKEN_FILE),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": f"{_STOP_S}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "SPT_NOENV": "1",  # Ray's workers rename themselves, which would overwrite the marks
        **part.environment,
        MARK: id,
        PART: part.name,
    }


def parts_of(folder: Path, temp: str, options: StackOptions) -> dict[str, Part]:
    """Every part that can be started here, in the order of their starting."""
    made = [_mlflow(folder, options), _ray(folder, temp, options), _endpoint(options)]
    if shutil.which("prometheus"):
        made.insert(2, _prometheus(folder, temp, options))
    return {part.name: part for part in made}


def _mlflow(folder: Path, options: StackOptions) -> Part:
    words = ["server", "--host", HOST, "--port", str(options.ports.mlflow), "--workers", "1"]
    stores = ["--backend-store-uri", options.backend(folder), "--artifacts-destination", options.destination(folder)]
    return Part(
        "mlflow",
        (sys.executable, "-m", "mlflow", *words, *stores),
        ("mlflow",),
        lambda: _answers(f"{options.tracking_uri}/health"),
        environment={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )


def _ray(folder: Path, temp: str, options: StackOptions) -> Part:
    ports = options.ports
    words = [
        "start", "--head", "--block", f"--node-ip-address={HOST}", f"--port={ports.gcs}",
        f"--dashboard-host={HOST}", f"--dashboard-port={ports.dashboard}",
        f"--dashboard-agent-listen-port={ports.agent}", f"--ray-client-server-port={ports.client}",
        f"--num-cpus={options.num_cpus}", f"--object-store-memory={_OBJECT_STORE_BYTES}", f"--temp-dir={temp}",
        "--disable-usage-stats",
    ]  # fmt: skip

    @functools.cache
    def api() -> JobsApi:
        return JobsApi(Cluster(address=options.dashboard), (folder / TOKEN_FILE).read_text(), _ASK_S)

    def probe() -> str:
        try:
            found = api().totals()
        except (SightloomError, KeyError, TypeError) as error:  # what it reports while it starts is not whole
            return getattr(error, "message", "") or "its dashboard reports no cluster yet"
        return "" if found else "no node has joined yet"

    names = ("dashboard", "gcs", "agent", "client")
    # raylet gives its helpers 15 s, hard-coded (ray#65983): a busy machine needs a second start
    return Part("ray", (sys.executable, "-m", "ray.scripts.scripts", *words), names, probe, tries=3)


def _endpoint(options: StackOptions) -> Part:
    """The release manager and what it serves."""
    words = [
        "serve", f"{MODEL}@champion", "--on", "ray", "--follow", "--ray", options.ray, "--store", options.tracking_uri,
        "--port", f"{options.ports.endpoint}",
        *(word for name, clip in options.clips.items() for word in ("--clip", f"{name}={clip.words}")),
    ]  # fmt: skip
    return Part(
        "endpoint",
        (sys.executable, "-m", "sightloom.cli", *words),
        ("endpoint",),
        lambda: _serves(f"{options.endpoint}/readyz"),
        needs=("mlflow", "ray"),
    )


def _prometheus(folder: Path, temp: str, options: StackOptions) -> Part:
    command = (
        "prometheus", f"--config.file={folder / 'prometheus.json'}", f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address={HOST}:{options.ports.prometheus}",
    )  # fmt: skip
    return Part("prometheus", command, ("prometheus",), lambda: _answers(f"{options.prometheus}/-/ready"))


def write_prometheus(folder: Path, temp: str) -> None:
    """Prometheus' configuration and rules (JSON is YAML): Ray keeps the list of its nodes' exporters in a file."""
    nodes = {"files": [f"{temp}/prom_metrics_service_discovery.json"]}
    config: dict[str, Any] = {
        "global": {"scrape_interval": f"{_SCRAPE_S}s", "evaluation_interval": f"{_SCRAPE_S}s"},
        "rule_files": [RULES_FILE],
        "scrape_configs": [{"job_name": "ray", "file_sd_configs": [nodes]}],
    }
    (folder / "prometheus.json").write_text(json.dumps(config, indent=1))
    (folder / RULES_FILE).write_text(json.dumps(groups(), indent=1))


def _answers(address: str) -> str:
    """Empty where it says 200, else what it said."""
    answer = _ask(address)
    return answer if isinstance(answer, str) else _trouble(answer)


def _serves(address: str) -> str:
    """Empty where every champion answers, or where there is none yet: the first promotion brings it."""
    answer = _ask(address)
    if isinstance(answer, str):
        return answer
    if answer.status_code == 503:
        with contextlib.suppress(ValueError, KeyError):
            if all(its["champion"] is None for its in answer.json()["models"].values()):
                return ""
    return _trouble(answer)


def _trouble(answer: httpx.Response) -> str:
    return "" if answer.status_code == 200 else f"{answer.url} answers {answer.status_code}: {answer.text[:200]}"


@functools.cache
def _client() -> httpx.Client:
    """One for all questions: making it takes 25 ms of a core, and whoever waits for a start asks ten times a second."""
    return httpx.Client(timeout=_ASK_S, trust_env=False)


def _ask(address: str) -> httpx.Response | str:
    try:
        return _client().get(address)
    except httpx.HTTPError as error:
        return f"no answer at {address}: {error or type(error).__name__}"
