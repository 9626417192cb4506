"""The verbs train and merge."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sightloom import runtime
from sightloom.cli import console
from sightloom.cli.console import Ray
from sightloom.config import load
from sightloom.progress import terminal_progress
from sightloom.tracking import open_tracker
from sightloom.training.curriculum import Curriculum
from sightloom.training.merging import Method, merge
from sightloom.training.stages import PlannedStage, TrainResult, plan, train

_SHOWN = ("eval/all/caption_loss", "eval/all/retrieval_r1", "eval/all/accuracy", "eval/steps/accuracy")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("train")(train_verb)
    app.command("merge")(merge_verb)


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
    ray: Ray = runtime.LOCAL,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a model through the stages of a curriculum; finished stages are not run again.

    sightloom train pipelines/curricula/nano.yaml --set data.manifest=out/photos/shards/photos/manifest.json
    """
    options = load(Curriculum, curriculum, set_ or [])
    if plan_only:
        stages = plan(options, out)
        console.emit(
            {"stages": [asdict(stage) for stage in stages]}, as_json, lambda screen: _show_plan(screen, stages)
        )
        return
    store = options.tracking.uri or f"sqlite:///{Path(out).absolute()}/mlflow.db"
    tracker = open_tracker(store, options.tracking.experiment)
    result = train(options, out, terminal_progress(), tracker, ray)
    console.emit(result.to_json(), as_json, lambda screen: _show(screen, result, store))


def merge_verb(
    models: Annotated[list[str], typer.Argument(help="Models that stages exported.", show_default=False)],
    base: Annotated[str, typer.Option(help="The model that all of them were trained from.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the merged model; it must not exist.", show_default=False)],
    method: Annotated[Method, typer.Option(help="How the changes are joined.")] = "linear",
    weight: Annotated[
        list[float] | None, typer.Option(help="One for each model, in their order; else equal ones that sum to 1.")
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="ties: the share of each change that is kept, e.g. 0.2.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Merge models that were trained from one start, such as one specialist a domain, into one.

    sightloom merge ui/model documents/model --base reason/model --method ties --density 0.2 --out merged
    """
    weights = weight or [1 / len(models)] * len(models)
    digest = merge(base, models, weights, method, density, out)
    console.emit(
        {"model_dir": str(out), "digest": digest, "method": method, "weights": weights},
        as_json,
        lambda screen: screen.print(f"model   {out}\nnext: sightloom evaluate {out}", soft_wrap=True),
    )


def _show_plan(screen: Console, stages: Sequence[PlannedStage]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("name", "stage", "objective", "steps", "tokens at most", "status"):
        table.add_column(title, justify="right" if title in ("steps", "tokens at most") else "left")
    for stage in stages:
        numbers = (f"{stage.steps:,}", f"{stage.max_tokens:,}")
        table.add_row(stage.name, stage.stage, stage.objective, *numbers, stage.status)
    screen.print(table)
    left = sum(stage.status == "to do" for stage in stages)
    screen.print(f"\n{left} of {len(stages)} stages to do; next: the same command without --plan", soft_wrap=True)


def _show(screen: Console, result: TrainResult, store: str) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("stage", "objective", "steps", "samples", "seconds", "result", *(n[5:] for n in _SHOWN)):
        table.add_column(title, justify="left" if title in ("stage", "objective", "result") else "right")
    for stage in result.stages:
        figures = [f"{stage.metrics[name]:.3g}" if name in stage.metrics else "–" for name in _SHOWN]
        numbers = (str(stage.steps), str(stage.samples), f"{stage.seconds:.0f}")
        table.add_row(stage.name, stage.objective, *numbers, stage.status, *figures)
    screen.print(table)
    screen.print(f"\nmodel   {result.model_dir}\nMLflow  {store}", soft_wrap=True)
    screen.print(f"next: sightloom serve {result.model_dir}", soft_wrap=True)
