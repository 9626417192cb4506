"""The verb evaluate."""

import os
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sightloom.cli import console
from sightloom.evaluation.evaluate import Target, run
from sightloom.evaluation.result import Measure, Result
from sightloom.progress import terminal_progress


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("evaluate")(evaluate)


def evaluate(
    suite: Annotated[str, typer.Argument(help="Suite, e.g. pipelines/suites/heldout.yaml.", show_default=False)],
    checkpoint: Annotated[str, typer.Option(help="Model folder, hub id or s3:// address.", show_default=False)] = "",
    endpoint: Annotated[
        str, typer.Option(help="OpenAI-compatible address instead; its key in SIGHTLOOM_API_KEY.", show_default=False)
    ] = "",
    model: Annotated[str, typer.Option(help="Model to ask for at the endpoint.", show_default="the only one")] = "",
    manifest: Annotated[str, typer.Option(help="manifest.json of curated shards.", show_default=False)] = "",
    out: Annotated[
        str, typer.Option(help="Folder for report.html, rows.jsonl and result.json.", show_default="nothing is written")
    ] = "",
    best_of: Annotated[
        int, typer.Option(min=1, help="Sample so many answers; the reward model chooses.", show_default=False)
    ] = 1,
    reward_model: Annotated[str, typer.Option(help="Export of an rm stage.", show_default=False)] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the suite, e.g. decoding.thinking=true."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask a model the questions of a suite and measure it per domain, with confidence intervals and chance levels."""
    key = os.environ.get("SIGHTLOOM_API_KEY", "")
    target = Target(checkpoint, endpoint, model, key, best_of, reward_model)
    result = run(suite, target, manifest or None, out or None, set_ or [], terminal_progress())
    console.emit(result.to_json(), as_json, lambda screen: _show(screen, result, out))


def _show(screen: Console, result: Result, out: str) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("domain", "accuracy", "95 % interval", "n", "constant answer", "needs steps"):
        table.add_column(title, justify="left" if title == "domain" else "right")
    for name, measure in result.domains.items():
        steps = f"{measure.needs_steps.value:.1%}" if measure.needs_steps else "–"
        table.add_row(name, *_cells(measure), f"{measure.chance_constant:.1%}", steps)
    steps = f"{result.needs_steps.value:.1%}" if result.needs_steps else "–"
    table.add_row("all", *_cells(result.overall), f"{result.chance_constant:.1%}", steps, style="bold")
    screen.print(table)
    screen.print(f"\nwell-formed answers  {result.format.value:.1%}     errors  {result.errors}")
    if out:
        screen.print(f"report  {out}/report.html", soft_wrap=True)
    else:
        screen.print("next: the same with --out DIR writes a report with pictures, thinking and answers")


def _cells(measure: Measure) -> tuple[str, str, str]:
    low, high = measure.ci
    return f"{measure.value:.1%}", f"{low:.1%} – {high:.1%}", str(measure.n)
