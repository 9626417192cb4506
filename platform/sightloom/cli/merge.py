"""The verb merge: models of one start into one."""

from pathlib import Path
from typing import Annotated

import typer

from sightloom.cli import console
from sightloom.training.merging import Method, merge


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("merge")(merge_verb)


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
