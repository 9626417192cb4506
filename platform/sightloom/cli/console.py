"""What every verb prints: results on stdout, errors in words on stderr."""

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from sightloom.errors import SightloomError

DEFAULT_STORE = "sqlite:///.sightloom/mlflow.db"
Store = Annotated[
    str, typer.Option("--store", envvar="MLFLOW_TRACKING_URI", help="MLflow: sqlite:///path or a server's address.")
]


def emit(result: dict[str, Any], as_json: bool, human: Callable[[Console], None]) -> None:
    """Print a result: one JSON object for machines, or what `human` writes for people."""
    if as_json:
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    else:
        human(Console(highlight=False))


def explain(error: SightloomError) -> None:
    """Say an error in words: what and where, then what to do."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("[bold red]error:[/] ", end="")
    console.print(error.message, markup=False)
    if error.hint:
        console.print(f"       {error.hint}", markup=False)
