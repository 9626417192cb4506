"""`sightloom curate`, `fit-scorer`: from raw pairs to shards that can be trusted."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sightloom import runtime
from sightloom.cli import console
from sightloom.cli.console import Ray
from sightloom.config import load
from sightloom.data.curation import CurationResult, curate
from sightloom.data.fit import fit_scorer
from sightloom.data.recipe import Recipe
from sightloom.errors import SightloomError, UserMistake
from sightloom.progress import terminal_progress
from sightloom.tracking import MlflowTracker

RecipeFile = Annotated[str, typer.Argument(help="A recipe, such as pipelines/recipes/photos.yaml.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override key=value; may be repeated.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""

    @app.command("curate")
    def curate_verb(
        recipe: RecipeFile,
        overrides: Overrides = None,
        replace: Annotated[bool, typer.Option(help="Replace shards that another recipe made.")] = False,
        ray: Ray = runtime.LOCAL,
        store: Annotated[
            str | None, typer.Option("--store", help="MLflow store that the run is logged to.", show_default="none")
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Filter, deduplicate and shard image-text corpora by a recipe.

        Every step keeps what it finished: the same command goes on after an interruption, and does nothing twice.

        sightloom curate pipelines/recipes/photos.yaml --set out=out/photos
        """
        parsed = load(Recipe, recipe, overrides or [])
        if parsed.report.mlflow is not None and store is None:
            raise UserMistake("report.mlflow needs a store to log to", "give --store sqlite:///mlflow.db or an address")
        experiment = (parsed.report.mlflow or {}).get("experiment", "curation")
        tracker = MlflowTracker(store, experiment) if store else None
        result = curate(parsed, terminal_progress(), tracker, replace, ray)
        console.emit(result.to_json(), as_json, lambda page: _show(page, result))
        if result.failed > parsed.score.max_failed * max(1, result.rows_in):
            raise SightloomError(
                f"{result.failed} rows failed inside", "see the report; score.max_failed allows a share"
            )

    @app.command("fit-scorer")
    def fit_verb(recipe: RecipeFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
        """Train a small CLIP filter network on trusted pairs (the recipe's `fit` section).

        sightloom fit-scorer pipelines/recipes/demo.yaml --set fit.out=out/filter
        """
        parsed = load(Recipe, recipe, overrides or [])
        if parsed.fit is None:
            raise UserMistake(f"'{recipe}' has no `fit` section", "see pipelines/recipes/demo.yaml for one")
        card = fit_scorer(parsed.fit, parsed.seed, terminal_progress())

        def show(page: Console) -> None:
            page.print(f"[bold]{card.folder}[/]: {card.pairs} pairs, auc_shuffled {card.auc_shuffled:.3f}")
            if card.warning:
                page.print(f"[yellow]{card.warning}[/]")
            page.print(f"next: sightloom curate {recipe} --set score.clip.0.model=local-dir:{card.folder}")

        console.emit(card.to_json(), as_json, show)


def _show(page: Console, result: CurationResult) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("rows", justify="right")
    table.add_row("in", str(result.rows_in))
    for reason, count in result.dropped.items():
        table.add_row(f"  dropped: {reason}", f"-{count}")
    if result.failed:
        table.add_row("  failed inside", f"-{result.failed}")
    table.add_row("[bold]kept[/]", f"[bold]{result.kept}[/]")
    page.print(table)
    page.print(f"{result.shards} shards, {result.samples_per_s:.0f} rows/s")
    page.print(f"manifest  {result.manifest}\nreport    {result.report}")
    page.print(f"next: sightloom verify {result.manifest} --deep")
