"""Jobs on a real Ray head with its job server and token authentication."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.conftest import RECIPE
from tests.integration.services import free_ports, object_store
from typer.testing import CliRunner

from sightloom.cli import cli
from sightloom.cluster.client import JobsApi
from sightloom.cluster.clusters import Cluster
from sightloom.cluster.jobspec import JobSpec
from sightloom.cluster.submit import retry, run, submit
from sightloom.errors import SightloomError, UserMistake
from sightloom.progress import NullProgress

ROOT = Path(__file__).parent.parent.parent
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
TOKEN = "a-token-of-the-tests-0123456789"
WORK = """
import os, pathlib, sys, time
import sightloom
what, *rest = sys.argv[1:]
print(what, "secret of", len(os.environ.get("KEY", "")), "from", sightloom.__file__, flush=True)
if what == "chatty":
    print("the key is", os.environ["KEY"], flush=True)
if what == "moody" and not pathlib.Path(rest[0]).exists():
    pathlib.Path(rest[0]).touch()
    sys.exit(75)
if what == "wrong":
    sys.exit("no such column 'clip'")
if what == "long":
    time.sleep(600)
"""


@dataclass
class Head:
    api: JobsApi
    address: str
    token: Path
    checkout: Path
    folder: Path
    s3: dict[str, str]

    def spec(self, name: str, *words: str, **keys: Any) -> JobSpec:
        data = {"name": name, "kind": "command", "argv": ["python", "pipelines/work.py", *words], **keys}
        return JobSpec.model_validate(data)

    def run(self, spec: JobSpec) -> tuple[Any, str]:
        said: list[str] = []
        found = run(self.api, spec, self.checkout, NullProgress(), said.append, 0.1)
        return found, "".join(said)


def _processes(folder: str) -> list[int]:
    """Processes that name this Ray's own folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += [int(path.parent.name)] if folder.encode() in path.read_bytes() else []
    return found


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    with object_store() as reached_by:
        yield reached_by


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, s3: dict[str, str]) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("jobs")
    checkout = folder / "checkout"
    (checkout / "pipelines/recipes").mkdir(parents=True)
    (checkout / "pipelines/work.py").write_text(WORK)
    (checkout / "pipelines/recipes/tiny.yaml").write_text(RECIPE)
    shutil.copytree(ROOT / "platform" / "sightloom", checkout / "platform" / "sightloom")
    subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)
    subprocess.run(["git", "add", "."], cwd=checkout, check=True)
    token = folder / "token"
    token.write_text(TOKEN)
    (folder / "key").write_text("12345\n")
    port, dashboard, agent, client = free_ports(4)
    temp = tempfile.mkdtemp(prefix="slj-")
    words = [
        "start", "--head", "--block", f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", "--num-cpus=2",
        "--object-store-memory=100000000", f"--temp-dir={temp}", "--disable-usage-stats",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        **s3, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
        "PATH": PATH,
    }  # fmt: skip
    with open(folder / "head.log", "w") as log:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "ray", *words],
            cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    api = JobsApi(Cluster(address=address), TOKEN)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                if api.totals():
                    break
            except (SightloomError, KeyError):  # it is starting
                assert time.monotonic() < until and process.poll() is None, (folder / "head.log").read_text()
            time.sleep(0.2)
        yield Head(api, address, token, checkout, folder, s3)
    finally:
        # `ray stop` would end every Ray of the machine, and an orderly end takes half a minute
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
        for left in _processes(temp):  # Ray's workers are groups of their own, and notice late
            with contextlib.suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)


def test_a_job_runs_with_its_code_and_secret_and_a_second_submission_attaches(head: Head) -> None:
    spec = head.spec("hello", "hello", secrets={"KEY": {"file": str(head.folder / "key")}})
    found, said = head.run(spec)
    assert (found.job.status, found.attached) == ("SUCCEEDED", False), said
    assert "hello secret of 5 from" in said and str(ROOT) not in said
    assert 0 < found.uploaded < 2_000_000
    again = submit(head.api, spec, head.checkout, NullProgress())
    assert (again.attached, again.uploaded, again.job.id) == (True, 0, found.job.id)
    assert "12345" not in json.dumps([job.to_json() | job.runtime_env for job in head.api.list()])
    environment = {"SIGHTLOOM_CLUSTER": head.address, "RAY_AUTH_TOKEN_PATH": str(head.token)}
    shown = CliRunner().invoke(cli, ["jobs", "logs", found.job.id, "-f"], env=environment)
    assert shown.exit_code == 0 and "hello secret of 5 from" in shown.stdout


@pytest.mark.long
def test_a_secret_that_the_program_prints_does_not_reach_the_log(head: Head) -> None:
    found, said = head.run(head.spec("chatty", "chatty", secrets={"KEY": {"file": str(head.folder / "key")}}))
    assert found.job.status == "SUCCEEDED" and "the key is [secret]" in said
    assert "12345" not in head.api.logs(found.job.id)


@pytest.mark.long
def test_exit_code_75_is_tried_again_and_the_next_attempt_succeeds(head: Head) -> None:
    found, said = head.run(head.spec("moody", "moody", str(head.folder / "seen"), retries={"max": 1, "backoff_s": 0}))
    assert found.job.status == "SUCCEEDED" and found.job.id.endswith("-2"), said
    assert "attempt 1 failed" in said


@pytest.mark.long
def test_a_job_that_fails_by_itself_is_not_tried_again_and_says_why(head: Head) -> None:
    found, _ = head.run(head.spec("wrong", "wrong", retries={"max": 3, "backoff_s": 0}))
    assert found.job.id.endswith("-1")
    assert found.job.reason == "exit code 1: no such column 'clip'"
    with pytest.raises(UserMistake, match="would end the same"):
        retry(head.api, found.job.id, head.checkout, NullProgress())


@pytest.mark.long
def test_a_missing_secret_is_named_by_the_job(head: Head) -> None:
    found, _ = head.run(head.spec("bare", "hello", secrets={"KEY": {"file": "/nowhere/key"}}))
    assert found.job.exit_code == 2
    assert (
        found.job.reason
        == "exit code 2: error: secret KEY: this node has no file '/nowhere/key' (No such file or directory)"
    )


def test_a_job_that_dies_in_set_up_shows_its_reason_and_not_rays_stack(head: Head) -> None:
    code = {"mode": "uri", "working_dir": f"{head.address}/no-such.zip".replace("http:", "https:")}
    found, _ = head.run(head.spec("dead", "hello", code=code))
    assert found.job.status == "FAILED"
    assert "its environment could not be set up" in found.job.reason
    assert "Traceback" not in found.job.reason and "\n" not in found.job.reason


@pytest.mark.long
def test_a_running_job_is_stopped_and_may_be_started_again(head: Head) -> None:
    begun = submit(head.api, head.spec("long", "long"), head.checkout, NullProgress())
    environment = {"SIGHTLOOM_CLUSTER": head.address, "RAY_AUTH_TOKEN_PATH": str(head.token)}
    shown = CliRunner().invoke(cli, ["jobs", "stop", begun.job.id, "--json"], env=environment)
    assert json.loads(shown.stdout)["status"] == "STOPPED"
    listed = CliRunner().invoke(cli, ["jobs", "list", "--json"], env=environment)
    assert begun.job.id in [job["id"] for job in json.loads(listed.stdout)["jobs"]]
    again = retry(head.api, begun.job.id, head.checkout, NullProgress())
    assert again.job.id == begun.job.id[:-1] + "2" and not again.attached
    head.api.stop(again.job.id)


@pytest.mark.long
def test_rays_own_command_runs_a_rendered_script_with_the_code_in_s3(head: Head) -> None:
    job = head.checkout / "jobs" / "hello.yaml"
    job.parent.mkdir(exist_ok=True)
    job.write_text("name: hello\nkind: command\nargv: [python, pipelines/work.py, by-script]\n")
    env = {
        **os.environ, **head.s3, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.token),
        "RAY_API_SERVER_ADDRESS": head.address, "PATH": PATH,
    }  # fmt: skip

    def said(*words: str) -> str:
        done = subprocess.run(words, cwd=head.checkout, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    sightloom = (sys.executable, "-m", "sightloom.cli")
    said(sys.executable, "-c", "import s3fs; s3fs.S3FileSystem().mkdir('code')")
    code = json.loads(said(*sightloom, "package", "jobs/hello.yaml", "--to", "s3://code", "--json"))
    places = ["--working-dir", code["working_dir"], "--py-module", code["py_modules"][0]]
    script = head.folder / "hello.sh"
    script.write_text(said(*sightloom, "render", "jobs/hello.yaml", "--to", "cli", *places))
    said("sh", str(script))
    (job_id,) = [one.id for one in head.api.list() if "by-script" in one.entrypoint]
    wrote: list[str] = []
    assert head.api.follow(job_id, wrote.append, 0.1).status == "SUCCEEDED", wrote
    assert "by-script secret of 0 from" in "".join(wrote) and str(ROOT) not in "".join(wrote)


@pytest.mark.parametrize(("token", "said"), [("", "asks for a token"), ("another-token-0123456789", "not accept")])
def test_a_wrong_token_is_told(head: Head, token: str, said: str) -> None:
    with pytest.raises(UserMistake, match=said):
        JobsApi(Cluster(address=head.address), token).list()


def test_a_job_that_is_too_large_for_the_cluster_is_refused_before_the_upload(head: Head) -> None:
    spec = head.spec("large", "hello", resources={"workers": [{"group": "g", "min": 4, "max": 4, "gpus": 1}]})
    with pytest.raises(UserMistake, match=r"asks for 5 CPU, .* has 2"):
        submit(head.api, spec, head.checkout, NullProgress())
