"""Watching the release manager from outside: its heartbeat in MLflow, and a canary until it ends."""

import datetime
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sightloom.errors import SightloomError
from sightloom.progress import NullProgress, Progress
from sightloom.promotion.fold import State, accepted
from sightloom.promotion.ledger import Ledger

HEARTBEAT: Final = "sightloom.manager"
HEARTBEAT_S: Final = 30.0  # an older one is of a manager that hangs or was killed: nobody knows what is live
_PATIENCE_S: Final = 60.0
_LOOK_S: Final = 1.0


class ManagerSilent(SightloomError):
    """A release manager serves from this ledger, or did until it was killed, and has not spoken for a while."""


class CanaryAborted(SightloomError):
    """The challenger was taken back; the champion is unchanged."""

    exit_code = 5


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What the manager said last.

    `age_s`: how long ago. `endpoint`: where it serves, empty if on every address. `gone`: it was ended together with
    what it served.
    """

    age_s: float
    generation: int
    settled: bool
    error: str
    models: Mapping[str, Any]
    endpoint: str = ""
    gone: bool = False

    @property
    def alive(self) -> bool:
        """Whether there is a manager that ticks."""
        return not self.gone and self.age_s <= HEARTBEAT_S


def heartbeat(ledger: Ledger) -> Heartbeat | None:
    """The manager's last heartbeat; None where there has never been one."""
    text = ledger.tag(HEARTBEAT)
    if not text:
        return None
    said = json.loads(text)
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(said["at"])
    return Heartbeat(
        age.total_seconds(),
        said["generation"],
        said["settled"],
        said["error"],
        said["models"],
        said.get("endpoint", ""),
        said.get("gone", False),
    )


def manager(ledger: Ledger, progress: Progress | None = None, patience_s: float = _PATIENCE_S) -> Heartbeat | None:
    """The release manager that serves from this ledger; None where nothing does: there never was one, or it was ended.

    A tick may take long, and while MLflow is away no heartbeat arrives: for one that is late is waited.

    Raises:
        ManagerSilent: it does not come. What is promoted then might go live without its canary.
    """
    found = heartbeat(ledger)
    if found is None or found.gone or found.alive:
        return found if found is not None and found.alive else None
    until = time.monotonic() + patience_s
    with (progress or NullProgress()).step("wait for the release manager"):
        while found is not None and not (found.gone or found.alive):
            if time.monotonic() > until:
                raise ManagerSilent(
                    f"the release manager has not spoken for {found.age_s:.0f} s; what it serves may go on serving",
                    "start it again (sightloom up, or sightloom serve --follow); where nothing serves from this store, "
                    "sightloom promote --unserved",
                )
            time.sleep(_LOOK_S / 2)
            found = heartbeat(ledger)
    return None if found is None or found.gone else found


def follow(ledger: Ledger, model: str, version: int, show: Callable[[Mapping[str, Any]], None]) -> State:
    """Wait until a challenger is champion and its weight is live.

    Args:
        show: called with the manager's figures of the canary whenever they change.

    Raises:
        CanaryAborted: it was taken back; the message says why and on what figures.
        SightloomError: the manager is gone, or the plan ends without `auto`.
    """
    shown: Any = None
    silent_since = time.monotonic()
    while True:
        state = ledger.read()
        stage = state.model(model).stages.get(version, "")
        if stage == "champion":
            return settle(ledger, state)
        if stage != "challenger":
            raise _ended(state, model, version, stage)
        beat = heartbeat(ledger)
        if beat is not None and beat.alive:
            silent_since = time.monotonic()
            figures = beat.models.get(model)
            if figures is not None and figures != shown and figures.get("challenger") == version:
                shown = figures
                show(figures)
        elif time.monotonic() - silent_since > _PATIENCE_S:
            raise SightloomError(
                f"no release manager has spoken for {_PATIENCE_S:g} s: the canary of {model}:{version} stands still",
                "it goes on when the manager runs again; sightloom abort takes it back",
            )
        its = state.model(model)
        if its.trial.done and not its.trial.auto:
            raise SightloomError(
                f"the canary of {model}:{version} is done, and its plan leaves the last step to a person",
                f"sightloom promote {model}:{version}",
            )
        time.sleep(_LOOK_S)


def settle(ledger: Ledger, state: State, patience_s: float = _PATIENCE_S) -> State:
    """Wait until the manager has made live what `state` says; returns `state`, at once where nothing serves.

    Raises:
        SightloomError: it did not within a minute, or there was a manager that does not speak any more.
    """
    until = time.monotonic() + patience_s
    while (beat := heartbeat(ledger)) is not None and not beat.gone:
        if beat.alive and beat.settled and beat.generation >= state.generation:
            break
        if time.monotonic() > until:
            raise _not_live(beat, patience_s)
        time.sleep(_LOOK_S / 2)
    return state


def _not_live(beat: Heartbeat, patience_s: float) -> SightloomError:
    if beat.alive:
        return SightloomError(
            f"the ledger says so, but it is not live after {patience_s:g} s: {beat.error or 'an app is not up yet'}",
            "the manager goes on trying; see: sightloom history",
        )
    return ManagerSilent(
        f"the ledger says so, but nobody knows that it is live: the release manager has not spoken for "
        f"{beat.age_s:.0f} s",
        "start it again (sightloom up, or sightloom serve --follow): it makes live what the ledger says; where nothing "
        "serves, --no-wait",
    )


def _ended(state: State, model: str, version: int, stage: str) -> SightloomError:
    for line in reversed(accepted(state.lines)):
        event = line.event
        if event is not None and (event.model, event.version) == (model, version):
            figures = "; ".join(f"{who}: {event.evidence[who]}" for who in ("challenger", "champion") if
                                who in event.evidence)  # fmt: skip
            return CanaryAborted(
                f"{model}:{version} was taken back by {event.actor} (event {line.number}, {event.kind}): {event.reason}"
                + (f" [{figures}]" if figures else ""),
                "the champion is unchanged; see: sightloom history",
            )
    return SightloomError(f"{model}:{version} is {stage or 'not registered in the ledger'}", "see: sightloom history")
