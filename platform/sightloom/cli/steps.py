"""`sightloom score`, `dedup`, `select`, `pack`, `report`, `gc`: the steps of a curation, one at a time."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sightloom import storage
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
    part_of,
    read_recipe,
    reasons,
)
from sightloom.errors import UserMistake
from sightloom.later import Later
from sightloom.progress import terminal_progress

if TYPE_CHECKING:
    from sightloom.data import curation, garbage, steps
    from sightloom.data.results import StepResult
else:
    curation, steps = Later("sightloom.data.curation"), Later("sightloom.data.steps")
    garbage = Later("sightloom.data.garbage")


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
        ray: Ray = LOCAL,
        as_json: AsJson = False,
    ) -> None:
        """Fetch, measure and score what is not committed yet.

        sightloom score pipelines/recipes/photos.yaml --set out=out/photos
        """
        parsed = read_recipe(recipe, overrides)
        settings = curation.Settings(replace, reasons(retry_failed), part_of(part), single_writer, ray)
        result = steps.run_score(parsed, terminal_progress(), settings)
        _emit(result, as_json, f"sightloom dedup {recipe}")
        check_failed(result, parsed)

    @app.command("dedup")
    def dedup_verb(
        recipe: RecipeFile,
        overrides: Overrides = None,
        replace: Replace = False,
        single_writer: Alone = False,
        ray: Ray = LOCAL,
        as_json: AsJson = False,
    ) -> None:
        """Find the duplicates among scored rows.

        sightloom dedup pipelines/recipes/photos.yaml --set out=out/photos
        """
        parsed = read_recipe(recipe, overrides)
        settings = curation.Settings(replace, single_writer=single_writer, ray=ray)
        result = steps.run_dedup(parsed, terminal_progress(), settings, recipe)
        _emit(result, as_json, f"sightloom select {recipe}")

    @app.command("select")
    def select_verb(
        recipe: RecipeFile,
        overrides: Overrides = None,
        replace: Replace = False,
        single_writer: Alone = False,
        as_json: AsJson = False,
    ) -> None:
        """Decide about every row: what stays, and the one reason of each that goes.

        sightloom select pipelines/recipes/photos.yaml --set out=out/photos
        """
        parsed = read_recipe(recipe, overrides)
        settings = curation.Settings(replace, single_writer=single_writer)
        result = steps.run_select(parsed, terminal_progress(), settings, recipe)
        _emit(result, as_json, f"sightloom pack {recipe}")

    @app.command("pack")
    def pack_verb(
        recipe: RecipeFile,
        overrides: Overrides = None,
        replace: Replace = False,
        single_writer: Alone = False,
        ray: Ray = LOCAL,
        as_json: AsJson = False,
    ) -> None:
        """Build the shards of what stays; the manifest is written last.

        sightloom pack pipelines/recipes/photos.yaml --set out=out/photos
        """
        parsed = read_recipe(recipe, overrides)
        settings = curation.Settings(replace, single_writer=single_writer, ray=ray)
        result = steps.run_pack(parsed, terminal_progress(), settings, recipe)
        _emit(result, as_json, f"sightloom verify {result.manifest} --deep")

    @app.command("report")
    def report_verb(
        recipe: RecipeFile, overrides: Overrides = None, single_writer: Alone = False, as_json: AsJson = False
    ) -> None:
        """Write the page of finished shards: funnel, histograms, pictures around each cut.

        sightloom report pipelines/recipes/photos.yaml --set out=out/photos
        """
        parsed = read_recipe(recipe, overrides)
        settings = curation.Settings(single_writer=single_writer)
        _emit(steps.run_report(parsed, terminal_progress(), settings, recipe), as_json, "")

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
        out = read_recipe(recipe, overrides).out
        if not storage.exists(out):
            raise UserMistake(f"nothing at '{out}'", "the recipe's `out` is where a curation put its files")
        found = garbage.find_garbage(out if not storage.is_local(out) else str(storage.local_path(out).absolute()))
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


def _emit(result: "StepResult", as_json: bool, following: str) -> None:
    def show(page: Console) -> None:
        page.print(funnel(result))
        page_uri = getattr(result, "report", "")
        if page_uri:
            page.print(f"report    {page_uri}")
        if following:
            page.print(f"next: {following}")

    console.emit(result.to_json(), as_json, show)
