"""The events of the ledger: what is written down when a version moves.

An event names the digest of the last event that its writer had seen accepted (`prev`). That is a compare-and-set: of
two writers who saw the same head, the one whom MLflow numbers first is accepted, the other has lost. It is also a
chain: an event that is edited or deleted later breaks what follows it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from sightloom.config import canonical_json
from sightloom.errors import SightloomError

GENESIS: Final = "0" * 64
MAX_EVENT_BYTES: Final = 16 * 1024
ANCHOR: Final = "anchor"
KINDS: Final = ("evaluate", "verdict", "start", "step", "promote", "rollback", "abort", "retire", "drift")


class LedgerBroken(SightloomError):
    """The ledger was edited or cut: nothing may be changed on its ground, the champion goes on serving."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            "nothing is changed and the champion goes on serving; look at it, then: "
            "sightloom history --reanchor --reason '…'",
        )


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the ledger."""

    id: str
    kind: str
    model: str
    version: int
    args: Mapping[str, Any]
    actor: str
    at: str
    reason: str
    evidence: Mapping[str, str]
    prev: str

    def text(self) -> str:
        """Canonical JSON, the form that is stored and hashed."""
        return canonical_json(asdict(self)).decode()

    @property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return digest_of(self.text())

    @property
    def words(self) -> str:
        """What happened and by whom, e.g. `promote 13 by ann`."""
        return f"{self.kind} {self.version} by {self.actor}"


@dataclass(frozen=True, slots=True)
class Who:
    """Who acts, and why."""

    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A numbered place of the ledger; `text` is None where a stranger put something without an event there."""

    number: int
    text: str | None


def digest_of(text: str) -> str:
    """SHA-256 of an event's stored text."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_event(entry: Entry) -> Event:
    """The event of an entry; raises LedgerBroken where its text is none."""
    try:
        return Event(**json.loads(entry.text or ""))
    except (ValueError, TypeError) as error:
        raise LedgerBroken(f"event {entry.number} cannot be read: {error}") from error
