"""The verb models: list, show and verify registered versions."""

from typing import Annotated, Any

import typer
from rich.console import Console

from sightloom.cli import console
from sightloom.cli.console import DEFAULT_STORE, Store
from sightloom.cli.release import Cache, Json, cache_folder, existing_store, reference
from sightloom.promotion.ledger import Ledger
from sightloom.promotion.reconcile import drift, weight
from sightloom.registry import Registry


def register(app: typer.Typer) -> None:
    """Add the verb."""
    models = typer.Typer(no_args_is_help=True, help="List, show and verify registered versions.")
    models.command("list")(models_list)
    models.command("show")(models_show)
    models.command("verify")(models_verify)
    app.add_typer(models, name="models")


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
    version: Annotated[str, typer.Argument(help="13, name:13, name@champion or name.", show_default=False)],
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Show one version: digest, run, tags, stage, weight and where its files lie."""
    registry = Registry(existing_store(store))
    found = registry.resolve(reference(version))
    its = Ledger(registry.uri).read().model(found.name)
    fields: dict[str, Any] = {
        "version": found.reference, "stage": its.stages.get(found.version, "registered"),
        "weight": weight(its, found.version) / 10_000, "digest": found.digest, "run_id": found.run_id,
        "model_id": found.model_id, "uri": found.uri, "tags": dict(found.tags),
    }  # fmt: skip
    console.emit(fields, as_json, lambda screen: _show_fields(screen, fields))


def models_verify(
    version: Annotated[str, typer.Argument(help="13, name:13, name@champion or name.", show_default=False)],
    store: Store = DEFAULT_STORE,
    cache: Cache = "",
    as_json: Json = False,
) -> None:
    """Recompute the SHA-256 of every file of a version; the error names the first that was changed."""
    registry = Registry(existing_store(store))
    found = registry.resolve(reference(version))
    folder = registry.materialize(found, cache_folder(cache))
    fields: dict[str, Any] = {
        "version": found.reference,
        "digest": found.digest,
        "verified": True,
        "folder": str(folder),
    }
    console.emit(fields, as_json, lambda screen: _show_fields(screen, fields))


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
