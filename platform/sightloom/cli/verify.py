"""`sightloom verify`: are finished shards what was written? Needs neither Ray nor torch."""

from typing import Annotated

import typer
from rich.console import Console

from sightloom.cli import console
from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.verify import verify
from sightloom.errors import SightloomError
from sightloom.progress import terminal_progress


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("verify")
    def verify_verb(
        manifest: Annotated[str, typer.Argument(help="A manifest.json, or the folder that holds it.")],
        deep: Annotated[bool, typer.Option(help="Also read every sample and hash every picture.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    ) -> None:
        """Recompute every checksum, count and key of finished shards.

        sightloom verify out/photos/shards/photos --deep
        """
        result = verify(read_manifest(manifest), deep, terminal_progress())

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
