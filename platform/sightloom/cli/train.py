"""The verb train."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from sightloom.cli import console
from sightloom.cli.console import LOCAL, Ray
from sightloom.config import load
from sightloom.later import Later
from sightloom.progress import terminal_progress
from sightloom.training.curriculum import Curriculum

if TYPE_CHECKING:
    from sightloom import tracking
    from sightloom.training import planning, stages
    from sightloom.training.forgetting import Trained
    from sightloom.training.planning import PlannedStage
    from sightloom.training.stages import TrainResult
else:
    tracking, stages = Later("sightloom.tracking"), Later("sightloom.training.stages")
    planning = Later("sightloom.training.planning")

_SHOWN = ("eval/all/caption_loss", "eval/all/retrieval_r1", "eval/all/accuracy", "eval/steps/accuracy")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("train")(train_verb)


def train_verb(
    curriculum: Annotated[
        str, typer.Argument(help="Curriculum file, e.g. pipelines/curricula/nano.yaml.", show_default=False)
    ],
    out: Annotated[str, typer.Option(help="Folder for stages, checkpoints and the MLflow store.")] = "out/train",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. data.manifest=… or stages.0.steps=100."),
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Print the stages, their steps and tokens and what is done; run nothing.")
    ] = False,
    only: Annotated[
        str, typer.Option(metavar="STAGE", help="Run this stage alone; what it builds on is done.", show_default=False)
    ] = "",
    ray: Ray = LOCAL,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a model through the stages of a curriculum; finished stages are not run again.

    sightloom train pipelines/curricula/nano.yaml --set data.manifest=out/photos/shards/photos/manifest.json
    """
    options = load(Curriculum, curriculum, set_ or [])
    if plan_only:
        planned = planning.plan(options, out)
        console.emit(
            {"stages": [asdict(stage) for stage in planned]}, as_json, lambda screen: _show_plan(screen, planned)
        )
        return
    store = (
        options.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(out).absolute()}/mlflow.db"
    )
    tracker = tracking.open_tracker(store, options.tracking.experiment)
    result = stages.train(options, out, terminal_progress(), tracker, ray, only or None)
    console.emit(result.to_json(), as_json, lambda screen: _show(screen, result, store))


def _show_plan(screen: Console, planned: "Sequence[PlannedStage]") -> None:
    table = Table(box=None, pad_edge=False)
    numbers = ("steps", "tokens at most", "GPU-hours, about", "USD, about")
    for title in ("name", "stage", "objective", *numbers, "status"):
        table.add_column(title, justify="right" if title in numbers else "left")
    for stage in planned:
        told = (stage.steps, stage.max_tokens, stage.gpu_hours, stage.usd)
        figures = ("–" if value is None else f"{value:,}" for value in told)
        table.add_row(stage.name, stage.stage, stage.objective, *figures, stage.status)
    screen.print(table)
    left = sum(stage.status == "to do" for stage in planned)
    screen.print(f"\n{left} of {len(planned)} stages to do; next: the same command without --plan", soft_wrap=True)


def _show(screen: Console, result: "TrainResult", store: str) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("stage", "objective", "steps", "samples", "seconds", "result", *(n[5:] for n in _SHOWN)):
        table.add_column(title, justify="left" if title in ("stage", "objective", "result") else "right")
    for stage in result.stages:
        figures = [f"{stage.metrics[name]:.3g}" if name in stage.metrics else "–" for name in _SHOWN]
        numbers = (str(stage.steps), str(stage.samples), f"{stage.seconds:.0f}")
        table.add_row(stage.name, stage.objective, *numbers, stage.status, *figures)
    screen.print(table)
    if any(row.change for row in result.matrix()):
        _show_matrix(screen, result.matrix())
    screen.print(f"\nmodel   {result.model_dir}\nMLflow  {store}", soft_wrap=True)
    screen.print(f"next: sightloom serve {result.model_dir}", soft_wrap=True)


def _show_matrix(screen: Console, rows: "Sequence[Trained]") -> None:
    domains = sorted({domain for row in rows for domain in row.accuracy})
    table = Table(box=None, pad_edge=False, title="accuracy by domain (change over the stage)", title_justify="left")
    for title in ("stage", "trained on", *domains):
        table.add_column(title, justify="left" if title in ("stage", "trained on") else "right")
    for row in rows:
        cells = []
        for domain in domains:
            change = f" ({row.change[domain]:+.1%})" if domain in row.change else ""
            cells.append(f"{row.accuracy[domain]:.1%}{change}" if domain in row.accuracy else "–")
        table.add_row(row.name, ", ".join(row.trained_on), *cells)
    screen.print()
    screen.print(table)
