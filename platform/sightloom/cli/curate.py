"""`sightloom curate`, `fit-scorer`: from raw pairs to shards that can be trusted."""

import os
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sightloom.cli import console
from sightloom.cli.console import LOCAL, Ray
from sightloom.cli.recipes import (
    Alone,
    AsJson,
    Overrides,
    RecipeFile,
    Replace,
    Retry,
    check_failed,
    funnel,
    read_recipe,
    reasons,
)
from sightloom.errors import UserMistake
from sightloom.later import Later
from sightloom.progress import terminal_progress

if TYPE_CHECKING:
    from sightloom import runtime, tracking
    from sightloom.data import curation, fit, forecast, preview
    from sightloom.data.forecast import Forecast
    from sightloom.data.preview import Preview
    from sightloom.data.results import CurationResult
else:
    runtime, tracking = Later("sightloom.runtime"), Later("sightloom.tracking")
    curation, fit = Later("sightloom.data.curation"), Later("sightloom.data.fit")
    forecast, preview = Later("sightloom.data.forecast"), Later("sightloom.data.preview")

Planned = Annotated[bool, typer.Option("--plan", help="Say what would run and what it would cost; write nothing.")]
Looked = Annotated[int, typer.Option("--preview", min=0, help="Score about N rows elsewhere; predict the whole.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""

    @app.command("curate")
    def curate_verb(
        recipe: RecipeFile,
        overrides: Overrides = None,
        replace: Replace = False,
        plan: Planned = False,
        preview_rows: Looked = 0,
        html: Annotated[str | None, typer.Option(help="With --preview: where to write the sample's page.")] = None,
        cores: Annotated[int | None, typer.Option(help="With --plan: cores that would measure.")] = None,
        retry_failed: Retry = None,
        single_writer: Alone = False,
        ray: Ray = LOCAL,
        store: Annotated[
            str | None,
            typer.Option(
                "--store",
                envvar="MLFLOW_TRACKING_URI",
                help="MLflow store that the run is logged to.",
                show_default="none",
            ),
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Filter, deduplicate and shard image-text corpora by a recipe.

        Every step keeps what it finished: the same command goes on after an interruption, and does nothing twice.

        sightloom curate pipelines/recipes/photos.yaml --set out=out/photos
        """
        parsed = read_recipe(recipe, overrides)
        if plan and preview_rows:
            raise UserMistake("--plan reads listings only, --preview scores a sample", "give one of them")
        if plan:
            found = forecast.forecast(parsed, cores or os.cpu_count() or 1)
            console.emit(found.to_json(), as_json, lambda page: _show_forecast(page, found))
            return
        if html is not None and not preview_rows:
            raise UserMistake("--html is for the page of a --preview", "the page of a curation lies beside its shards")
        if preview_rows:
            runtime.connect(ray)
            seen = preview.preview(parsed, preview_rows, cores or os.cpu_count() or 1, terminal_progress(), html)
            console.emit(seen.to_json(), as_json, lambda page: _show_preview(page, seen, recipe))
            return
        if parsed.report.mlflow is not None and store is None:
            raise UserMistake("report.mlflow needs a store to log to", "give --store sqlite:///mlflow.db or an address")
        experiment = (parsed.report.mlflow or {}).get("experiment", "curation")
        tracker = tracking.MlflowTracker(store, experiment) if store else None
        settings = curation.Settings(replace, reasons(retry_failed), None, single_writer, ray)
        result = curation.curate(parsed, terminal_progress(), tracker, settings)
        console.emit(result.to_json(), as_json, lambda page: _show(page, result))
        check_failed(result, parsed)

    @app.command("fit-scorer")
    def fit_verb(recipe: RecipeFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
        """Train a small CLIP filter network on trusted pairs (the recipe's `fit` section).

        sightloom fit-scorer pipelines/recipes/demo.yaml --set fit.out=out/filter
        """
        parsed = read_recipe(recipe, overrides)
        if parsed.fit is None:
            raise UserMistake(f"'{recipe}' has no `fit` section", "see pipelines/recipes/demo.yaml for one")
        card = fit.fit_scorer(parsed.fit, parsed.seed, terminal_progress())

        def show(page: Console) -> None:
            page.print(f"[bold]{card.folder}[/]: {card.pairs} pairs, auc_shuffled {card.auc_shuffled:.3f}")
            if card.warning:
                page.print(f"[yellow]{card.warning}[/]")
            page.print(f"next: sightloom curate {recipe} --set score.clip.0.model=local-dir:{card.folder}")

        console.emit(card.to_json(), as_json, show)


def _show(page: Console, result: "CurationResult") -> None:
    page.print(funnel(result))
    page.print(f"{result.shards} shards, {result.samples_per_s:.0f} rows/s")
    if result.licences:
        known = ", ".join(f"{name}: {licence or 'licence not known'}" for name, licence in result.licences.items())
        page.print(f"weights   {known}", markup=False)
    page.print(f"manifest  {result.manifest}\nreport    {result.report}")
    page.print(f"next: sightloom verify {result.manifest} --deep")


def _show_forecast(page: Console, found: "Forecast") -> None:
    page.print(f"files     {found.files} ({found.bytes / 1e6:.1f} MB), {found.files_done} of them done")
    guess = " of an assumed" if found.row_bytes_assumed else " of"
    page.print(
        f"rows      {found.rows}"
        if found.rows_exact
        else f"rows      about {found.rows}, records in tars{guess} {found.row_bytes / 1e3:.1f} kB"
    )
    if found.urls_not_fetched:
        page.print(f"urls      {found.urls_not_fetched} to fetch first")
    page.print(f"chunks    {found.chunks_done} done, about {found.chunks_missing} missing")
    if found.chunks_derived:
        page.print(f"derived   about {found.chunks_derived} chunks of banks and heads, from stored embeddings")
    page.print(f"time      {found.hours:.2f} h on {found.cores} cores at {found.rows_per_s:.0f} rows/s a core")
    page.print(f"memory    {found.object_store_mb:.0f} MB of Ray's object store at least")
    page.print(f"storage   {found.columns_mb:.1f} MB of columns, {found.embeddings_mb:.1f} MB of embeddings")
    page.print(f"requests  {found.puts} PUTs, about {found.gets} GETs")
    for refusal in found.refusals:
        page.print(f"[red]refused[/]   {refusal}")


def _show_preview(page: Console, seen: "Preview", recipe: str) -> None:
    page.print(f"{seen.rows} rows scored at {seen.rows_per_s:.0f} rows/s")
    for name, share in seen.rules.items():
        page.print(f"  rule {name}: {share.value:.1%} stay [dim]({share.low:.1%} to {share.high:.1%})[/]")
    page.print(f"[bold]kept {seen.keep.value:.1%}[/] ({seen.keep.low:.1%} to {seen.keep.high:.1%})")
    page.print(f"the whole: about {seen.kept_rows} rows, {seen.kept_bytes / 1e6:.1f} MB, {seen.hours:.2f} h of scoring")
    page.print(f"next: sightloom curate {recipe}")
