"""The verb register: an exported model becomes a version that can be evaluated, promoted and served."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sightloom.cli import console
from sightloom.cli.console import DEFAULT_STORE, Store
from sightloom.errors import UserMistake
from sightloom.registry import Registry
from sightloom.registry.once import register_once
from sightloom.store_address import normalized_uri
from sightloom.tracking import MlflowTracker

_EXPERIMENT = "models"  # of runs that stand for models that were trained elsewhere


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("register")(register_verb)


def register_verb(
    folder: Annotated[Path, typer.Argument(help="A model folder, or the --out of a training.", show_default=False)],
    name: Annotated[str, typer.Option(help="The registered model's name.")] = "sightloom",
    store: Store = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Register a model as a version; the same files again are the same version.

    sightloom register out/train
    """
    model, run_id = find_model(folder)
    uri = normalized_uri(store)
    run = run_id or _stand_in(uri, model)
    found = register_once(Registry(uri), name, model, run, {"sightloom.folder": str(model)})
    result = {"reference": found.reference, "digest": found.digest, "folder": str(model), "run_id": run}
    words = f"[bold]{found.reference}[/]  {model}\nnext: sightloom promote {found.reference} --reason …"
    console.emit(result, as_json, lambda page: page.print(words, soft_wrap=True))


def find_model(folder: Path) -> tuple[Path, str]:
    """A model folder and the run that made it (empty: none that is known); of a training, its last finished stage.

    Raises:
        UserMistake: neither a model nor a training with a finished stage.
    """
    if (folder / "config.json").is_file():
        report = folder.parent / "promoted.json"
        return folder, json.loads(report.read_text())["run_id"] if report.is_file() else ""
    reports = sorted(folder.glob("*/promoted.json"), key=lambda path: path.stat().st_mtime)
    if not reports:
        raise UserMistake(f"'{folder}' is no model, and no training with a finished stage", "give training's --out")
    return reports[-1].parent / "model", json.loads(reports[-1].read_text())["run_id"]


def _stand_in(uri: str, model: Path) -> str:
    tracker = MlflowTracker(uri, _EXPERIMENT)
    run_id = tracker.start_run(model.name, tags={"sightloom.folder": str(model)})
    tracker.end_run(run_id)
    return run_id
