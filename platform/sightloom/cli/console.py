"""What every verb prints: results on stdout, errors in words on stderr."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, TextIO

import typer
from rich.console import Console

from sightloom.errors import SightloomError

LOCAL: Final = "local"  # as runtime.LOCAL, whose module loads Ray
PAGE_WIDTH = 120  # of what is printed into a pipe or a file
DEFAULT_STORE = "sqlite:///.sightloom/mlflow.db"
Store = Annotated[
    str, typer.Option("--store", envvar="MLFLOW_TRACKING_URI", help="MLflow: sqlite:///path or a server's address.")
]

Ray = Annotated[
    str,
    typer.Option("--ray", envvar="RAY_ADDRESS", help="Ray: 'local' starts one here, 'auto' or an address joins one."),
]
EnginePython = Annotated[
    str | None, typer.Option("--engine-python", help="Python of an environment with vLLM, where this one has none.")
]
EngineKey = Annotated[str | None, typer.Option("--engine-key", help="File with the key of the vLLM server at a URL.")]
EngineArg = Annotated[
    list[str] | None,
    typer.Option("--engine-arg", help="An option of vLLM, e.g. tensor-parallel-size=2; may be repeated."),
]

_claimed: list[TextIO] = []


@contextlib.contextmanager
def claimed_stdout() -> Iterator[None]:
    """Keep stdout for the result alone: what libraries print meanwhile (Ray's workers, say) goes to stderr."""
    _claimed.append(sys.stdout)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = _claimed.pop()


def emit(result: dict[str, Any], as_json: bool, human: Callable[[Console], None]) -> None:
    """Print a result: one JSON object for machines, or what `human` writes for people."""
    if as_json:
        stream = _claimed[-1] if _claimed else sys.stdout
        stream.write(json.dumps(result, ensure_ascii=False) + "\n")
        stream.flush()
    else:
        human(Console(highlight=False, width=None if sys.stdout.isatty() else PAGE_WIDTH))


def explain(error: SightloomError) -> None:
    """Say an error in words: what and where, then what to do."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("[bold red]error:[/] ", end="")
    console.print(error.message, markup=False)
    if error.hint:
        console.print(f"       {error.hint}", markup=False)
