"""`sightloom infra render | check`: the generated files of infra/, and the offline checks of all of it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sightloom.cli import console
from sightloom.cluster.infra import check as checks
from sightloom.cluster.infra import files
from sightloom.errors import SightloomError

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    group = typer.Typer(no_args_is_help=True, help="Write the generated files of infra/, and check all of it.")
    group.command("render")(render_verb)
    group.command("check")(check_verb)
    app.add_typer(group, name="infra")


def render_verb(as_json: AsJson = False) -> None:
    """Write manifests, dashboard and alerts from jobs/ and the metric table."""
    changed = files.write(Path.cwd())
    names = sorted(files.generated(Path.cwd()))
    words = f"{len(names)} files, {len(changed)} changed{': ' + ', '.join(changed) if changed else ''}"
    console.emit({"files": names, "changed": changed}, as_json, lambda page: page.print(words, soft_wrap=True))


def check_verb(
    crds: Annotated[Path, typer.Option(help="Folder of KubeRay's CRDs.")] = Path("../shared/crds"),
    tools: Annotated[Path, typer.Option(help="Folder of further programs; make infra-tools.")] = Path(
        ".tools/infra/bin"
    ),
    as_json: AsJson = False,
) -> None:
    """Check infra/ as far as this machine can; exit code 1 if a check fails."""
    found = checks.check(Path.cwd(), crds, tools)
    result = {one.name: {"result": one.result, "why": one.why} for one in found}
    console.emit(result, as_json, lambda page: _show(page, found))
    if failed := [one.name for one in found if one.result == "failed"]:
        raise SightloomError(f"failed: {', '.join(failed)}", "generated files: sightloom infra render")


def _show(page: Console, found: list[checks.Outcome]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("check", "result", "why"):
        table.add_column(title, overflow="fold")
    for one in found:
        table.add_row(one.name, one.result, one.why)
    page.print(table)
