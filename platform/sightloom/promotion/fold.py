"""The fold of the ledger: every entry in, one legal state out. Pure."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError

from sightloom.promotion.events import ANCHOR, GENESIS, KINDS, Entry, Event, LedgerBroken, digest_of, read_event
from sightloom.promotion.states import LIVING, ModelState, Trial, after, one_of_each, plan_of, why_illegal

LOST: Final = "another event came first"


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one entry.

    `outcome`: accepted, lost (a race), illegal (refused by the rules), foreign (no event) or superseded (before an
    anchor).
    """

    number: int
    event: Event | None
    outcome: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """The whole ledger, folded.

    `accepted` holds the digests of all accepted events, `known` those of all events, `generation` the number of the
    last accepted one.
    """

    head: str = GENESIS
    generation: int = 0
    models: Mapping[str, ModelState] = field(default_factory=lambda: MappingProxyType({}))
    lines: tuple[Line, ...] = ()
    accepted: frozenset[str] = frozenset({GENESIS})
    known: frozenset[str] = frozenset({GENESIS})

    def model(self, name: str) -> ModelState:
        """The state of one model; empty for one that the ledger does not know."""
        return self.models.get(name, ModelState())


def fold(entries: Sequence[Entry], witness: str = "") -> State:
    """Replay the ledger; where it was anchored anew, from the last anchor.

    Args:
        entries: all places, in order of their numbers.
        witness: digest of an event that is known to have been accepted (MLflow's tag `sightloom.head`).

    Raises:
        LedgerBroken: a number is missing, a text is no event, or an event follows (or the witness names) one that is
            not there.
    """
    anchor = _last_anchor(entries)
    state, first = State(), 1
    if anchor is not None:
        state, first = _anchored(entries, anchor), anchor.number + 1
        entries = [entry for entry in entries if entry.number > anchor.number]
    for place, entry in enumerate(entries, start=first):
        if entry.number != place:
            raise LedgerBroken(f"the ledger's event {place} is missing (the next is {entry.number})")
        state = _add(state, entry)
    if witness and witness not in state.known:
        raise LedgerBroken(f"the ledger does not hold its last known event {witness[:12]}…: it was edited or cut")
    return state


def mend(entries: Sequence[Entry]) -> State:
    """What a broken ledger says when a missing or changed link is taken for unbroken: the state of an anchor.

    An event that a later one builds on was accepted in its time, whatever is missing before it now.
    """
    anchor = _last_anchor(entries)
    state = State() if anchor is None else _anchored(entries, anchor)
    rest = [entry for entry in entries if anchor is None or entry.number > anchor.number]
    events = {entry.number: event for entry in rest if (event := _readable(entry)) is not None}
    built_on = {event.prev for event in events.values()}
    for entry in rest:
        event = events.get(entry.number)
        if event is None or entry.text is None:
            continue
        if event.prev not in state.known:
            state = replace(state, head=event.prev, known=state.known | {event.prev})
        with contextlib.suppress(ValidationError):  # its plan was edited
            if event.prev == state.head and digest_of(entry.text) in built_on and event.kind in KINDS:
                state = _accept(state, event, entry)
            else:
                state = _add(state, entry)
    return state


def anchor_args(state: State, seen: int, witness: str) -> dict[str, Any]:
    """The arguments of an anchor event: the whole state, and the last number that its writer saw."""
    models = {name: _packed(model) for name, model in state.models.items()}
    return {"seen": seen, "witness": witness, "models": models}


def accepted(lines: Iterable[Line]) -> list[Line]:
    """The lines that took effect."""
    return [line for line in lines if line.outcome == "accepted"]


def _add(state: State, entry: Entry) -> State:
    if entry.text is None:
        return _with(state, Line(entry.number, None, "foreign", "no event"))
    event = read_event(entry)
    digest = digest_of(entry.text)
    if event.prev not in state.known:
        raise LedgerBroken(f"event {entry.number} follows {event.prev[:12]}…, which is not in the ledger")
    known = state.known | {digest}
    if event.kind == ANCHOR:  # one that counts is where the fold began
        return replace(_with(state, Line(entry.number, event, "lost", LOST)), known=known)
    if event.prev != state.head:
        return replace(_with(state, Line(entry.number, event, "lost", LOST)), known=known)
    if why := why_illegal(state.model(event.model), event):
        return replace(_with(state, Line(entry.number, event, "illegal", why)), known=known)
    return _accept(state, event, entry)


def _accept(state: State, event: Event, entry: Entry) -> State:
    digest = digest_of(entry.text or "")
    moved = after(state.model(event.model), event, entry.number)
    return State(
        head=digest,
        generation=entry.number,
        models=MappingProxyType({**state.models, event.model: one_of_each(moved, event.version)}),
        lines=(*state.lines, Line(entry.number, event, "accepted")),
        accepted=state.accepted | {digest},
        known=state.known | {digest},
    )


def _readable(entry: Entry) -> Event | None:
    try:
        return None if entry.text is None else read_event(entry)
    except LedgerBroken:
        return None


def _with(state: State, line: Line) -> State:
    return replace(state, lines=(*state.lines, line))


def _last_anchor(entries: Sequence[Entry]) -> Entry | None:
    """The anchor that holds: of two whose writers did not see each other, the first."""
    holds: Entry | None = None
    for entry in entries:
        if entry.text is None or f'"kind":"{ANCHOR}"' not in entry.text:
            continue
        event = read_event(entry)
        if event.kind == ANCHOR and (holds is None or int(event.args["seen"]) >= holds.number):
            holds = entry
    return holds


def _anchored(entries: Sequence[Entry], anchor: Entry) -> State:
    event = read_event(anchor)
    digest = digest_of(anchor.text or "")
    lines, known = [], {GENESIS, digest, event.prev}
    for entry in entries:
        if entry.number >= anchor.number:
            break
        old = _readable(entry)
        lines.append(Line(entry.number, old, "superseded" if entry.text is not None else "foreign", "before an anchor"))
        known.add(digest_of(entry.text or ""))
    models = {name: _unpacked(packed) for name, packed in event.args["models"].items()}
    return State(
        head=digest,
        generation=anchor.number,
        models=MappingProxyType(models),
        lines=(*lines, Line(anchor.number, event, "accepted")),
        accepted=frozenset({digest, str(event.args["witness"])}),
        known=frozenset(known | {str(event.args["witness"])}),
    )


def _packed(model: ModelState) -> dict[str, Any]:
    stages: dict[str, list[int]] = {}
    for version, stage in model.stages.items():
        stages.setdefault(stage, []).append(version)
    living = [version for version, stage in model.stages.items() if stage in LIVING]
    trial = model.trial
    return {
        "stages": stages,
        "digests": {str(version): model.digests[version] for version in living if version in model.digests},
        "since": {str(version): model.since[version] for version in living if version in model.since},
        "drift": model.drift,
        "trial": {
            "plan": [step.model_dump(mode="json", exclude_none=True) for step in trial.plan],
            "auto": trial.auto,
            "rules": trial.rules.model_dump(mode="json"),
            "step": trial.step,
            "salt": trial.salt,
            "at": trial.at,
            "number": trial.number,
        },
    }


def _unpacked(packed: Mapping[str, Any]) -> ModelState:
    stages = {int(version): stage for stage, versions in packed["stages"].items() for version in versions}
    its = packed["trial"]
    plan = plan_of(its)
    trial = Trial(plan.steps, its["step"], plan.auto, plan.rules, its["salt"], its["at"], its["number"])
    return ModelState(
        MappingProxyType(stages),
        MappingProxyType({int(version): pinned for version, pinned in packed["digests"].items()}),
        MappingProxyType({int(version): at for version, at in packed["since"].items()}),
        trial,
        packed["drift"],
    )
