"""The verb keys: make, list and revoke the keys of an endpoint; a running one reads a changed file within seconds."""

import datetime
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sightloom.cli import console
from sightloom.cli.release import Json
from sightloom.errors import UserMistake
from sightloom.serving.auth import SCOPES, KeyEntry, Scope, new_key, read_entries

File = Annotated[Path, typer.Option(help="The key file that `sightloom serve --keys` reads; it holds hashes, no keys.")]
DEFAULT_FILE = Path("keys.json")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke the keys of an endpoint.")
    keys.command("create")(create)
    keys.command("list")(list_keys)
    keys.command("revoke")(revoke)
    app.add_typer(keys, name="keys")


def create(
    file: File = DEFAULT_FILE,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="infer, pin (ask a version by name), admin; may be repeated.", show_default="infer"),
    ] = None,
    rpm: Annotated[int, typer.Option(help="Requests a minute; 0: no bound.", min=0)] = 600,
    tpm: Annotated[int, typer.Option(help="Tokens a minute; 0: no bound.", min=0)] = 200_000,
    max_concurrent: Annotated[int, typer.Option(help="Requests at once; 0: no bound.", min=0)] = 32,
    days: Annotated[float | None, typer.Option(help="The key expires after so many days.", min=0)] = None,
    as_json: Json = False,
) -> None:
    """Make a key and show it, this once.

    sightloom keys create --scope infer --scope pin --days 90
    """
    key, made = new_key(_scopes(scope or ["infer"]))
    quotas = {"rpm": rpm or None, "tpm": tpm or None, "max_concurrent": max_concurrent or None}
    entry = made.model_copy(update={**quotas, "expires_at": None if days is None else time.time() + days * 86_400})
    with _changed(file) as entries:
        entries[entry.id] = entry
    result = {"key": key, **_told(entry), "file": str(file)}

    def show(screen: Console) -> None:
        screen.print(f"{key}\n\nkept in {file} as a hash; it is not shown again", soft_wrap=True)
        screen.print(f"next: sightloom serve MODEL --keys {file}   clients: Authorization: Bearer …", soft_wrap=True)

    console.emit(result, as_json, show)


def list_keys(file: File = DEFAULT_FILE, as_json: Json = False) -> None:
    """Show the keys of a file: ids, rights and quotas."""
    told = [_told(entry) for entry in read_entries(file).values()]

    def show(screen: Console) -> None:
        table = Table(box=None, pad_edge=False)
        for title in ("id", "scopes", "requests/min", "tokens/min", "at once", "expires"):
            table.add_column(title)
        for its in told:
            table.add_row(str(its["id"]), " ".join(its["scopes"]), *(  # type: ignore[arg-type]
                "–" if its[name] is None else str(its[name]) for name in ("rpm", "tpm", "max_concurrent", "expires")
            ))  # fmt: skip
        screen.print(table)

    console.emit({"keys": told}, as_json, show)


def revoke(
    id: Annotated[str, typer.Argument(help="The key's id: the eight characters behind `sl-`.", show_default=False)],
    file: File = DEFAULT_FILE,
    as_json: Json = False,
) -> None:
    """Take a key out of the file; a running endpoint refuses it within seconds."""
    with _changed(file, must_exist=True) as entries:
        if entries.pop(id, None) is None:
            raise UserMistake(f"no key '{id}' in '{file}'", f"known: {', '.join(sorted(entries)) or 'none'}")
    console.emit({"revoked": id}, as_json, lambda screen: screen.print(f"revoked {id}"))


@contextmanager
def _changed(file: Path, must_exist: bool = False) -> Iterator[dict[str, KeyEntry]]:
    """The file's entries, written back whole when the block ends well; one at a time, readable by its owner alone."""
    if not file.parent.is_dir():
        raise UserMistake(f"no folder '{file.parent}'", "make it first")
    with open(file.with_name(f".{file.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        entries = read_entries(file) if must_exist or file.exists() else {}
        yield entries
        aside = file.with_name(f".{file.name}.new")
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
            json.dump([entry.model_dump(mode="json") for entry in entries.values()], out, indent=2)
        os.replace(aside, file)


def _scopes(given: list[str]) -> frozenset[Scope]:
    if unknown := [scope for scope in given if scope not in SCOPES]:
        raise UserMistake(f"no scope '{unknown[0]}'", f"known: {', '.join(SCOPES)}")
    return frozenset(scope for scope in SCOPES if scope in given)


def _told(entry: KeyEntry) -> dict[str, object]:
    expires = None
    if entry.expires_at is not None:
        expires = datetime.datetime.fromtimestamp(entry.expires_at, datetime.UTC).isoformat(timespec="seconds")
    return {
        "id": entry.id, "scopes": sorted(entry.scopes), "rpm": entry.rpm, "tpm": entry.tpm,
        "max_concurrent": entry.max_concurrent, "expires": expires,
    }  # fmt: skip
