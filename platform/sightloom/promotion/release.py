"""The acts of a release, promote, rollback and abort: read the ledger, decide, append events, project the outcome."""

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sightloom.errors import SightloomError, UserMistake
from sightloom.evaluation.gate import Decision
from sightloom.promotion.canary import AT_ONCE, CanaryPlan
from sightloom.promotion.decide import Move, move_back, moves_to_promote, refused, version_to_restore
from sightloom.promotion.events import Who
from sightloom.promotion.evidence import Evidence
from sightloom.promotion.fold import State, accepted
from sightloom.promotion.ledger import Ledger, lost_to, utc_now
from sightloom.promotion.reconcile import project
from sightloom.promotion.states import ModelState
from sightloom.registry import Registry, Version


@dataclass(frozen=True, slots=True)
class Release:
    """What an act led to.

    `events` are the numbers of the accepted lines since it began, `num_lines` how many lines the ledger had then.
    """

    model: str
    version: int
    champion: int | None
    previous: int | None
    events: tuple[int, ...]
    head: str
    decision: Decision | None = None
    run_id: str = ""
    challenger: int | None = None
    num_lines: int = 0

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        fields: dict[str, Any] = {
            "model": self.model,
            "version": self.version,
            "champion": self.champion,
            "previous": self.previous,
            "challenger": self.challenger,
            "events": list(self.events),
            "head": self.head,
        }
        if self.decision is not None:
            gate = {name: asdict(found) for name, found in self.decision.domains.items()}
            fields["gate"] = {
                "outcome": self.decision.outcome, "domains": gate, "reasons": list(self.decision.reasons)
            }  # fmt: skip
            fields["run_id"] = self.run_id
        return fields


def promote(
    registry: Registry,
    ledger: Ledger,
    version: Version,
    evidence: Evidence,
    who: Who,
    override: bool = False,
    plan: CanaryPlan = AT_ONCE,
) -> Release:
    """Make a version champion if its verdict passed, or by an override with a reason.

    Events are evaluate and verdict, then (with a champion) start; with no steps in the plan promote follows at once,
    otherwise the release manager takes the challenger on from there. Aliases move only after the ledger has accepted
    an event.

    Raises:
        GateNotPassed: the verdict is on record, the champion unchanged.
        LostRace: another event came first, or the versions have moved since the evidence was gathered.
        UserMistake: the version cannot be promoted now, or an override has no reason.
    """
    if override and not who.reason:
        raise UserMistake("an override needs a reason", "--override --reason '…'")
    decision = evidence.decision
    state = ledger.read()
    before = len(state.lines)
    state = _moved(ledger, state, version, evidence, who, override, plan)
    project(state, registry, version.name)
    if version.version not in (state.model(version.name).champion, state.model(version.name).challenger):
        raise refused(version.name, version.version, decision.outcome, decision.reasons)
    return as_release(state, version, before, decision, evidence.run_id)


def _moved(
    ledger: Ledger, state: State, version: Version, evidence: Evidence, who: Who, override: bool, plan: CanaryPlan
) -> State:
    """The ledger after all events of a promotion; where one cannot be written, the version's app goes down again."""
    name, number = version.name, version.version
    proof = {"run_id": evidence.run_id, "report_sha256": evidence.report_sha256, "digest": version.digest}
    ours = "evaluating" if evidence.evaluating else ""
    try:
        its = state.model(name)
        if evidence.seen is not None and not its.same_for(evidence.seen, number):
            raise lost_to(state, "", name, number, utc_now())
        for move in moves_to_promote(its, number, evidence.decision.outcome, override, plan):
            if move.kind == "evaluate" and evidence.evaluating:
                continue
            state = ledger.append(state, move.kind, name, number, who.actor, who.reason, move.args, proof)
            ours = state.model(name).stages[number]
    except SightloomError as error:
        with contextlib.suppress(SightloomError):
            _take_down(ledger, name, number, ours, who, f"not promoted: {error.message}")
        raise
    return state


def _take_down(ledger: Ledger, name: str, version: int, ours: str, who: Who, reason: str) -> None:
    """Take a version back that still stands where this act put it; where somebody else moved it, it is theirs."""
    state = ledger.read()
    if ours in ("evaluating", "passed") and state.model(name).stages.get(version) == ours:
        ledger.append(state, move_back(state.model(name), name, version).kind, name, version, who.actor, reason)


def go_on(registry: Registry, ledger: Ledger, version: Version, who: Who, override: bool, plan: CanaryPlan) -> Release:
    """Promote a challenger whose plan is done, or by an override; one that is still on its plan goes on with it."""
    state = ledger.read()
    before = len(state.lines)
    for move in moves_to_promote(state.model(version.name), version.version, "passed", override, plan):
        state = ledger.append(
            state, move.kind, version.name, move.version, who.actor, who.reason, move.args, {"digest": version.digest}
        )
    project(state, registry, version.name)
    return as_release(state, version, before)


def rollback(registry: Registry, ledger: Ledger, model: str, who: Who) -> Release:
    """Make the previous champion the champion again; raises UserMistake where there is none."""
    return _take_back(registry, ledger, model, who, lambda its: Move("rollback", version_to_restore(its, model)))


def abort(registry: Registry, ledger: Ledger, model: str, who: Who, version: int | None = None) -> Release:
    """Take a version that is under evaluation, passed or on trial back; raises UserMistake where it is not."""
    return _take_back(registry, ledger, model, who, lambda its: move_back(its, model, version))


def _take_back(
    registry: Registry, ledger: Ledger, model: str, who: Who, chosen: Callable[[ModelState], Move]
) -> Release:
    state = ledger.read()
    before, move = len(state.lines), chosen(state.model(model))
    version = registry.resolve(f"{model}:{move.version}")
    state = ledger.append(
        state, move.kind, model, version.version, who.actor, who.reason, evidence={"digest": version.digest}
    )
    project(state, registry, model)
    return as_release(state, version, before, None, "")


def as_release(
    state: State, version: Version, before: int = 0, decision: Decision | None = None, run_id: str = ""
) -> Release:
    """What an act led to; `before`: number of lines before it."""
    its = state.model(version.name)
    events = tuple(line.number for line in accepted(state.lines[before:]))
    return Release(
        version.name, version.version, its.champion, its.previous, events, state.head, decision, run_id,
        its.challenger, before,
    )  # fmt: skip
