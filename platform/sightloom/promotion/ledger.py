"""The ledger in MLflow: an event is a model version of `sightloom.ledger`, and MLflow numbers them.

Concurrent creations get distinct numbers and deleted numbers do not return, on sqlite and on a server; that order is
all that the fold needs. It guards against races and accidents, not against an administrator who rewrites all of it.
"""

import contextlib
import datetime
import random
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from sightloom.errors import SightloomError
from sightloom.promotion.states import MAX_EVENT_BYTES, Entry, Event, Line, State, fold, why_illegal

LEDGER = "sightloom.ledger"
_SOURCE: Final = "ledger://sightloom/event"  # a server refuses a source without a path
_EVENT_TAG = "sightloom.event"
_HEAD_TAG = "sightloom.head"
_PAGE = 1000
_ATTEMPTS = 10


class LostRace(SightloomError):
    """Another writer's event came first; nothing was changed by this one."""

    exit_code = 4


def utc_now() -> str:
    """Now, in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class Ledger:
    """Reads and appends events.

    Args:
        uri: MLflow's address.
        clock: gives the time that is written into events.
    """

    def __init__(self, uri: str, clock: Callable[[], str] = utc_now) -> None:
        self.uri = uri
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._clock = clock

    def read(self) -> State:
        """The folded ledger; raises LedgerBroken, or SightloomError where MLflow does not answer."""
        try:
            # The witness is read first: an event that arrives in between can only add to the accepted ones.
            witness = self._witness()
            entries: list[Entry] = []
            token = None
            while True:
                page = self._client.search_model_versions(
                    f"name='{LEDGER}'", max_results=_PAGE, order_by=["version_number ASC"], page_token=token
                )
                entries += [Entry(int(version.version), version.tags.get(_EVENT_TAG)) for version in page]
                token = page.token
                if not token:
                    break
        except MlflowException as error:
            raise SightloomError(f"the ledger in MLflow at {self.uri} cannot be read: {error}") from error
        return fold(sorted(entries, key=lambda entry: entry.number), witness)

    def append(
        self,
        state: State,
        kind: str,
        model: str,
        version: int,
        actor: str,
        reason: str,
        args: Mapping[str, Any] | None = None,
        evidence: Mapping[str, str] | None = None,
    ) -> State:
        """Write one event on top of `state` and return what the ledger says then.

        Raises:
            LostRace: another event came first; this attempt stays on record as lost.
            SightloomError: the event is not legal, too large, or MLflow does not answer.
        """
        event = Event(
            uuid.uuid4().hex,
            kind,
            model,
            version,
            dict(args or {}),
            actor,
            self._clock(),
            reason,
            dict(evidence or {}),
            state.head,
        )
        if why := why_illegal(state.model(model), event):
            raise SightloomError(f"{kind} of {model}:{version} is not possible now: {why}", "see: sightloom history")
        text = event.text()
        if len(text.encode()) > MAX_EVENT_BYTES:
            raise SightloomError(f"an event of {len(text.encode())} bytes is too large", "shorten the reason")
        self._create(text)
        after = self.read()
        # A create that is repeated after a lost response leaves its text twice: the accepted one counts.
        mine = [line for line in after.lines if line.event is not None and line.event.id == event.id]
        if any(line.outcome == "accepted" for line in mine):
            self._witness_is(after.head)
            return after
        raise LostRace(f"lost to {_winner(after, state.head)}; nothing was changed", "see: sightloom history")

    def _create(self, text: str) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                with contextlib.suppress(MlflowException):  # it is there already
                    if attempt or not self._client.search_registered_models(f"name='{LEDGER}'"):
                        self._client.create_registered_model(LEDGER)
                self._client.create_model_version(LEDGER, _SOURCE, tags={_EVENT_TAG: text})
                return
            except MlflowException as error:
                # Refused as a whole (a busy database, two writers with one number): nothing was written.
                if attempt == _ATTEMPTS - 1:
                    raise SightloomError(f"MLflow at {self.uri} did not take the event: {error}") from error
                time.sleep(random.uniform(0.02, 0.1) * 2 ** min(attempt, 5))

    def _witness(self) -> str:
        found = self._client.search_registered_models(f"name='{LEDGER}'")
        return str(found[0].tags.get(_HEAD_TAG, "")) if found else ""

    def _witness_is(self, head: str) -> None:
        with contextlib.suppress(MlflowException):  # a lagging witness is still a true one
            self._client.set_registered_model_tag(LEDGER, _HEAD_TAG, head)


def _winner(state: State, head: str) -> str:
    """The accepted event that follows `head`, in words."""

    def follows(line: Line) -> bool:
        return line.outcome == "accepted" and line.event is not None and line.event.prev == head

    line = next(filter(follows, state.lines))
    assert line.event is not None
    return f"event {line.number} ({line.event.kind} {line.event.model}:{line.event.version} by {line.event.actor})"
