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

from sightloom.errors import SightloomError, UserMistake
from sightloom.promotion.events import ANCHOR, MAX_EVENT_BYTES, Entry, Event, LedgerBroken
from sightloom.promotion.fold import Line, State, accepted, anchor_args, fold, mend
from sightloom.promotion.states import why_illegal

LEDGER: Final = "sightloom.ledger"
_SOURCE: Final = "ledger://sightloom/event"  # a server refuses a source without a path
_EVENT_TAG: Final = "sightloom.event"
_HEAD_TAG: Final = "sightloom.head"
_PAGE: Final = 1000
_ATTEMPTS: Final = 10
_RETRIES: Final = 50  # of an event that only lost to events of other models


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
        # The witness is read first: an event that arrives in between can only add to the accepted ones.
        witness = self.tag(_HEAD_TAG)
        return fold(self._entries(), witness)

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

        An event that lost to events after which the version's champion, rivals and own stage are as before is written
        again on top of them.

        Raises:
            LostRace: another event moved one of these first; this attempt stays on record as lost.
            SightloomError: the event is not legal, too large, or MLflow does not answer.
        """
        seen = state
        for _ in range(_RETRIES):
            event = self._event(kind, model, version, actor, reason, args, evidence, seen.head)
            if why := why_illegal(seen.model(model), event):
                raise SightloomError(
                    f"{kind} of {model}:{version} is not possible now: {why}", "see: sightloom history"
                )
            after = self._write(event)
            if after is not None:
                return after
            now = self.read()
            if not now.model(model).same_for(state.model(model), version):
                raise lost_to(now, state.head, model, version, event.at)
            seen = now
        raise LostRace(f"lost {_RETRIES} races for the ledger; nothing was changed", "try again")

    def reanchor(self, actor: str, reason: str) -> State:
        """Begin the fold anew with an event that holds the whole state; raises UserMistake where it is not broken."""
        witness = self.tag(_HEAD_TAG)
        entries = self._entries()
        with contextlib.suppress(LedgerBroken):
            fold(entries, witness)
            raise UserMistake("the ledger is whole: there is nothing to anchor anew", "see: sightloom history --verify")
        state = mend(entries)
        args = anchor_args(state, entries[-1].number if entries else 0, witness)
        event = self._event(ANCHOR, "", 0, actor, reason, args, {}, state.head)
        after = self._write(event)
        if after is None:
            raise LostRace("lost to another anchor; nothing was changed", "see: sightloom history")
        return after

    def tag(self, name: str) -> str:
        """A tag of the ledger itself, empty where it has none; raises SightloomError where MLflow does not answer."""
        try:
            found = self._client.search_registered_models(f"name='{LEDGER}'")
        except MlflowException as error:
            raise SightloomError(f"the ledger in MLflow at {self.uri} cannot be read: {error}") from error
        return str(found[0].tags.get(name, "")) if found else ""

    def head(self) -> str:
        """The witness: a cheap sign that something was written."""
        return self.tag(_HEAD_TAG)

    def set_tag(self, name: str, value: str, attempts: int = _ATTEMPTS) -> None:
        """Set a tag of the ledger itself, which is made where it is not there yet."""
        for attempt in range(attempts):
            try:
                self._client.set_registered_model_tag(LEDGER, name, value)
                return
            except MlflowException as error:
                if attempt == attempts - 1:
                    raise SightloomError(f"MLflow at {self.uri} did not take a tag: {error}") from error
                with contextlib.suppress(MlflowException):
                    self._client.create_registered_model(LEDGER)
                _pause(attempt)

    def _event(
        self,
        kind: str,
        model: str,
        version: int,
        actor: str,
        reason: str,
        args: Mapping[str, Any] | None,
        evidence: Mapping[str, str] | None,
        prev: str,
    ) -> Event:
        return Event(
            uuid.uuid4().hex,
            kind,
            model,
            version,
            dict(args or {}),
            actor,
            self._clock(),
            reason,
            dict(evidence or {}),
            prev,
        )

    def _write(self, event: Event) -> State | None:
        """The ledger after the event was accepted, None if it was not."""
        text = event.text()
        if len(text.encode()) > MAX_EVENT_BYTES:
            raise SightloomError(f"an event of {len(text.encode())} bytes is too large", "shorten the reason")
        self._create(text)
        entries = self._entries()
        after = fold(entries)
        # A create that is repeated after a lost response leaves its text twice: the accepted one counts.
        if not any(line.event is not None and line.event.id == event.id for line in accepted(after.lines)):
            return None
        with contextlib.suppress(SightloomError):  # a lagging witness is still a true one
            self._witness(after.head)
        return after

    def _witness(self, head: str) -> None:
        """Set the witness, and again until no later event is there: of two writers the earlier may set it last."""
        while True:
            self.set_tag(_HEAD_TAG, head)
            now = fold(self._entries(), head)  # raises where the head itself is gone: the witness stays
            if now.head == head:
                return
            head = now.head

    def _entries(self) -> list[Entry]:
        entries: list[Entry] = []
        token = None
        try:
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
        return sorted(entries, key=lambda entry: entry.number)

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
                _pause(attempt)


def lost_to(state: State, head: str, model: str, version: int, at: str) -> LostRace:
    """The error of a writer of `version` who built on `head` at the time `at`: which event came first."""
    lines = accepted(state.lines)
    built_on = next((place for place, line in enumerate(lines) if line.event and line.event.prev == head), None)
    decisive = [line for line in lines[built_on or 0 :] if _decides(line, model, version)]
    line = None if not decisive else decisive[0 if built_on is not None else -1]
    if line is None or line.event is None:
        return LostRace("lost to another event; nothing was changed", "see: sightloom history")
    then, now = (datetime.datetime.fromisoformat(text) for text in (line.event.at, at))
    earlier = max(0, round((now - then).total_seconds()))
    return LostRace(
        f"lost to event {line.number} ({line.event.words}, {earlier} s earlier); nothing was changed",
        "see: sightloom history",
    )


def _decides(line: Line, model: str, version: int) -> bool:
    """Whether an event may have moved what an event of `version` rests on; evaluations of others do not."""
    event = line.event
    if event is None or event.model != model or event.kind == "drift":
        return False
    return event.version == version or event.kind not in ("evaluate", "verdict")


def _pause(attempt: int) -> None:
    time.sleep(random.uniform(0.02, 0.1) * 2 ** min(attempt, 5))
