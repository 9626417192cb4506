"""A client of Ray's Jobs API (HTTP, at the dashboard's address), whose errors are words."""

import re
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import httpx

from sightloom.cluster.clusters import Cluster
from sightloom.cluster.package import Archive
from sightloom.errors import SightloomError, UserMistake

Status = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"]
ENDED: Final = ("SUCCEEDED", "FAILED", "STOPPED")
TRY_AGAIN: Final = 75  # EX_TEMPFAIL: a program that says so wants to be started again
_KILLED: Final = (-9, -15, 137, 143)
_TIMEOUT: Final = httpx.Timeout(60, connect=10)
_HINTED: Final = 3
# The dashboard asks a node's agent over connections that it keeps; of a node that was away the first ones are broken.
_LOST: Final = re.compile(r"ClientOSError|ServerDisconnectedError|Connection reset by peer")
_PAUSES_S: Final = (0.2, 1.0, 2.0)
_FRAME: Final = re.compile(r'^\s*(File ".*", line \d+|Traceback \(|\^|~|During handling|The above exception)')


@dataclass(frozen=True, slots=True)
class Job:
    """A submitted job. `began`, `ended`: seconds since 1970, 0 where they are not known yet."""

    id: str
    status: Status
    entrypoint: str
    message: str
    error: str
    exit_code: int | None
    began: float
    ended: float
    metadata: dict[str, str] = field(default_factory=dict)
    runtime_env: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.status in ENDED

    @property
    def reason(self) -> str:
        """Why it failed, in a line or two; empty where it did not."""
        return "" if self.status != "FAILED" else _reason(self)

    @property
    def may_retry(self) -> bool:
        """Whether another attempt may end otherwise: infrastructure broke, it was killed, or it asks for one (75)."""
        if self.status != "FAILED":
            return False
        if self.error in ("JOB_ENTRYPOINT_COMMAND_ERROR", ""):
            return self.exit_code is None or self.exit_code == TRY_AGAIN or self.exit_code in _KILLED
        return self.error not in ("RUNTIME_ENV_SETUP_FAILURE", "JOB_ENTRYPOINT_COMMAND_START_ERROR")

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "id": self.id,
            "name": self.metadata.get("sightloom.name", ""),
            "kind": self.metadata.get("sightloom.kind", ""),
            "status": self.status,
            "reason": self.reason,
            "exit_code": self.exit_code,
            "may_retry": self.may_retry,
            "began": self.began,
            "ended": self.ended,
            "entrypoint": self.entrypoint,
        }


class JobsApi:
    """One cluster's Jobs API."""

    def __init__(self, cluster: Cluster, token: str, timeout: httpx.Timeout = _TIMEOUT) -> None:
        self.address = cluster.address.rstrip("/")
        verify = ssl.create_default_context(cafile=cluster.ca) if cluster.ca else True
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._token = bool(token)
        self._http = httpx.Client(
            base_url=self.address, headers=headers, timeout=timeout, verify=verify, trust_env=False
        )

    def submit(self, body: dict[str, Any]) -> bool:
        """Start a job; False where one with its id was there before (Ray answers that with 500).

        Raises:
            SightloomError: the cluster refuses it.
        """
        answer = self._ask("POST", "/api/jobs/", json=body)
        if answer.is_success:
            return True
        if "already exists" in answer.text:
            return False
        raise SightloomError(
            f"{self.address} refuses the job: {_last_words(answer.text)}", "see `sightloom render JOB --to ray-jobs`"
        )

    def get(self, id: str) -> Job:
        """One job.

        Raises:
            UserMistake: the cluster knows none of that id.
        """
        return _job(self._ok(self._ask("GET", f"/api/jobs/{id}"), id).json())

    def list(self) -> list[Job]:
        """All submitted jobs, the oldest first."""
        found = [_job(one) for one in self._ok(self._ask("GET", "/api/jobs/"), "").json() if one.get("submission_id")]
        return sorted(found, key=lambda job: job.began)

    def logs(self, id: str) -> str:
        """What a job's driver has written so far."""
        return str(self._ok(self._ask("GET", f"/api/jobs/{id}/logs"), id).json().get("logs") or "")

    def stop(self, id: str) -> bool:
        """Ask a job to end; False where it has."""
        return bool(self._ok(self._ask("POST", f"/api/jobs/{id}/stop"), id).json().get("stopped"))

    def put(self, archive: Archive) -> bool:
        """Upload a zip file that is not there yet; False where it is."""
        address = f"/api/packages/gcs/{archive.name}"
        if self._ask("GET", address).is_success:
            return False
        self._ok(self._ask("PUT", address, content=archive.data), archive.name)
        return True

    def has(self, uri: str) -> bool:
        """Whether the cluster's own store holds a `gcs://` zip file."""
        return self._ask("GET", f"/api/packages/{uri.replace('://', '/')}").is_success

    def totals(self) -> dict[str, float] | None:
        """What a cluster of fixed size has of each resource; None where an autoscaler may still add to it."""
        found = self._ok(self._ask("GET", "/api/cluster_status"), "").json()["data"].get("clusterStatus") or {}
        if not (found.get("autoscalerReport") or {}).get("legacy"):
            return None
        totals: dict[str, float] = {}
        for resources, count in found["loadMetricsReport"]["nodeTypes"]:
            for name, amount in resources.items():
                totals[name] = totals.get(name, 0) + amount * count
        return totals

    def follow(self, id: str, write: Callable[[str], None], pause_s: float = 0.5) -> Job:
        """Pass a job's log on as it grows, until the job ends."""
        for text in self.growing(id, pause_s):
            if text:
                write(text)
        return self.get(id)

    def growing(self, id: str, pause_s: float) -> Iterator[str]:
        """A job's log as it grows, in parts (empty ones where nothing came), until the job ends.

        A log that cannot be read (it lies on the driver's node, which may be dying) is said once and does not end it.
        """
        seen, told = 0, False
        while True:
            done = self.get(id).done  # asked first: what it wrote last is read after it ended
            try:
                text = self.logs(id)
                yield text[seen:]
                seen = max(seen, len(text))
            except UserMistake:
                raise
            except SightloomError as error:
                yield "" if told else f"the log cannot be read, its node may be gone: {error.message}\n"
                told = True
            if done:
                return
            time.sleep(pause_s)

    def _ask(self, method: str, path: str, **body: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **body)
            for pause_s in _PAUSES_S if method == "GET" else ():
                if answer.status_code != 500 or not _LOST.search(answer.text):
                    break
                time.sleep(pause_s)
                answer = self._http.request(method, path, **body)
        except httpx.HTTPError as error:
            raise UserMistake(
                f"no Ray answers at {self.address}: {error or type(error).__name__}",
                "is it running, and is this its dashboard's address (port 8265)?",
            ) from error
        if answer.status_code in (401, 403):
            told = "does not accept this token" if self._token else "asks for a token"
            raise UserMistake(f"{self.address} {told}", "see the clusters file, or set RAY_AUTH_TOKEN_PATH")
        return answer

    def _ok(self, answer: httpx.Response, what: str) -> httpx.Response:
        if answer.status_code == 404 and not what:
            raise UserMistake(f"what answers at {self.address} is no Ray dashboard", "is this the right port (8265)?")
        if answer.status_code == 404:
            raise UserMistake(f"{self.address} knows no job '{what}'", "sightloom jobs list names them")
        if not answer.is_success:
            raise SightloomError(f"{self.address} answers {answer.status_code}: {_last_words(answer.text)}")
        return answer


def _job(one: dict[str, Any]) -> Job:
    return Job(
        id=one["submission_id"],
        status=one["status"],
        entrypoint=one["entrypoint"],
        message=one.get("message") or "",
        error=one.get("error_type") or "",
        exit_code=one.get("driver_exit_code"),
        began=(one.get("start_time") or 0) / 1000,
        ended=(one.get("end_time") or 0) / 1000,
        metadata=one.get("metadata") or {},
        runtime_env=one.get("runtime_env") or {},
    )


def _reason(job: Job) -> str:
    """The last words of a driver that failed; of a set-up that failed, the error without Ray's stack."""
    if job.error == "RUNTIME_ENV_SETUP_FAILURE":
        return f"its environment could not be set up: {_last_words(job.message)}"
    if job.exit_code is not None:
        return f"exit code {job.exit_code}: {_last_words(job.message)}"
    return _last_words(job.message)


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _FRAME.match(line)]
    told = [line for line in lines[-_HINTED:] if line.startswith("error: ")]  # ours is followed by what to do
    return (told or lines)[-1][:500] if lines else "it gives no reason"
