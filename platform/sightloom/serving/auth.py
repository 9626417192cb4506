"""API keys: who calls and what they may do (serving.md §6).

The key file is a JSON list of entries; it holds hashes, never keys. Without a key file everybody may call: allowed only
where the endpoint listens on loopback (`deploy` and `sightloom serve` refuse anything else).
"""

import contextlib
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from sightloom.config import Frozen
from sightloom.errors import UserMistake
from sightloom.serving.errors import ApiError

Scope = Literal["infer", "pin", "admin"]
SCOPES: Final[tuple[Scope, ...]] = ("infer", "pin", "admin")
_KEY: Final = re.compile(r"sl-([A-Za-z0-9]{8})-[A-Za-z0-9_-]{43}")
_RELOAD_S: Final = 1.0
_log = logging.getLogger(__name__)


class KeyEntry(Frozen):
    """One key: its hash, its rights and its quotas (per minute; None = no bound)."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9]{8}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: frozenset[Scope] = frozenset({"infer"})
    rpm: Annotated[int, Field(ge=1)] | None = 600
    tpm: Annotated[int, Field(ge=1)] | None = 200_000
    max_concurrent: Annotated[int, Field(ge=1)] | None = 32
    expires_at: float | None = None


ANYBODY: Final = KeyEntry(
    id="loopback", sha256="0" * 64, scopes=frozenset({"infer", "pin", "admin"}), rpm=None, tpm=None, max_concurrent=None
)
_ENTRIES: Final = TypeAdapter(list[KeyEntry])


class KeyRing:
    """The keys of a file; a changed file is read again within a second, a broken one leaves the old keys in force."""

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        self._checked = time.monotonic()
        self._stamp = 0
        self._entries: dict[str, KeyEntry] = {}
        if self._path is not None:
            self._entries = self._read(self._path)

    def identify(self, authorization: str | None) -> KeyEntry:
        """Whose request it is.

        Raises:
            ApiError: 401 `invalid_api_key` or `expired_api_key`.
        """
        if self._path is None:
            return ANYBODY
        self._reload(self._path)
        scheme, _, key = (authorization or "").partition(" ")
        match = _KEY.fullmatch(key.strip()) if scheme.lower() == "bearer" else None
        entry = self._entries.get(match[1]) if match else None
        given = hashlib.sha256(key.strip().encode()).hexdigest()
        if entry is None or not hmac.compare_digest(given, entry.sha256):
            raise ApiError(401, "invalid_api_key", "a valid key is needed: send 'Authorization: Bearer sl-…'")
        if entry.expires_at is not None and entry.expires_at <= time.time():
            raise ApiError(401, "expired_api_key", f"the key '{entry.id}' has expired")
        return entry

    def _reload(self, path: Path) -> None:
        now = time.monotonic()
        if now - self._checked < _RELOAD_S:
            return
        self._checked = now
        try:
            if path.stat().st_mtime_ns != self._stamp:
                self._entries = self._read(path)
        except (UserMistake, OSError):
            _log.exception("the key file cannot be read; the keys read before stay in force")

    def _read(self, path: Path) -> dict[str, KeyEntry]:
        with contextlib.suppress(OSError):
            self._stamp = path.stat().st_mtime_ns
        return read_entries(path)


def read_entries(path: Path) -> dict[str, KeyEntry]:
    """The entries of a key file, by id.

    Raises:
        UserMistake: it cannot be read.
    """
    try:
        entries = _ENTRIES.validate_python(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no list of keys"
        raise UserMistake(
            f"the key file '{path}' cannot be read: {why}",
            "`sightloom keys create` makes one: a list of id, sha256, scopes, rpm, tpm, max_concurrent, expires_at",
        ) from error
    return {entry.id: entry for entry in entries}


def require(entry: KeyEntry, scope: Scope) -> None:
    """Check a right.

    Raises:
        ApiError: 403 `insufficient_scope`.
    """
    if scope not in entry.scopes:
        raise ApiError(403, "insufficient_scope", f"the key '{entry.id}' lacks the scope '{scope}'")


def new_key(scopes: frozenset[Scope] = frozenset({"infer"})) -> tuple[str, KeyEntry]:
    """Make a key, to be shown once, and the entry that goes into the key file."""
    identity = secrets.token_hex(4)
    key = f"sl-{identity}-{secrets.token_urlsafe(32)}"
    return key, KeyEntry(id=identity, sha256=hashlib.sha256(key.encode()).hexdigest(), scopes=scopes)
