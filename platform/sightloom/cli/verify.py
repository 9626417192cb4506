"""`sightloom verify`: are finished shards what was written? Needs neither Ray nor torch."""

from typing import Annotated

import typer
from rich.console import Console

from sightloom import storage
from sightloom.cli import console
from sightloom.config import load
from sightloom.data.recipe import Recipe
from sightloom.data.shards.manifest import Manifest, read_manifest
from sightloom.data.shards.verify import verify
from sightloom.errors import SightloomError, UserMistake
from sightloom.progress import terminal_progress


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("verify")
    def verify_verb(
        target: Annotated[str, typer.Argument(help="A recipe, a manifest.json, or the folder that holds it.")],
        overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a recipe's key=value.")] = None,
        deep: Annotated[bool, typer.Option(help="Also read every sample and hash every picture.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    ) -> None:
        """Recompute every checksum, count and key of finished shards.

        sightloom verify pipelines/recipes/photos.yaml --set out=out/photos --deep
        """
        manifest = _of_recipe(target, overrides or []) if target.endswith((".yaml", ".yml")) else read_manifest(target)
        result = verify(manifest, deep, terminal_progress())

        def show(page: Console) -> None:
            for problem in result.problems:
                page.print(f"[red]✗[/] {problem}")
            if not result.problems:
                page.print(f"[green]✓[/] {result.samples} samples in {result.shards} shards are what was written")

        console.emit(result.to_json(), as_json, show)
        if result.problems:
            raise SightloomError(
                f"{len(result.problems)} problems in '{result.manifest}'", "curate again, with --replace"
            )


def _of_recipe(path: str, overrides: list[str]) -> Manifest:
    """Find the shards that a recipe made."""
    recipe = load(Recipe, path, overrides)
    uri = storage.join(recipe.out, "shards", recipe.name, "manifest.json")
    if not storage.exists(uri):
        raise UserMistake(f"there are no finished shards at '{uri}'", f"run this first: sightloom curate {path}")
    return read_manifest(uri)
