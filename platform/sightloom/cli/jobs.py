"""`sightloom submit`, `render`, `package` and `jobs`: the same job here, on a Ray cluster, on Kubernetes."""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sightloom.cli import console
from sightloom.cli.console import LOCAL
from sightloom.cli.stack import FOLDER
from sightloom.cluster import submit as jobs
from sightloom.cluster.client import Job, JobsApi
from sightloom.cluster.clusters import find_cluster
from sightloom.cluster.jobspec import JobSpec, read_job
from sightloom.cluster.local.stack import local_cluster
from sightloom.cluster.package import pack, publish
from sightloom.cluster.renderers import TARGETS, Placed, render
from sightloom.errors import SightloomError, UserMistake
from sightloom.progress import terminal_progress

JobFile = Annotated[str, typer.Argument(help="A job, such as jobs/curate.yaml.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the job, e.g. set.run.seed=7.")
]
To = Annotated[
    str,
    typer.Option(
        "--cluster", envvar="SIGHTLOOM_CLUSTER", help="A name of the clusters file, http://HOST:8265, or `local`."
    ),
]
File = Annotated[
    Path, typer.Option("--clusters", envvar="SIGHTLOOM_CLUSTERS", help="The clusters file.", show_default=True)
]
Id = Annotated[str, typer.Argument(help="A job's id, as `submit` prints it.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
CLUSTERS = Path("~/.config/sightloom/clusters.yaml")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("submit")(submit_verb)
    app.command("render")(render_verb)
    app.command("package")(package_verb)
    group = typer.Typer(no_args_is_help=True, help="List, show, follow, stop and retry submitted jobs.")
    group.command("list")(list_verb)
    group.command("show")(show_verb)
    group.command("logs")(logs_verb)
    group.command("stop")(stop_verb)
    group.command("retry")(retry_verb)
    app.add_typer(group, name="jobs")


def submit_verb(
    job: JobFile,
    cluster: To,
    overrides: Overrides = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait: no retries, no deadline.")] = False,
    clusters: File = CLUSTERS,
    as_json: AsJson = False,
) -> None:
    """Check a job, pack its code, start it on a cluster and follow it; the same job again attaches to the first.

    sightloom submit jobs/curate.yaml --cluster http://127.0.0.1:8265
    """
    spec = read_job(job, overrides)
    if detach and (spec.retries.max or spec.deadline_s is not None):
        raise UserMistake(
            "on a Ray cluster it is the waiting client that retries and keeps the deadline",
            "do without --detach, or --set retries.max=0 and no deadline_s",
        )
    api = _api(cluster, clusters)
    if detach:
        found = jobs.submit(api, spec, Path.cwd(), terminal_progress())
    else:
        found = jobs.run(api, spec, Path.cwd(), terminal_progress(), _write_log)
    console.emit(found.to_json(), as_json, lambda page: _show_submitted(page, found, cluster))
    _leave(found.job)


def render_verb(
    job: JobFile,
    to: Annotated[str, typer.Option("--to", help=f"One of {', '.join(TARGETS)}.", show_default=False)],
    overrides: Overrides = None,
    image: Annotated[str, typer.Option(help="The image that Kubernetes starts.")] = Placed().image,
    working_dir: Annotated[str, typer.Option(help="The code's address, as `package` prints it.")] = "",
    py_module: Annotated[list[str] | None, typer.Option(help="The package's address, likewise.")] = None,
    claim: Annotated[str, typer.Option(help="The volume claim that Kubernetes' pods find at /data.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write a job in the words of another system: a manifest for Kubernetes, a request body, a shell script.

    sightloom render jobs/train.yaml --to rayjob --set code.mode=image
    """
    spec = read_job(job, overrides)
    placed = Placed(working_dir or spec.code.working_dir, tuple(py_module or spec.code.py_modules), image, claim)
    text = render(spec, to, _packed(spec, placed) if to == "ray-jobs" else placed)
    console.emit({"target": to, "text": text}, as_json, lambda page: page.out(text, end="", highlight=False))


def package_verb(
    job: JobFile,
    to: Annotated[str, typer.Option("--to", help="A folder that the cluster reads, e.g. s3://bucket/code.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Pack a job's code and put it at an address, for manifests.

    sightloom package jobs/train.yaml --to s3://bucket/code
    """
    spec = read_job(job, overrides)
    package = pack(spec, Path.cwd(), top="package")
    code, module = publish(package, to)
    facts = {"working_dir": code, "py_modules": [module], "bytes": package.size}

    def show(page: Console) -> None:
        page.print(f"{package.size / 1e6:.2f} MB\nworking_dir  {code}\npy_module    {module}", soft_wrap=True)
        page.print(
            f"next: sightloom render {job} --to rayjob --working-dir {code} --py-module {module}", soft_wrap=True
        )

    console.emit(facts, as_json, show)


def list_verb(cluster: To, clusters: File = CLUSTERS, as_json: AsJson = False) -> None:
    """List a cluster's jobs, the newest last."""
    found = _api(cluster, clusters).list()
    console.emit({"jobs": [job.to_json() for job in found]}, as_json, lambda page: _show_jobs(page, found))


def show_verb(id: Id, cluster: To, clusters: File = CLUSTERS, as_json: AsJson = False) -> None:
    """Show one job: how it stands, and why it failed."""
    found = _api(cluster, clusters).get(id)
    console.emit(found.to_json(), as_json, lambda page: _show_fields(page, found.to_json()))


def logs_verb(
    id: Id,
    cluster: To,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job ends.")] = False,
    clusters: File = CLUSTERS,
) -> None:
    """Print what a job's driver has written."""
    api = _api(cluster, clusters)
    api.get(id)
    if follow:
        _leave(api.follow(id, _to_stdout))
    else:
        _to_stdout(api.logs(id))


def stop_verb(id: Id, cluster: To, clusters: File = CLUSTERS, as_json: AsJson = False) -> None:
    """Ask a job to end, and wait until it has."""
    api = _api(cluster, clusters)
    api.stop(id)
    found = api.follow(id, lambda _: None)
    console.emit(found.to_json(), as_json, lambda page: _show_fields(page, found.to_json()))


def retry_verb(id: Id, cluster: To, clusters: File = CLUSTERS, as_json: AsJson = False) -> None:
    """Start a job's next attempt, where it was stopped or failed for a reason that may have passed."""
    found = jobs.retry(_api(cluster, clusters), id, Path.cwd(), terminal_progress())
    console.emit(found.to_json(), as_json, lambda page: _show_submitted(page, found, cluster))


def _api(cluster: str, clusters: Path) -> JobsApi:
    if cluster == LOCAL:
        return JobsApi(*local_cluster(Path(os.environ.get("SIGHTLOOM_FOLDER", FOLDER))))
    found, token = find_cluster(cluster, clusters.expanduser(), os.environ)
    return JobsApi(found, token)


def _packed(spec: JobSpec, placed: Placed) -> Placed:
    """The body of a request names the code as `submit` would upload it."""
    if placed.working_dir or spec.code.mode != "package":
        return placed
    return jobs.place(spec, pack(spec, Path.cwd()), placed.image)


def _write_log(text: str) -> None:
    """A followed job's log is progress: stdout is for the result."""
    sys.stderr.write(text)
    sys.stderr.flush()


def _to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _leave(job: Job) -> None:
    """Raise what a failed job says, with its own exit code; one that was stopped did not do its work either."""
    if job.status == "STOPPED":
        raise SightloomError(f"'{job.id}' was stopped", f"sightloom jobs retry {job.id}")
    if job.status == "FAILED":
        error = SightloomError(f"'{job.id}' failed: {job.reason}", f"sightloom jobs logs {job.id}")
        error.exit_code = job.exit_code if job.exit_code and 0 < job.exit_code < 126 else 1
        raise error


def _show_submitted(page: Console, found: jobs.Submitted, cluster: str) -> None:
    how = "submitted before: attached" if found.attached else f"{found.uploaded / 1e6:.2f} MB of code uploaded"
    page.print(f"[bold]{found.job.id}[/] {found.job.status} ({how})")
    page.print(f"next: sightloom jobs logs {found.job.id} --cluster {cluster}", soft_wrap=True)


def _show_jobs(page: Console, found: list[Job]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("id", "kind", "status", "began", "seconds", "why"):
        table.add_column(title, justify="right" if title == "seconds" else "left", overflow="fold")
    for job in found:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.began)) if job.began else "–"
        took = f"{job.ended - job.began:.0f}" if job.ended and job.began else "–"
        table.add_row(job.id, job.metadata.get("sightloom.kind", "–"), job.status, began, took, job.reason)
    page.print(table if found else "no jobs yet")


def _show_fields(page: Console, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        page.print(f"{name:<10} {value}", soft_wrap=True, markup=False)
