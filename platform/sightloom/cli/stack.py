"""`sightloom up`, `status`, `down`: Ray, MLflow, the endpoint and Prometheus of this machine as one."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sightloom.cli import console
from sightloom.cluster.local import stack
from sightloom.cluster.local.looking import StackStatus, status
from sightloom.cluster.local.options import StackOptions, read_ports
from sightloom.config import validate
from sightloom.errors import SightloomError
from sightloom.progress import terminal_progress
from sightloom.serving.clip import clip_settings

FOLDER = Path(".sightloom")
Folder = Annotated[
    Path,
    typer.Option("--folder", envvar="SIGHTLOOM_FOLDER", help="Of the stack's state, logs, token and stores."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("up")(up_verb)
    app.command("status")(status_verb)
    app.command("down")(down_verb)


def up_verb(
    folder: Folder = FOLDER,
    port: Annotated[
        list[str] | None,
        typer.Option("--port", metavar="NAME=N", help="Another port, e.g. endpoint=8001; see `status` for the names."),
    ] = None,
    database: Annotated[
        str,
        typer.Option(
            help="MLflow's database: postgresql://user@host/name, password in PGPASSWORD.", show_default="sqlite"
        ),
    ] = "",
    artifacts: Annotated[str, typer.Option(help="MLflow's artifacts, e.g. s3://bucket.", show_default="a folder")] = "",
    clip: Annotated[
        list[str] | None,
        typer.Option(help="NAME=local-dir:FOLDER or NAME=MODEL,PRETRAINED: an open_clip model for embeddings."),
    ] = None,
    num_cpus: Annotated[int | None, typer.Option(help="What Ray may promise.", show_default="cores + 2", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Start a local stack, or what of it does not run, and wait until it is well.

    sightloom up
    sightloom submit jobs/curate.yaml --cluster local
    """
    clips = {name: its.absolute() for name, its in clip_settings(clip or ()).items()}
    asked = {"database": database, "artifacts": artifacts, "ports": read_ports(port or ()), "clips": clips}
    options = validate(StackOptions, asked | ({"num_cpus": num_cpus} if num_cpus else {}), "command line")
    found = stack.up(folder, options, terminal_progress())
    console.emit(found.to_json(), as_json, lambda page: _show(page, found))


def status_verb(folder: Folder = FOLDER, as_json: AsJson = False) -> None:
    """Show how each part of the local stack stands; exit code 1 if one that was started is not well."""
    found = status(folder)
    console.emit(found.to_json(), as_json, lambda page: _show(page, found))
    if not found.well:
        ill = [part.name for part in found.parts if part.state in ("dead", "ill")]
        what = f"not well: {', '.join(ill)}" if ill else f"no stack runs in '{found.folder}'"
        raise SightloomError(what, "sightloom up starts it")


def down_verb(folder: Folder = FOLDER, as_json: AsJson = False) -> None:
    """End the local stack and every job on it; its stores and logs stay."""
    ended = stack.down(folder, terminal_progress())
    console.emit({"ended": ended}, as_json, lambda page: page.print(f"{ended} processes ended, none is left"))


def _show(page: Console, found: StackStatus) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("part", "state", "pid", "address", "why"):
        table.add_column(title, overflow="fold")
    for part in found.parts:
        table.add_row(part.name, part.state, str(part.pid or "–"), part.address or "–", part.reason)
    page.print(table if found.parts else "nothing runs")
    if found.seconds:
        page.print(f"\nup after {found.seconds:.1f} s; logs in {found.folder}/logs", soft_wrap=True)
        page.print("next: sightloom submit jobs/curate.yaml --cluster local     sightloom down ends it all")
        page.print(f"      export MLFLOW_TRACKING_URI={found.addresses.get('mlflow', '')}", soft_wrap=True)
