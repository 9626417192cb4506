"""The verb evaluate."""

import os
from contextlib import ExitStack
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sightloom.cli import console
from sightloom.demo.corpus.examples import GENERATORS
from sightloom.errors import UserMistake
from sightloom.evaluation.evaluate import Target, run
from sightloom.evaluation.result import Measure, Result
from sightloom.model.load import fetch
from sightloom.progress import terminal_progress
from sightloom.serving.engines.transformers import TransformersEngine
from sightloom.serving.listening import running


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
    serve: Annotated[
        bool, typer.Option("--serve", help="Ask --checkpoint through a private endpoint, as it will be served.")
    ] = False,
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
    if serve and (not checkpoint or reward_model):
        raise UserMistake("--serve asks --checkpoint through an endpoint, once a question: give it, without --best-of")
    with ExitStack() as held:
        address = ""
        if serve:
            folder = fetch(checkpoint)
            address = held.enter_context(running(lambda: TransformersEngine(folder, "private"))).address
        result = run(suite, target, manifest or None, out or None, set_ or [], terminal_progress(), address, GENERATORS)
    console.emit(result.to_json(), as_json, lambda screen: _show(screen, result, out))


def _show(screen: Console, result: Result, out: str) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("domain", "metric", "value", "95 % interval", "n", "constant answer", "needs steps"):
        table.add_column(title, justify="left" if title in ("domain", "metric") else "right")
    for name, domain in result.domains.items():
        steps = _percent(domain.needs_steps.value) if domain.needs_steps else "–"
        table.add_row(name, *_cells(domain), _percent(domain.chance_constant), steps)
        for measure in domain.metrics.values():
            if measure.metric not in (domain.metric, "score", "relaxed_accuracy"):
                table.add_row("", *_cells(measure), "", "")
    steps = _percent(result.needs_steps.value) if result.needs_steps else "–"
    table.add_row("all", *_cells(result.overall), _percent(result.chance_constant), steps, style="bold")
    for name, its in result.imported.items():
        for measure in its.values():
            table.add_row(f"{name} (imported)", *_cells(measure, percent=False), "", "", style="dim")
    screen.print(table)
    shares = "     ".join(f"{name.replace('_', ' ')}  {_percent(its.value)}" for name, its in result.format.items())
    screen.print(f"\n{shares}     errors  {result.errors}")
    for speed in result.perf:
        screen.print(
            f"{speed.clients} clients  {speed.tokens_per_s:.0f} tokens/s  TTFT p95 {1000 * speed.ttft_p95_s:.0f} ms  "
            f"TPOT p95 {1000 * speed.tpot_p95_s:.1f} ms  ({speed.n} requests, {speed.errors} errors)"
        )
    if out:
        screen.print(f"report  {out}/report.html", soft_wrap=True)
    else:
        screen.print("next: the same with --out DIR writes a report with pictures, thinking and answers")


def _cells(measure: Measure, percent: bool = True) -> tuple[str, str, str, str]:
    low, high = measure.ci
    if percent and measure.metric not in ("cider", "clip_score"):
        return measure.metric, _percent(measure.value), f"{_percent(low)} – {_percent(high)}", str(measure.n)
    return measure.metric, f"{measure.value:.3f}", f"{low:.3f} – {high:.3f}", str(measure.n)


def _percent(value: float) -> str:
    return f"{value:.1%}"
