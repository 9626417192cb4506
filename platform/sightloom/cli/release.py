"""The verbs promote, rollback, history and models."""

import getpass
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sightloom.cli import console
from sightloom.cli.console import DEFAULT_STORE, Store
from sightloom.config import load
from sightloom.demo.corpus.examples import GENERATORS
from sightloom.errors import UserMistake
from sightloom.evaluation.gate import GateRules
from sightloom.evaluation.suites import Suite, read_suite
from sightloom.progress import Progress, terminal_progress
from sightloom.promotion import release
from sightloom.promotion.decide import check_candidate
from sightloom.promotion.ledger import Ledger
from sightloom.promotion.reconcile import drift
from sightloom.registry import Registry
from sightloom.tracking import MlflowTracker, normalized_uri

Reason = Annotated[str, typer.Option(help="Why; kept in the ledger.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Cache = Annotated[
    str,
    typer.Option(help="Folder for downloaded versions.", envvar="SIGHTLOOM_CACHE", show_default="~/.cache/sightloom"),
]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("promote")(promote)
    app.command("rollback")(rollback)
    app.command("history")(history)
    models = typer.Typer(no_args_is_help=True, help="List, show and verify registered versions.")
    models.command("list")(models_list)
    models.command("show")(models_show)
    models.command("verify")(models_verify)
    app.add_typer(models, name="models")


def promote(
    version: Annotated[str, typer.Argument(help="Version, e.g. sightloom:13.", show_default=False)],
    gate: Annotated[str, typer.Option(help="Rules of the gate.")] = "pipelines/gates/release.yaml",
    manifest: Annotated[str, typer.Option(help="manifest.json of curated shards.", show_default=False)] = "",
    reason: Reason = "",
    override: Annotated[
        bool, typer.Option("--override", help="Promote whatever the gate says; needs --reason.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask and decide, but leave the ledger alone.")] = False,
    store: Store = DEFAULT_STORE,
    cache: Cache = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the gate.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a version beside the champion, ask the gate, and make it champion if it passes (exit code 3 if not)."""
    if override and not reason:
        raise UserMistake("an override needs a reason", "--override --reason '…'")
    progress = terminal_progress()
    found, evidence = judge(version, gate, manifest, store, cache, set_ or [], progress)
    registry, ledger = Registry(normalized_uri(store)), Ledger(normalized_uri(store))
    if dry_run:
        state = ledger.read()
        its = state.model(found.name)
        result = release.Release(
            found.name, found.version, its.champion, its.previous, (), state.head, evidence.decision, evidence.run_id
        )
    else:
        result = release.promote(registry, ledger, found, evidence, release.Who(_actor(), reason), override)
    console.emit(result.to_json(), as_json, lambda screen: _show_release(screen, result, dry_run))


def judge(
    version: str, gate: str, manifest: str, store: str, cache: str, overrides: list[str], progress: Progress
) -> tuple[Any, release.Evidence]:
    """Resolve a version, read the gate and its suite, and gather the evidence."""
    uri = existing_store(store)
    rules = load(GateRules, gate, overrides)
    suite = load(Suite, Path(gate).parent / rules.suites)
    registry = Registry(uri)
    found = registry.resolve(version)
    state = Ledger(uri).read().model(found.name)
    check_candidate(state, found.version)
    with progress.step("read suite"):
        examples = read_suite(suite, manifest or None, GENERATORS)
    tracker = MlflowTracker(uri, "gates")
    evidence = release.gather(registry, state, found, rules, examples, cache_folder(cache), tracker, progress)
    return found, evidence


def rollback(
    model: Annotated[str, typer.Argument(help="Model.")] = "sightloom",
    reason: Reason = "",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Make the previous champion the champion again, without asking the gate."""
    if not reason:
        raise UserMistake("a rollback needs a reason", "sightloom rollback --reason '…'")
    uri = existing_store(store)
    result = release.rollback(Registry(uri), Ledger(uri), model, release.Who(_actor(), reason))
    console.emit(result.to_json(), as_json, lambda screen: _show_release(screen, result, False))


def history(
    model: Annotated[str, typer.Option(help="Only this model.", show_default="all")] = "",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Show who promoted what, when and why, with the attempts that lost; ends with an error if the chain is broken."""
    state = Ledger(existing_store(store)).read()
    lines = release.history(state, model)
    console.emit({"head": state.head, "events": lines}, as_json, lambda screen: _show_history(screen, lines))


def models_list(store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """List registered models with their champion and number of versions."""
    registry = Registry(existing_store(store))
    ledger = Ledger(registry.uri).read()
    entries = []
    for name in registry.names():
        its, aliases = ledger.model(name), registry.aliases(name)
        count = len(registry.versions(name))
        entries.append({"name": name, "versions": count, "aliases": aliases, "drift": sorted(drift(its, aliases))})
    console.emit({"models": entries}, as_json, lambda screen: _show_models(screen, entries))


def models_show(
    version: Annotated[str, typer.Argument(help="name:13, name@champion or name.", show_default=False)],
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Show one version: digest, run, tags, stage and where its files lie."""
    registry = Registry(existing_store(store))
    found = registry.resolve(version)
    stage = Ledger(registry.uri).read().model(found.name).stages.get(found.version, "registered")
    fields: dict[str, Any] = {
        "version": found.reference, "stage": stage, "digest": found.digest, "run_id": found.run_id,
        "model_id": found.model_id, "uri": found.uri, "tags": dict(found.tags),
    }  # fmt: skip
    console.emit(fields, as_json, lambda screen: _show_fields(screen, fields))


def models_verify(
    version: Annotated[str, typer.Argument(help="name:13, name@champion or name.", show_default=False)],
    store: Store = DEFAULT_STORE,
    cache: Cache = "",
    as_json: Json = False,
) -> None:
    """Recompute the SHA-256 of every file of a version; the error names the first that was changed."""
    registry = Registry(existing_store(store))
    found = registry.resolve(version)
    folder = registry.materialize(found, cache_folder(cache))
    fields: dict[str, Any] = {
        "version": found.reference,
        "digest": found.digest,
        "verified": True,
        "folder": str(folder),
    }
    console.emit(fields, as_json, lambda screen: _show_fields(screen, fields))


def existing_store(store: str) -> str:
    """A store's address; an sqlite file must be there: reading must not make an empty one."""
    path = store.removeprefix("sqlite:///")
    if path != store and not Path(path).expanduser().is_file():
        raise UserMistake(f"no MLflow store at '{path}'", "give --store sqlite:///path, or MLFLOW_TRACKING_URI")
    return normalized_uri(store)


def cache_folder(cache: str) -> Path:
    """The folder for downloaded versions."""
    return Path(cache).expanduser() if cache else Path.home() / ".cache" / "sightloom" / "versions"


def _actor() -> str:
    return os.environ.get("SIGHTLOOM_ACTOR") or getpass.getuser()


def _show_release(screen: Console, result: release.Release, dry_run: bool) -> None:
    if result.decision is not None:
        screen.print(f"gate      {result.decision.outcome}")
        for name, found in result.decision.domains.items():
            delta = "" if found.delta is None else f"  {100 * found.delta:+.1f}"
            screen.print(f"  {name:<10} {found.value:6.1%} n={found.n:<4}{delta}  {found.verdict}: {found.reason}")
        screen.print(f"report    run {result.run_id}, report.html")
    if dry_run:
        screen.print(f"champion  {result.champion or 'none'} (unchanged: --dry-run)")
        return
    before = "" if result.previous is None else f" (was {result.previous})"
    number = result.events[-1] if result.events else "–"
    screen.print(f"champion  {result.model}:{result.champion}{before}   event {number}  {result.head[:12]}")
    if result.previous is not None:
        screen.print(f"back:     sightloom rollback {result.model} --reason …")


def _show_history(screen: Console, lines: list[Any]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("event", "when", "who", "what", "version", "outcome", "why"):
        table.add_column(title)
    for line in lines:
        what = f"{line['kind']} {line['args'].get('outcome', '')}".strip()
        outcome = line["outcome"] + (f" ({line['why']})" if line["why"] else "")
        version = f"{line['model']}:{line['version']}"
        table.add_row(str(line["number"]), line["at"], line["actor"], what, version, outcome, line["reason"])
    screen.print(table if lines else "no events yet")


def _show_models(screen: Console, entries: list[Any]) -> None:
    for entry in entries:
        aliases = (
            ", ".join(f"{alias} → {number}" for alias, number in sorted(entry["aliases"].items())) or "no champion"
        )
        moved = f"   aliases moved by hand: {', '.join(entry['drift'])}" if entry["drift"] else ""
        screen.print(f"{entry['name']:<20} {entry['versions']} versions   {aliases}{moved}")
    if not entries:
        screen.print("no models yet; `sightloom demo` registers one")


def _show_fields(screen: Console, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if isinstance(value, dict):
            for key, inner in sorted(value.items()):
                screen.print(f"{name}.{key}  {inner}", soft_wrap=True)
        else:
            screen.print(f"{name:<10} {value}", soft_wrap=True)
