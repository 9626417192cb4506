"""The local stack for real, and the whole chain as jobs on it (`make stack-test`)."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import s3fs
from mlflow.tracking import MlflowClient
from tests.integration import services
from tests.integration.stacks import ROOT, Stack, ask, crown

from sightloom import storage
from sightloom.cluster.infra.queries import RAY_METRICS, SERVE_METRICS
from sightloom.cluster.jobspec import read_job
from sightloom.cluster.local import state
from sightloom.cluster.package import pack
from sightloom.data.shards.manifest import read_manifest
from sightloom.demo.corpus import write_corpus
from sightloom.model.scratch import build_folder
from sightloom.progress import NullProgress
from sightloom.promotion.follow import heartbeat
from sightloom.promotion.ledger import Ledger
from sightloom.serving.metric_table import METRICS

READY_S, RUNNING_S, PACKAGE_BYTES = 40, 10, 2_000_000
pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Stack]:
    """A stack on sqlite and a folder."""
    stack = Stack(tmp_path / "stack", {})
    yield stack
    stack.run("down")


def test_a_real_stack_comes_up_twice_says_what_died_and_leaves_nothing(plain: Stack) -> None:
    first = plain.up()
    assert first["well"], first
    print(f"\nup without a champion: {first['seconds']} s (target {READY_S})")
    assert (plain.folder / "ray_token").stat().st_mode & 0o777 == 0o600
    client = MlflowClient(plain.tracking)
    client.create_experiment("kept")
    started = [name for name, part in first["parts"].items() if part["state"] == "running"]
    for name in started:
        with contextlib.suppress(ProcessLookupError):  # the endpoint ends by itself when its Ray is gone
            os.kill(first["parts"][name]["pid"], signal.SIGKILL)
        seen = plain.run("status", "--json", code=1)["parts"]
        assert seen[name]["state"] == "dead" and "is gone" in seen[name]["reason"]
    assert plain.up()["well"]
    assert client.get_experiment_by_name("kept") is not None
    (raylet,) = [one for one in plain.processes() if one.name() == "raylet"]
    raylet.kill()
    until = time.monotonic() + 60
    while (
        plain.run("status", "--json", code=1 if time.monotonic() < until else 0)["parts"]["ray"]["state"] == "running"
    ):
        time.sleep(1)
    temp = state.read_state(plain.folder).temp  # type: ignore[union-attr]
    plain.run("down")
    assert plain.processes() == [] and not Path(temp).exists()
    for port in plain.ports.values():
        assert psutil.net_connections is not None and not _listens(port)


def _listens(port: int) -> bool:
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in psutil.net_connections("tcp"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose MLflow has Postgres and S3 behind it."""
    folder = tmp_path_factory.mktemp("whole")
    with services.postgres() as database, services.object_store() as s3, pytest.MonkeyPatch.context() as patch:
        for name, value in s3.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        for bucket in ("pool", "mlflow"):
            s3fs.S3FileSystem().mkdir(bucket)
        more = {**s3, "PGPASSWORD": services.PASSWORD}
        stack = Stack(folder / "stack", more, "--database", database, "--artifacts", "s3://mlflow")
        try:
            yield stack
        finally:
            stack.run("down")
            s3fs.S3FileSystem.clear_instance_cache()


def _corpus(folder: Path, clip: Path) -> None:
    """A small raw corpus in the bucket; the filter network is a random one."""
    info = write_corpus(folder, 0, 500, 150, 100, NullProgress())
    for file in (Path(info.folder) / "raw").iterdir():
        storage.put_file(file, f"s3://pool/raw/{file.name}")
    assert (clip / "open_clip_config.json").is_file()


def test_the_whole_chain_runs_as_jobs_and_the_endpoint_answers(whole: Stack, tiny_clip: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    _corpus(tmp_path / "corpus", tiny_clip)
    whole.up()
    size = pack(read_job(ROOT / "jobs/curate.yaml", root=ROOT), ROOT).size
    running: dict[str, float] = {}
    train, manifest = tmp_path / "train", "s3://pool/data/shards/demo/manifest.json"

    curate = (
        "set.out=s3://pool/data", "set.source.0.uri=s3://pool/raw/pairs-*.tar",
        "set.source.1.uri=s3://pool/raw/questions-*.parquet", f"set.score.clip.0.model=local-dir:{tiny_clip}",
    )  # fmt: skip
    found, running["curate"] = whole.submit("curate", *curate)
    assert found["status"] == "SUCCEEDED"
    again, _ = whole.submit("curate", *curate)
    assert again["attached"] and again["id"] == found["id"]
    assert read_manifest(manifest).totals.kept > 100

    steps = [f"set.stages.{number}.steps={count}" for number, count in enumerate((4, 4, 4, 1, 2))]
    few = [f"set.stages.{number}.evaluate.per_domain=2" for number in range(5)]
    _, running["train"] = whole.submit(
        "train", f"set.data.manifest={manifest}", f'argv=["--out","{train}"]', "set.gates=warn",
        "set.stages.3.objective.rollout.prompts=2", "set.stages.3.objective.rollout.n=2", *steps, *few,
    )  # fmt: skip
    version = whole.run("register", str(train), "--store", whole.tracking, "--json")["reference"]
    assert version == "sightloom:1"
    model = f"{whole.run('register', str(train), '--store', whole.tracking, '--json')['folder']}"

    words = ["--checkpoint", model, "--manifest", manifest, "--out", "s3://pool/evaluation"]
    few_questions = "set.sources=[{kind: manifest, heldout: 0.1, per_domain: 3, seed: 17}]"
    _, running["evaluate"] = whole.submit("evaluate", f"argv={json.dumps(words)}", few_questions)
    assert storage.exists("s3://pool/evaluation/result.json") and storage.exists("s3://pool/evaluation/report.html")

    words = [version, "--manifest", manifest, "--reason", "the stack's test", "--json"]
    gate = "set.domains={overall: {metric: accuracy, floor: 0.0, margin: 1.0, min_n: 1}}"
    _, running["release"] = whole.submit("release", f"argv={json.dumps(words)}", gate)
    events = whole.run("history", "--store", whole.tracking, "--json")["events"]
    assert [(event["kind"], event["outcome"]) for event in events][-1] == ("promote", "accepted")

    assert ask(whole) == version  # nothing was started for it: the stack's release manager follows the ledger

    second = build_folder("nano", ["what is it? x is it"] * 50, tmp_path / "second", 0)
    reference = whole.run("register", str(second), "--store", whole.tracking, "--json")["reference"]
    _promote(whole, reference, manifest, tmp_path)
    assert reference == "sightloom:2" and ask(whole) == reference
    whole.run("rollback", "--reason", "the stack's test", "--store", whole.tracking, "--json")
    assert ask(whole) == version

    words = ["sightloom@champion", "--on", "ray", "--follow", "--port", str(whole.ports["endpoint"])]
    served, running["serve"] = whole.submit("serve", f"argv={json.dumps(words)}", detach=True)
    _wait_for(lambda: "ran already" in whole.api.logs(served["id"]), whole)
    whole.run("jobs", "stop", served["id"], "--cluster", "local", "--json")
    assert ask(whole) == version  # it had found the stack's endpoint, and left it

    experiments = {one.name for one in MlflowClient(whole.tracking).search_experiments()}
    assert {"curation", "sightloom", "gates"} <= experiments
    _logs_are_kept(MlflowClient(whole.tracking), ("curate-demo", "train-nano", "evaluate-nano", "release-nano"))
    files = s3fs.S3FileSystem().find("mlflow")
    assert any(name.endswith("model.safetensors") for name in files), files[:20]

    _metrics_are_real(whole)
    print(f"\nwhole chain {time.monotonic() - began:.0f} s; package {size / 1e6:.2f} MB (target 2)")
    print(
        f"submit to running (target {RUNNING_S} s): "
        + ", ".join(f"{name} {took:.1f} s" for name, took in running.items())
    )
    assert size <= PACKAGE_BYTES


def _logs_are_kept(client: MlflowClient, jobs: tuple[str, ...]) -> None:
    """Every job that ended has a run of its own name with what its driver wrote."""
    for job in jobs:
        experiment = client.get_experiment_by_name(job)
        assert experiment is not None, job
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.run_name.startswith(f"{job}-") and run.info.status == "FINISHED"
        log = Path(client.download_artifacts(run.info.run_id, "driver.log"))
        assert log.read_text() and "AWS_SECRET" not in log.read_text()


def _promote(stack: Stack, version: str, manifest: str, folder: Path) -> None:
    """Promote at once, whatever a gate of few questions says."""
    few = {"name": "few", "sources": [{"kind": "manifest", "heldout": 0.1, "per_domain": 2, "seed": 17}]}
    rules = {"suites": "few.yaml", "domains": {"overall": {"metric": "accuracy", "floor": 0, "margin": 1, "min_n": 1}}}
    rules["improvement"] = {"require": "none"}
    for name, content in (("few", few), ("gate", rules), ("plan", {"steps": []})):
        (folder / f"{name}.yaml").write_text(json.dumps(content))
    words = ["--gate", str(folder / "gate.yaml"), "--plan", str(folder / "plan.yaml"), "--manifest", manifest]
    stack.run(
        "promote", version, *words, "--override", "--reason", "the stack's test", "--store", stack.tracking, "--json"
    )


def _wait_for(condition: Callable[[], bool], stack: Stack, limit_s: float = 120) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, stack._log()
        time.sleep(0.5)


# Of our own metrics those that need something to go wrong, an engine with a cache, or a canary.
_OF_EVENTS = frozenset(
    {"errors_total", "cancelled_total", "media_rejected_total", "rate_limited_total", "fallback_total", "shadow_total",
     "engine_restarts_total", "engine_kv_used"}
)  # fmt: skip


def _metrics_are_real(stack: Stack) -> None:
    """Every metric that a panel or an alert names, of Ray's, of Serve's and of ours, is one that this run exports."""
    import httpx

    temp = state.read_state(stack.folder).temp  # type: ignore[union-attr]
    (target,) = json.loads((Path(temp) / "prom_metrics_service_discovery.json").read_text())[0]["targets"][:1]
    ours = {
        metric.exported_name + ("_bucket" if metric.kind == "histogram" else "")
        for metric in METRICS.values()
        if metric.name not in _OF_EVENTS
    }
    until, missing = time.monotonic() + 90, {""}
    while missing and time.monotonic() < until:
        seen = {line.split("{")[0] for line in httpx.get(f"http://{target}/metrics", trust_env=False).text.splitlines()}
        missing = {*RAY_METRICS, *SERVE_METRICS, *ours} - seen
        time.sleep(2 if missing else 0)
    assert not missing, missing


@pytest.mark.parametrize("proxy", ["haproxy"])
def test_down_ends_the_endpoints_haproxy_too(proxy: str, tmp_path: Path) -> None:
    import shutil

    if shutil.which(proxy) is None:
        pytest.skip("HAProxy is not installed (apt-get install haproxy)")
    stack = Stack(tmp_path / "stack", {"RAY_SERVE_ENABLE_HA_PROXY": "1"})
    store = f"sqlite:///{tmp_path}/stack/mlflow.db"
    folder = build_folder("nano", ["what is it? x is it"] * 50, tmp_path / "nano", 0)
    version = stack.run("register", str(folder), "--store", store, "--json")["reference"]
    crown(store, version)
    try:
        found = stack.up()
        assert found["parts"]["endpoint"]["state"] == "running" and ask(stack) == version
        print(f"\nup with a champion behind HAProxy: {found['seconds']} s (target {READY_S})")
        assert any(one.name() == "haproxy" for one in stack.processes())
    finally:
        stack.run("down")
    assert stack.processes() == []
    said = heartbeat(Ledger(store))
    assert said is not None and said.gone, "a promotion need not wait for a manager that was ended on purpose"
