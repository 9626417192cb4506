"""The verb evaluate."""

import os
import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from sightloom.cli import console
from sightloom.cli.console import DEFAULT_STORE, EngineArg, EngineKey, EnginePython, Store
from sightloom.cli.release import Cache, be_patient, cache_folder, existing_store
from sightloom.demo.corpus.examples import GENERATORS
from sightloom.errors import UserMistake
from sightloom.evaluation.evaluate import Evaluated, Target, run
from sightloom.evaluation.result import Identity, Measure
from sightloom.evaluation.tracked import track
from sightloom.model.load import fetch
from sightloom.progress import terminal_progress
from sightloom.registry import Registry
from sightloom.serving.engines.choice import make_engine
from sightloom.serving.engines.settings import engine_settings
from sightloom.serving.listening import running
from sightloom.store_address import normalized_uri

_REGISTERED: Final = re.compile(r"[a-z0-9][a-z0-9_-]*(:\d+|@[a-z]+)")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("evaluate")(evaluate)


def evaluate(
    suite: Annotated[str, typer.Argument(help="Suite, e.g. pipelines/suites/heldout.yaml.", show_default=False)],
    checkpoint: Annotated[
        str, typer.Option(help="Model folder, hub id, s3:// address or NAME:13, NAME@champion.", show_default=False)
    ] = "",
    endpoint: Annotated[
        str, typer.Option(help="OpenAI-compatible address instead; its key in SIGHTLOOM_API_KEY.", show_default=False)
    ] = "",
    model: Annotated[str, typer.Option(help="Model to ask for at the endpoint.", show_default="the only one")] = "",
    manifest: Annotated[str, typer.Option(help="manifest.json of curated shards.", show_default=False)] = "",
    out: Annotated[
        str, typer.Option(help="Folder for report.html, rows.jsonl and result.json.", show_default="nothing is written")
    ] = "",
    serve: Annotated[
        bool, typer.Option("--serve", help="Ask --checkpoint through a private endpoint, as it will be served.")
    ] = False,
    engine: Annotated[
        str, typer.Option(help="With --serve: transformers, vllm, or the URL of a vLLM server that you run.")
    ] = "transformers",
    engine_python: EnginePython = None,
    engine_key: EngineKey = None,
    engine_arg: EngineArg = None,
    dtype: Annotated[str, typer.Option(help="With --serve: float32, bfloat16 or float16; auto with vLLM.")] = "float32",
    device: Annotated[str, typer.Option(help="With --serve: cpu or cuda; vLLM finds its device itself.")] = "cpu",
    best_of: Annotated[
        int, typer.Option(min=1, help="Sample so many answers; the reward model chooses.", show_default=False)
    ] = 1,
    reward_model: Annotated[str, typer.Option(help="Export of an rm stage.", show_default=False)] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the suite, e.g. decoding.thinking=true."),
    ] = None,
    store: Store = DEFAULT_STORE,
    no_track: Annotated[bool, typer.Option("--no-track", help="Keep rows, result and report out of MLflow.")] = False,
    cache: Cache = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask a model the questions of a suite and measure it per domain, with confidence intervals and chance levels.

    Rows, result and report are kept as a run of MLflow, and the figures at the version if it is a registered one.

    sightloom evaluate pipelines/suites/core.yaml --checkpoint sightloom@champion --serve --engine vllm
    """
    key = os.environ.get("SIGHTLOOM_API_KEY", "")
    target = Target(checkpoint, endpoint, model, key, best_of, reward_model)
    if serve and (not checkpoint or reward_model):
        raise UserMistake("--serve asks --checkpoint through an endpoint, once a question: give it, without --best-of")
    settings = engine_settings(engine, engine_python, engine_key, engine_arg or [], 0, dtype, device)
    if not serve and (engine, dtype, device) != ("transformers", "float32", "cpu"):
        raise UserMistake("--engine, --dtype and --device say how --checkpoint is served", "add --serve")
    uri = "" if no_track else normalized_uri(store)
    target = _registered(target, store, cache)
    with ExitStack() as held:
        address = ""
        if serve:
            folder = fetch(target.checkpoint)
            address = held.enter_context(running(lambda: make_engine(folder, "private", settings))).address
        done = run(suite, target, manifest or None, out or None, set_ or [], terminal_progress(), address, GENERATORS)
    run_id = ""
    if uri:
        be_patient()
        run_id = track(uri, done)
    console.emit(done.result.to_json() | {"run_id": run_id}, as_json, lambda screen: _show(screen, done, out, run_id))


def _registered(target: Target, store: str, cache: str) -> Target:
    """A checkpoint such as `sightloom:3` with its folder, its files verified; any other target as it is."""
    if not _REGISTERED.fullmatch(target.checkpoint) or Path(target.checkpoint).exists():
        return target
    registry = Registry(existing_store(store))
    version = registry.resolve(target.checkpoint)
    folder = registry.materialize(version, cache_folder(cache))
    who = Identity(version.name, str(version.version), version.digest)
    return replace(target, checkpoint=str(folder), known=who)


def _show(screen: Console, done: Evaluated, out: str, run_id: str) -> None:
    result = done.result
    table = Table(box=None, pad_edge=False)
    for title in ("domain", "metric", "value", "95 % interval", "n", "constant answer", "needs steps"):
        table.add_column(title, justify="left" if title in ("domain", "metric") else "right")
    for name, domain in result.domains.items():
        steps = _percent(domain.needs_steps.value) if domain.needs_steps else "–"
        table.add_row(name, *_cells(domain), _percent(domain.chance_constant), steps)
        for measure in domain.metrics.values():
            if measure.metric not in (domain.metric, "score", "relaxed_accuracy"):
                table.add_row("", *_cells(measure), "", "")
    steps = _percent(result.needs_steps.value) if result.needs_steps else "–"
    table.add_row("all", *_cells(result.overall), _percent(result.chance_constant), steps, style="bold")
    for name, its in result.imported.items():
        for measure in its.values():
            table.add_row(f"{name} (imported)", *_cells(measure, percent=False), "", "", style="dim")
    screen.print(table)
    shares = "     ".join(f"{name.replace('_', ' ')}  {_percent(its.value)}" for name, its in result.format.items())
    screen.print(f"\n{shares}     errors  {result.errors}")
    for speed in result.perf:
        screen.print(
            f"{speed.clients} clients  {speed.tokens_per_s:.0f} tokens/s  TTFT p95 {1000 * speed.ttft_p95_s:.0f} ms  "
            f"TPOT p95 {1000 * speed.tpot_p95_s:.1f} ms  ({speed.n} requests, {speed.errors} errors)"
        )
    if out:
        screen.print(f"report  {out}/report.html", soft_wrap=True)
    if run_id:
        screen.print(f"MLflow  run {run_id}", soft_wrap=True)
    if not out and not run_id:
        screen.print("next: the same with --out DIR writes a report with pictures, thinking and answers")


def _cells(measure: Measure, percent: bool = True) -> tuple[str, str, str, str]:
    low, high = measure.ci
    if percent and measure.metric not in ("cider", "clip_score"):
        return measure.metric, _percent(measure.value), f"{_percent(low)} – {_percent(high)}", str(measure.n)
    return measure.metric, f"{measure.value:.3f}", f"{low:.3f} – {high:.3f}", str(measure.n)


def _percent(value: float) -> str:
    return f"{value:.1%}"
