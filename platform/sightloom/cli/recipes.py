"""What the verbs of curation share: the recipe read and checked, arguments, the table of what became of the rows."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from sightloom.config import load
from sightloom.data.recipe import Recipe
from sightloom.errors import SightloomError, UserMistake

if TYPE_CHECKING:
    from sightloom.data.results import StepResult

RecipeFile = Annotated[str, typer.Argument(help="A recipe, such as pipelines/recipes/photos.yaml.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override key=value; may be repeated.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Replace = Annotated[bool, typer.Option(help="Replace shards that another recipe made.")]
Alone = Annotated[bool, typer.Option(help="Do without conditional puts: nobody else may write to OUT.")]
Retry = Annotated[
    str | None,
    typer.Option("--retry-failed", help="Fetch URLs with these statuses again: dns,timeout,http_503 … or all."),
]


def read_recipe(path: str, overrides: list[str] | None) -> Recipe:
    """Return a recipe with its overrides, checked."""
    return load(Recipe, path, overrides or [])


def reasons(text: str | None) -> tuple[str, ...] | None:
    """Read `--retry-failed`: None where it was not given, `*` for all."""
    if text is None:
        return None
    return tuple("*" if reason.strip() == "all" else reason.strip() for reason in text.split(","))


def part_of(text: str | None) -> tuple[int, int] | None:
    """Read `--part i/n`."""
    if text is None:
        return None
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and 1 <= int(first) <= int(count)):
        raise UserMistake(f"--part {text} is not of the form i/n with 1 <= i <= n", "e.g. --part 1/4")
    return int(first), int(count)


def check_failed(result: "StepResult", recipe: Recipe) -> None:
    """Raise SightloomError where more rows failed inside than the recipe allows."""
    if result.failed > recipe.score.max_failed * max(1, result.rows_in):
        raise SightloomError(f"{result.failed} rows failed inside", "see the report; score.max_failed allows a share")


def funnel(result: "StepResult") -> Table:
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
