"""The verb history: who moved what, when and why; the proof that the ledger is whole; an anchor where it is not."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sightloom.cli import console
from sightloom.cli.console import DEFAULT_STORE, Store
from sightloom.cli.release import Cache, Json, Reason, actor, cache_folder, existing_store
from sightloom.errors import SightloomError, UserMistake
from sightloom.promotion.history import Check, history, verify
from sightloom.promotion.ledger import Ledger
from sightloom.registry import Registry


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("history")(show)


def show(
    model: Annotated[str, typer.Option(help="Only this model.", show_default="all")] = "",
    prove: Annotated[
        bool,
        typer.Option("--verify", help="Prove chain, reports, aliases and files; exit code 1 if one does not hold."),
    ] = False,
    reanchor: Annotated[
        bool, typer.Option("--reanchor", help="Begin a broken ledger anew from what it still says; needs --reason.")
    ] = False,
    reason: Reason = "",
    store: Store = DEFAULT_STORE,
    cache: Cache = "",
    as_json: Json = False,
) -> None:
    """Show who promoted what, when and why, with the attempts that lost; ends with an error if the chain is broken."""
    uri = existing_store(store)
    if reanchor:
        _reanchor(uri, reason, as_json)
        return
    state = Ledger(uri).read()
    if prove:
        checks = verify(state, Registry(uri), cache_folder(cache))
        result = {"head": state.head, "whole": not any(check.trouble for check in checks)}
        result["checks"] = [asdict(check) for check in checks]
        console.emit(result, as_json, lambda screen: _show_checks(screen, checks))
        if not result["whole"]:
            raise SightloomError("not everything that the ledger rests on holds", "see the lines above")
        return
    lines = history(state, model)
    console.emit({"head": state.head, "events": lines}, as_json, lambda screen: _show_history(screen, lines))


def _reanchor(uri: str, reason: str, as_json: bool) -> None:
    if not reason:
        raise UserMistake("an anchor needs a reason", "sightloom history --reanchor --reason '…'")
    state = Ledger(uri).reanchor(actor(), reason)
    models = {name: its.aliases() for name, its in state.models.items()}
    result = {"head": state.head, "event": state.generation, "models": models}

    def words(screen: Console) -> None:
        screen.print(f"anchored  event {state.generation}  {state.head[:12]}; what the ledger says from now on:")
        for name, aliases in models.items():
            screen.print(f"  {name}: {', '.join(f'{alias} {version}' for alias, version in aliases.items()) or 'none'}")

    console.emit(result, as_json, words)


def _show_checks(screen: Console, checks: list[Check]) -> None:
    for check in checks:
        screen.print(f"{'FAILED' if check.trouble else 'ok':<7} {check.what}", soft_wrap=True)
        if check.trouble:
            screen.print(f"        {check.trouble}", soft_wrap=True)


def _show_history(screen: Console, lines: list[Any]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("event", "when", "who", "what", "version", "outcome", "why"):
        table.add_column(title)
    for line in lines:
        what = f"{line['kind']} {line['args'].get('outcome', '')}".strip()
        outcome = line["outcome"] + (f" ({line['why']})" if line["why"] else "")
        version = f"{line['model']}:{line['version']}" if line["model"] else "all"
        table.add_row(str(line["number"]), line["at"], line["actor"], what, version, outcome, line["reason"])
    screen.print(table if lines else "no events yet")
