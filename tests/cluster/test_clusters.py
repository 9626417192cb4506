from pathlib import Path

import pytest

from sightloom.cluster.client import Job, JobsApi
from sightloom.cluster.clusters import Cluster, find_cluster
from sightloom.errors import SightloomError, UserMistake


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("abc\n")
    path = tmp_path / "clusters.yaml"
    path.write_text(f"""
clusters:
  lab: {{address: "http://lab:8265", token: {{file: {tmp_path}/token}}}}
  cloud: {{address: "https://cloud", token: {{env: CLOUD_TOKEN}}}}
  gone: {{address: "https://gone", token: {{file: {tmp_path}/none}}}}
""")
    return path


def test_a_name_finds_its_address_and_its_token_wherever_that_is(file: Path) -> None:
    assert find_cluster("lab", file, {})[1] == "abc"
    found, token = find_cluster("cloud", file, {"CLOUD_TOKEN": "xyz", "RAY_ADDRESS": "http://elsewhere:8265"})
    assert (found.address, token) == ("https://cloud", "xyz")


def test_a_url_takes_rays_own_token_and_never_rays_own_address(file: Path) -> None:
    environment = {"RAY_AUTH_TOKEN_PATH": str(file.parent / "token"), "RAY_ADDRESS": "http://elsewhere:8265"}
    found, token = find_cluster("http://127.0.0.1:8265", file, environment)
    assert (found.address, token) == ("http://127.0.0.1:8265", "abc")
    assert find_cluster("http://127.0.0.1:8265", file, {})[1] == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lba", "did you mean 'lab'"),
        ("cloud", "CLOUD_TOKEN is not set"),
        ("gone", "cannot be read"),
        ("ray://127.0.0.1:10001", "no address of a dashboard"),
        ("http://ann:pw@host", "no address of a dashboard"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_told(file: Path, name: str, said: str) -> None:
    with pytest.raises(UserMistake, match=said):
        find_cluster(name, file, {})


def test_without_a_clusters_file_the_way_out_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="write clusters:"):
        find_cluster("lab", tmp_path / "none.yaml", {})


def test_an_unreachable_cluster_is_told_in_words() -> None:
    with pytest.raises(UserMistake, match=r"no Ray answers at http://127\.0\.0\.1:1: .*refused"):
        JobsApi(Cluster(address="http://127.0.0.1:1"), "").list()


def job(status: str, error: str = "", exit_code: int | None = None, message: str = "") -> Job:
    return Job("n-00000000-1", status, "x", message, error, exit_code, 0, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "again"),
    [
        (job("SUCCEEDED", exit_code=0), False),
        (job("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", 75), True),
        (job("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", -9), True),
        (job("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", 1), False),
        (job("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", 2), False),
        (job("FAILED", "JOB_SUPERVISOR_ACTOR_DIED"), True),
        (job("FAILED", "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"), True),
        (job("FAILED", "RUNTIME_ENV_SETUP_FAILURE"), False),
    ],
)
def test_only_infrastructure_and_exit_code_75_are_worth_another_attempt(found: Job, again: bool) -> None:
    assert found.may_retry is again


def test_a_reason_is_the_errors_last_line_without_the_stack() -> None:
    message = 'Failed: Traceback\nTraceback (most recent call last):\n  File "a.py", line 3, in f\nOSError: no host\n'
    found = job("FAILED", "RUNTIME_ENV_SETUP_FAILURE", message=message)
    assert found.reason == "its environment could not be set up: OSError: no host"
    message = "Job failed:\nerror: secret X: this node does not set the variable\n       set it where Ray is started\n"
    found = job("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR", 2, message)
    assert found.reason == "exit code 2: error: secret X: this node does not set the variable"


class DyingNode(JobsApi):
    """A cluster whose job's node is going: its log fails, then the job is reported as failed."""

    def __init__(self) -> None:
        self.asked = 0

    def get(self, id: str) -> Job:
        self.asked += 1
        return job("FAILED" if self.asked > 3 else "RUNNING", "JOB_SUPERVISOR_ACTOR_DIED")

    def logs(self, id: str) -> str:
        if self.asked > 1:
            raise SightloomError("answers 500")
        return "begun\n"


def test_a_log_whose_node_is_gone_is_said_once_and_the_job_is_followed_to_its_end() -> None:
    said = "".join(DyingNode().growing("n-00000000-1", 0))
    assert said == "begun\nthe log cannot be read, its node may be gone: answers 500\n"
