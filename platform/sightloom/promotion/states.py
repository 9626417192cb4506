"""The states of a version and the fold of the ledger: pure.

An event names the digest of the last event that its writer had seen accepted (`prev`). That is a compare-and-set: of
two writers who saw the same head, the one whom MLflow numbers first is accepted, the other has lost. It is also a
chain: an event that is edited or deleted later breaks what follows it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from sightloom.config import canonical_json
from sightloom.errors import SightloomError

GENESIS = "0" * 64
MAX_EVENT_BYTES = 16 * 1024
KINDS = ("evaluate", "verdict", "start", "step", "promote", "rollback", "abort", "retire", "drift")


class LedgerBroken(SightloomError):
    """The ledger was edited or cut: nothing may be changed on its ground, the champion goes on serving."""


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
        return hashlib.sha256(self.text().encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """A numbered place of the ledger; `text` is None where a stranger put something without an event there."""

    number: int
    text: str | None


@dataclass(frozen=True, slots=True)
class ModelState:
    """Where the versions of one model stand.

    A version's stage is evaluating, passed, rejected, inconclusive, challenger, champion, previous, retired or aborted.
    """

    stages: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    plan: tuple[Mapping[str, Any], ...] = ()
    step: int = 0

    def holder(self, stage: str) -> int | None:
        """The one version in a stage that only one can hold."""
        return next((version for version, its in self.stages.items() if its == stage), None)

    @property
    def champion(self) -> int | None:
        """The version that serves."""
        return self.holder("champion")

    @property
    def previous(self) -> int | None:
        """The version that a rollback brings back."""
        return self.holder("previous")

    @property
    def challenger(self) -> int | None:
        """The version on trial."""
        return self.holder("challenger")

    def aliases(self) -> dict[str, int]:
        """What MLflow's aliases must be."""
        named = {"champion": self.champion, "challenger": self.challenger, "previous": self.previous}
        return {alias: version for alias, version in named.items() if version is not None}


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one entry: accepted, lost (a race), illegal (refused by the rules) or foreign (no event)."""

    number: int
    event: Event | None
    outcome: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """The whole ledger, folded. `accepted` holds the digests of all accepted events."""

    head: str = GENESIS
    models: Mapping[str, ModelState] = field(default_factory=lambda: MappingProxyType({}))
    lines: tuple[Line, ...] = ()
    accepted: frozenset[str] = frozenset()

    def model(self, name: str) -> ModelState:
        """The state of one model; empty for one that the ledger does not know."""
        return self.models.get(name, ModelState())


def fold(entries: Sequence[Entry], witness: str = "") -> State:
    """Replay the ledger.

    Args:
        entries: all places, in order of their numbers.
        witness: digest of an event that is known to have been accepted (MLflow's tag `sightloom.head`).

    Raises:
        LedgerBroken: a number is missing, a text is no event, or an event follows (or the witness names) one that is
            not there.
    """
    state = State(accepted=frozenset({GENESIS}))
    for place, entry in enumerate(entries, start=1):
        if entry.number != place:
            raise LedgerBroken(f"the ledger's event {place} is missing (the next is {entry.number})")
        state = _add(state, entry)
    if witness and witness not in state.accepted:
        raise LedgerBroken(f"the ledger does not hold its last known event {witness[:12]}…: it was edited or cut")
    return state


def why_illegal(state: ModelState, event: Event) -> str:
    """Why an event may not happen now, empty if it may."""
    stage = state.stages.get(event.version, "")
    override = bool(event.args.get("override"))
    if override and not event.reason:
        return "an override needs a reason"
    match event.kind:
        case "evaluate":
            return f"version {event.version} is {stage}" if stage in ("champion", "challenger", "previous") else ""
        case "verdict":
            known = event.args.get("outcome") in ("passed", "rejected", "inconclusive")
            return "" if stage == "evaluating" and known else f"version {event.version} is not under evaluation"
        case "start":
            if state.challenger is not None:
                return f"version {state.challenger} is the challenger"
            free = override and stage not in ("champion", "previous")
            return "" if stage == "passed" or free else f"version {event.version} has not passed ({stage or 'new'})"
        case "step":
            ready = stage == "challenger" and state.step < len(state.plan)
            return "" if ready else f"version {event.version} has no step left to take"
        case "promote":
            done = stage == "challenger" and (state.step >= len(state.plan) or override)
            first = stage == "passed" and state.champion is None
            return "" if done or first else f"version {event.version} is {stage or 'new'} and may not be promoted"
        case "rollback":
            return "" if state.previous == event.version else "there is no such previous champion"
        case "abort":
            return "" if stage in ("evaluating", "challenger") else f"version {event.version} is not on trial"
        case "retire":
            held = stage in ("champion", "challenger") or not stage
            return f"version {event.version} is {stage or 'new'}" if held else ""
        case "drift":
            return ""
    return f"unknown kind '{event.kind}'"


def _add(state: State, entry: Entry) -> State:
    if entry.text is None:
        return replace(state, lines=(*state.lines, Line(entry.number, None, "foreign", "no event")))
    event = _read(entry)
    digest = hashlib.sha256(entry.text.encode()).hexdigest()
    if event.prev not in state.accepted:
        raise LedgerBroken(f"event {entry.number} follows {event.prev[:12]}…, which is not in the ledger")
    if event.prev != state.head:
        return replace(state, lines=(*state.lines, Line(entry.number, event, "lost", "another event came first")))
    if why := why_illegal(state.model(event.model), event):
        return replace(state, lines=(*state.lines, Line(entry.number, event, "illegal", why)))
    after = _EFFECTS[event.kind](state.model(event.model), event)
    return State(
        head=digest,
        models=MappingProxyType({**state.models, event.model: after}),
        lines=(*state.lines, Line(entry.number, event, "accepted")),
        accepted=state.accepted | {digest},
    )


def _read(entry: Entry) -> Event:
    try:
        return Event(**json.loads(entry.text or ""))
    except (ValueError, TypeError) as error:
        raise LedgerBroken(f"event {entry.number} cannot be read: {error}") from error


def _staged(state: ModelState, changes: Mapping[int, str]) -> ModelState:
    return replace(state, stages=MappingProxyType({**state.stages, **changes}))


def _evaluate(state: ModelState, event: Event) -> ModelState:
    return _staged(state, {event.version: "evaluating"})


def _verdict(state: ModelState, event: Event) -> ModelState:
    return _staged(state, {event.version: str(event.args["outcome"])})


def _start(state: ModelState, event: Event) -> ModelState:
    return replace(_staged(state, {event.version: "challenger"}), plan=tuple(event.args.get("plan", ())), step=0)


def _step(state: ModelState, event: Event) -> ModelState:
    del event
    return replace(state, step=state.step + 1)


def _promote(state: ModelState, event: Event) -> ModelState:
    changes = {}
    if state.previous is not None:
        changes[state.previous] = "retired"
    if state.champion is not None:
        changes[state.champion] = "previous"
    return replace(_staged(state, {**changes, event.version: "champion"}), plan=(), step=0)


def _rollback(state: ModelState, event: Event) -> ModelState:
    changes = {} if state.champion is None else {state.champion: "aborted"}
    return _staged(state, {**changes, event.version: "champion"})


def _abort(state: ModelState, event: Event) -> ModelState:
    on_trial = state.challenger == event.version
    after = _staged(state, {event.version: "aborted"})
    return replace(after, plan=(), step=0) if on_trial else after


def _retire(state: ModelState, event: Event) -> ModelState:
    return _staged(state, {event.version: "retired"})


def _drift(state: ModelState, event: Event) -> ModelState:
    del event
    return state


_EFFECTS: Mapping[str, Callable[[ModelState, Event], ModelState]] = {
    "evaluate": _evaluate,
    "verdict": _verdict,
    "start": _start,
    "step": _step,
    "promote": _promote,
    "rollback": _rollback,
    "abort": _abort,
    "retire": _retire,
    "drift": _drift,
}
