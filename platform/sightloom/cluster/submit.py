"""Submitting: pack, upload what is missing, start or attach; again where another attempt may end otherwise."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightloom.cluster.client import Job, JobsApi
from sightloom.cluster.jobspec import JobSpec
from sightloom.cluster.package import Package, pack
from sightloom.cluster.renderers.submission import Placed, submission
from sightloom.config import validate
from sightloom.errors import SightloomError, UserMistake
from sightloom.progress import Progress


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that runs. `attached`: it had been submitted before; `uploaded`: bytes of code that were sent."""

    job: Job
    attached: bool
    uploaded: int

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {**self.job.to_json(), "attached": self.attached, "uploaded": self.uploaded}


def submit(api: JobsApi, spec: JobSpec, root: Path, progress: Progress, attempt: int = 1) -> Submitted:
    """Start a job, or attach to the one that is the same in spec and code.

    Args:
        api: the cluster.
        spec: a job that `read_job` has checked.
        root: the checkout that is packed.
        progress: the display.
        attempt: 1 for the first.

    Raises:
        UserMistake: the cluster cannot be reached, does not accept the token or is too small, or the package is too
            large.
        SightloomError: the cluster refuses the job.
    """
    if (totals := api.totals()) is not None:
        check_room(spec, totals, api.address)
    package = None
    if spec.code.mode == "package":
        with progress.step("pack"):
            package = pack(spec, root)
    placed = place(spec, package)
    uploaded = 0
    with progress.step("upload"):
        for archive in package.archives if package else ():
            uploaded += len(archive.data) if api.put(archive) else 0
    body = submission(spec, placed, attempt)
    with progress.step("submit"):
        fresh = api.submit(body)
    return Submitted(api.get(body["submission_id"]), not fresh, uploaded)


def check_room(spec: JobSpec, totals: Mapping[str, float], address: str) -> None:
    """See that a cluster of fixed size has what the driver and the smallest worker groups ask for.

    Raises:
        UserMistake: it has too little of something.
    """
    driver, asked = spec.resources.driver, Counter[str]()
    asked.update({"CPU": driver.cpus, "GPU": driver.gpus, **driver.resources})
    for group in spec.resources.workers:
        each = {"CPU": group.cpus, "GPU": group.gpus, **group.resources}
        asked.update({name: amount * group.min for name, amount in each.items()})
    for name, amount in asked.items():
        if amount > totals.get(name, 0):
            raise UserMistake(
                f"job '{spec.name}' asks for {amount:g} {name}, {address} has {totals.get(name, 0):g}",
                "see resources in the job's file, or choose another cluster",
            )


def place(spec: JobSpec, package: Package | None, image: str = "") -> Placed:
    """Where a job's code lies: in the cluster's store, at the job's own addresses, or in the image."""
    more = {"image": image} if image else {}
    if package is not None:
        return Placed(package.code.uri, (package.module.uri,), **more)
    return Placed(spec.code.working_dir, spec.code.py_modules, **more)


def retry(api: JobsApi, id: str, root: Path, progress: Progress) -> Submitted:
    """Start the next attempt of a job that failed for a reason which may have passed; it goes on where it was.

    Raises:
        UserMistake: it is not a job of ours, has not failed so, or the code here is another by now.
    """
    job = api.get(id)
    spec, attempt = _spec(job), _attempt(id)
    if job.status == "STOPPED":
        pass  # a person stopped it: a person may start it again
    elif not job.may_retry:
        why = f"'{id}' is {job.status}" + (f" ({job.reason})" if job.reason else "")
        raise UserMistake(
            f"{why}: another attempt would end the same", "mend its cause and submit it again: the id will be another"
        )
    package = pack(spec, root) if spec.code.mode == "package" else None
    again = submission(spec, place(spec, package), attempt + 1)
    if package is not None and again["metadata"]["sightloom.digest"] != job.metadata.get("sightloom.digest"):
        raise UserMistake(f"the code here is not what '{id}' ran", "check that version out, or submit it as a new job")
    return submit(api, spec, root, progress, attempt + 1)


def run(
    api: JobsApi,
    spec: JobSpec,
    root: Path,
    progress: Progress,
    write: Callable[[str], None],
    pause_s: float = 0.5,
) -> Submitted:
    """Submit and follow to the end, with the job's own retries and deadlines.

    Raises:
        SightloomError: a deadline passed (the job is stopped), or as `submit`.
    """
    attempt = 1
    while True:
        found = submit(api, spec, root, progress, attempt)
        ended = _until_end(api, spec, found.job, write, pause_s)
        if not ended.may_retry or attempt > spec.retries.max:
            return Submitted(ended, found.attached, found.uploaded)
        write(f"attempt {attempt} failed: {ended.reason}; the next one in {spec.retries.backoff_s:g} s\n")
        time.sleep(spec.retries.backoff_s)
        attempt += 1


def _until_end(api: JobsApi, spec: JobSpec, job: Job, write: Callable[[str], None], pause_s: float) -> Job:
    asked = time.monotonic()
    running = asked if job.status == "RUNNING" else None
    for text in api.growing(job.id, pause_s):
        now = time.monotonic()
        if running is None and (text or api.get(job.id).status != "PENDING"):
            running = now
        if running is None and now - asked > spec.start_deadline_s:
            _give_up(api, job.id, f"did not start within {spec.start_deadline_s} s")
        if running is not None and spec.deadline_s is not None and now - running > spec.deadline_s:
            _give_up(api, job.id, f"ran longer than {spec.deadline_s} s")
        if text:
            write(text)
    return api.get(job.id)


def _give_up(api: JobsApi, id: str, why: str) -> None:
    api.stop(id)
    raise SightloomError(f"'{id}' {why}, and was stopped", f"sightloom jobs logs {id}")


def _spec(job: Job) -> JobSpec:
    text = job.metadata.get("sightloom.spec")
    if text is None:
        raise UserMistake(f"'{job.id}' was not submitted by sightloom", "start it again by what started it")
    return validate(JobSpec, json.loads(text), f"the job '{job.id}'")


def _attempt(id: str) -> int:
    found = re.fullmatch(r".*-[0-9a-f]{8}-(\d+)", id)
    return int(found.group(1)) if found else 1
