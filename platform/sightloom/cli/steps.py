"""`sightloom score`, `dedup`, `select`, `pack`, `report`, `gc`: the steps of a curation, one at a time."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sightloom import runtime, storage
from sightloom.cli import console
from sightloom.cli.console import Ray
from sightloom.config import load
from sightloom.data.curation import Settings
from sightloom.data.garbage import find_garbage
from sightloom.data.recipe import Recipe
from sightloom.data.results import CurationResult, StepResult
from sightloom.data.steps import run_dedup, run_pack, run_report, run_score, run_select
from sightloom.errors import SightloomError, UserMistake
from sightloom.progress import terminal_progress

RecipeFile = Annotated[str, typer.Argument(help="A recipe, such as pipelines/recipes/photos.yaml.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override key=value; may be repeated.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Replace = Annotated[bool, typer.Option(help="Replace shards that another recipe made.")]
Alone = Annotated[bool, typer.Option(help="Do without conditional puts: nobody else may write to OUT.")]
Retry = Annotated[
    str | None,
    typer.Option("--retry-failed", help="Fetch URLs with these statuses again: dns,timeout,http_503 … or all."),
]


def register(app: typer.Typer) -> None:
    """Add the verbs."""

    @app.command("score")
    def score_verb(
        recipe: RecipeFile,
        overrides: Overrides = None,
        part: Annotated[str | None, typer.Option(help="Score only part 1/4 of the files, say.")] = None,
        retry_failed: Retry = None,
        replace: Replace = False,
        single_writer: Alone = False,
        ray: Ray = runtime.LOCAL,
        as_json: AsJson = False,
    ) -> None:
        """Fetch, measure and score what is not committed yet.

        sightloom score pipelines/recipes/photos.yaml --set out=out/photos
        """
        parsed = load(Recipe, recipe, overrides or [])
        settings = Settings(replace, reasons(retry_failed), _part(part), single_writer, ray)
        result = run_score(parsed, terminal_progress(), settings)
        _emit(result, as_json, f"sightloom dedup {recipe}")
        check_failed(result, parsed)

    @app.command("dedup")
    def dedup_verb(
        recipe: RecipeFile, overrides: Overrides = None, replace: Replace = False, as_json: AsJson = False
    ) -> None:
        """Find the duplicates among scored rows.

        sightloom dedup pipelines/recipes/photos.yaml --set out=out/photos
        """
        parsed = load(Recipe, recipe, overrides or [])
        result = run_dedup(parsed, terminal_progress(), Settings(replace), recipe)
        _emit(result, as_json, f"sightloom select {recipe}")

    @app.command("select")
    def select_verb(
        recipe: RecipeFile, overrides: Overrides = None, replace: Replace = False, as_json: AsJson = False
    ) -> None:
        """Decide about every row: what stays, and the one reason of each that goes.

        sightloom select pipelines/recipes/photos.yaml --set out=out/photos
        """
        parsed = load(Recipe, recipe, overrides or [])
        result = run_select(parsed, terminal_progress(), Settings(replace), recipe)
        _emit(result, as_json, f"sightloom pack {recipe}")

    @app.command("pack")
    def pack_verb(
        recipe: RecipeFile,
        overrides: Overrides = None,
        replace: Replace = False,
        ray: Ray = runtime.LOCAL,
        as_json: AsJson = False,
    ) -> None:
        """Build the shards of what stays; the manifest is written last.

        sightloom pack pipelines/recipes/photos.yaml --set out=out/photos
        """
        parsed = load(Recipe, recipe, overrides or [])
        result = run_pack(parsed, terminal_progress(), Settings(replace, ray=ray), recipe)
        _emit(result, as_json, f"sightloom verify {result.manifest} --deep")

    @app.command("report")
    def report_verb(recipe: RecipeFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
        """Write the page of finished shards: funnel, histograms, pictures around each cut.

        sightloom report pipelines/recipes/photos.yaml --set out=out/photos
        """
        parsed = load(Recipe, recipe, overrides or [])
        _emit(run_report(parsed, terminal_progress(), Settings(), recipe), as_json, "")

    @app.command("gc")
    def gc_verb(
        recipe: RecipeFile,
        overrides: Overrides = None,
        yes: Annotated[bool, typer.Option("--yes", help="Delete; without it they are only listed.")] = False,
        as_json: AsJson = False,
    ) -> None:
        """Remove day-old files under OUT that no commit names: leftovers of killed workers and lost races.

        sightloom gc pipelines/recipes/photos.yaml --set out=out/photos --yes
        """
        out = load(Recipe, recipe, overrides or []).out
        if not storage.exists(out):
            raise UserMistake(f"nothing at '{out}'", "the recipe's `out` is where a curation put its files")
        found = find_garbage(out if not storage.is_local(out) else str(storage.local_path(out).absolute()))
        for info in found if yes else ():
            storage.delete(info.uri)
        facts = {"files": len(found), "bytes": sum(info.size for info in found), "deleted": yes}

        def show(page: Console) -> None:
            for info in found:
                page.print(info.uri, markup=False)
            page.print(f"{facts['files']} files, {facts['bytes']} bytes " + ("deleted" if yes else "could go"))
            if found and not yes:
                page.print(f"next: sightloom gc {recipe} --yes")

        console.emit(facts, as_json, show)


def reasons(text: str | None) -> tuple[str, ...] | None:
    """Read `--retry-failed`: None where it was not given, `*` for all."""
    if text is None:
        return None
    return tuple("*" if reason.strip() == "all" else reason.strip() for reason in text.split(","))


def _part(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and 1 <= int(first) <= int(count)):
        raise UserMistake(f"--part {text} is not of the form i/n with 1 <= i <= n", "e.g. --part 1/4")
    return int(first), int(count)


def check_failed(result: StepResult, recipe: Recipe) -> None:
    """Raise SightloomError where more rows failed inside than the recipe allows."""
    if result.failed > recipe.score.max_failed * max(1, result.rows_in):
        raise SightloomError(f"{result.failed} rows failed inside", "see the report; score.max_failed allows a share")


def _emit(result: StepResult, as_json: bool, following: str) -> None:
    def show(page: Console) -> None:
        page.print(funnel(result))
        if isinstance(result, CurationResult) and result.report:
            page.print(f"report    {result.report}")
        if following:
            page.print(f"next: {following}")

    console.emit(result.to_json(), as_json, show)


def funnel(result: StepResult) -> Table:
    """Return the counts as a table: what came in, what went and why, what stays."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("rows", justify="right")
    table.add_row("in", str(result.rows_in))
    for reason, count in result.dropped.items():
        table.add_row(f"  dropped: {reason}", f"-{count}")
    if result.failed:
        table.add_row("  failed inside", f"-{result.failed}")
    table.add_row("[bold]kept[/]", f"[bold]{result.kept}[/]")
    return table
