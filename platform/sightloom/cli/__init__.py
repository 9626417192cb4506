"""The command line: one verb a task, results on stdout, progress on stderr, mistakes in words."""

import contextlib
import importlib
import os
import sys
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

import sightloom
from sightloom.cli import console
from sightloom.config import nearest
from sightloom.errors import SightloomError

# A verb's module is imported when the verb is called: `sightloom --help` need not load torch.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "Raw pairs in, a served reasoning model out: the whole road on this machine."),
    "curate": ("curate", "Filter, deduplicate and shard image-text corpora by a recipe."),
    "score": ("steps", "Curation, step 1: fetch, measure and score what is not committed yet."),
    "dedup": ("steps", "Curation, step 2: find the duplicates among scored rows."),
    "select": ("steps", "Curation, step 3: decide what stays, and why the rest goes."),
    "pack": ("steps", "Curation, step 4: build the shards of what stays."),
    "report": ("steps", "Write the page of a curation: funnel, histograms, pictures around each cut."),
    "gc": ("steps", "Remove leftovers under OUT that no commit names."),
    "fit-scorer": ("curate", "Train a small CLIP filter network on trusted pairs."),
    "verify": ("verify", "Recompute every checksum, count and key of finished shards."),
    "train": ("train", "Train a model through the stages of a curriculum."),
    "merge": ("merge", "Merge models that were trained from one start into one."),
    "evaluate": ("evaluate", "Ask a model the held-out questions of a suite, per domain."),
    "register": ("register", "Make an exported model a version in MLflow."),
    "promote": ("release", "Let a registered version become champion, if it passes the gate."),
    "rollback": ("release", "Make the previous champion the champion again."),
    "abort": ("release", "Take a version back that is not champion yet."),
    "history": ("history", "Show who promoted what, when and why; prove that it is so."),
    "models": ("models", "List, show and verify registered versions."),
    "serve": ("serve", "Serve a model behind an OpenAI-compatible endpoint with a playground."),
    "keys": ("keys", "Make, list and revoke the keys of an endpoint."),
    "submit": ("jobs", "Check a job, pack its code, run it on a Ray cluster and follow it."),
    "jobs": ("jobs", "List, show, follow, stop and retry submitted jobs."),
    "render": ("jobs", "Write a job as a manifest for Kubernetes, a request or a script."),
    "package": ("jobs", "Pack a job's code and put it where a cluster reads it."),
    "infra": ("infra", "Write the generated files of infra/, and check all of it."),
    "up": ("stack", "Start Ray, MLflow, the endpoint and Prometheus on this machine."),
    "status": ("stack", "Show how each part of the local stack stands."),
    "down": ("stack", "End the local stack and everything on it."),
    "ask": ("ask", "Ask a served model about a picture."),
}
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",  # what Ray holds back as a repetition it prints at the very end, after the result, on stdout
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # a checkpoint report costs 2.0 s at Ray's default, 0.11 s at this
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to results
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_DATA_LOG_LEVEL": "WARNING",  # the one progress display is ours
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def prepare_environment() -> None:
    """Set what libraries read from the environment when they start; what the user has set stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class _Verbs(TyperGroup):
    """The verbs, each loaded when it is asked for; errors of ours end in words and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            raise typer.BadParameter(f"no verb '{cmd_name}'{nearest(cmd_name, list(VERBS))}")
        module = importlib.import_module(f"sightloom.cli.{VERBS[cmd_name][0]}")
        app = typer.Typer(add_completion=False)
        app.callback()(_no_options)  # keeps a group of one verb a group
        module.register(app)
        return typer.main.get_group(app).commands[cmd_name]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        page = Console(highlight=False, soft_wrap=True)
        page.print(f"[bold]sightloom[/] {sightloom.__version__}: {(sightloom.__doc__ or '').split(': ', 1)[1]}\n")
        page.print("[bold]usage[/]  sightloom VERB \\[arguments] \\[--json]     sightloom VERB --help\n")
        for verb, (_, words) in VERBS.items():
            page.print(f"  [bold cyan]{verb:<12}[/]{words}")
        page.print("\nResults go to stdout (--json: one object), progress to stderr. Exit codes: 0 done; 1 failed or")
        page.print("incomplete; 2 a mistake in the input; 3 a gate was not passed; 4 another promotion was first; 5 a")
        page.print("canary was taken back; 130 interrupted.")

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SightloomError as error:
            console.explain(error)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            Console(stderr=True).print("interrupted: finished parts are kept; the same command goes on from there")
            raise typer.Exit(130) from error


def _no_options() -> None:
    return None


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"sightloom {sightloom.__version__}")
        raise typer.Exit


cli = typer.Typer(
    cls=_Verbs,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@cli.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    del version


def main() -> None:
    """Run one verb and leave with its exit code."""
    prepare_environment()
    with console.claimed_stdout() if "--json" in sys.argv else contextlib.nullcontext():
        cli(prog_name="sightloom")
