"""Where the versions of one model stand, and which event may follow: pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError

from sightloom.promotion.canary import CanaryPlan, CanaryStep, SloRules
from sightloom.promotion.events import Event

VERDICTS: Final = ("passed", "rejected", "inconclusive")
SINGLE: Final = ("challenger", "champion", "previous")
LIVING: Final = ("evaluating", "passed", "challenger", "champion", "previous")  # stages with an app


def _nothing() -> Mapping[int, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Trial:
    """A challenger on its plan.

    Attributes:
        step: index of the step that it is on; `len(plan)` when all are done.
        salt: of the hash that chooses its requests.
        at: when this step began (ISO 8601).
        number: of the event that began it: requests of older generations do not count.
    """

    plan: tuple[CanaryStep, ...] = ()
    step: int = 0
    auto: bool = True
    rules: SloRules = field(default_factory=lambda: SloRules())
    salt: str = ""
    at: str = ""
    number: int = 0

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        return self.step >= len(self.plan)

    @property
    def current(self) -> CanaryStep | None:
        """The step whose share holds now: after the last one, still the last one's."""
        return self.plan[min(self.step, len(self.plan) - 1)] if self.plan else None


@dataclass(frozen=True, slots=True)
class ModelState:
    """Where the versions of one model stand.

    A version's stage is evaluating, passed, rejected, inconclusive, challenger, champion, previous, retired or aborted.
    `since`: when a version came to its stage; `digests`: what it was pinned to when it was first evaluated;
    `drift`: number of the last drift event.
    """

    stages: Mapping[int, str] = field(default_factory=_nothing)
    digests: Mapping[int, str] = field(default_factory=_nothing)
    since: Mapping[int, str] = field(default_factory=_nothing)
    trial: Trial = field(default_factory=Trial)
    drift: int = 0

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

    def same_for(self, other: "ModelState", version: int) -> bool:
        """Whether all that an event of `version` rests on is as in `other`: its stage, champion, previous, challenger.

        Where further versions are evaluated does not matter: several may be at once.
        """
        held = all(self.holder(stage) == other.holder(stage) for stage in SINGLE)
        return held and self.stages.get(version) == other.stages.get(version) and self.trial == other.trial


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
            known = event.args.get("outcome") in VERDICTS
            return "" if stage == "evaluating" and known else f"version {event.version} is not under evaluation"
        case "start":
            if state.challenger is not None:
                return f"version {state.challenger} is the challenger"
            free = override and stage not in ("champion", "previous")
            if not (stage == "passed" or free):
                return f"version {event.version} has not passed ({stage or 'new'})"
            return _why_no_plan(event.args)
        case "step":
            ready = stage == "challenger" and not state.trial.done
            return "" if ready else f"version {event.version} has no step left to take"
        case "promote":
            done = stage == "challenger" and (state.trial.done or override)
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


def after(state: ModelState, event: Event, number: int) -> ModelState:
    """The state after a legal event with this number."""
    moved = _EFFECTS[event.kind](state, event, number)
    changed = {version for version, stage in moved.stages.items() if state.stages.get(version) != stage}
    if changed:
        since = {**moved.since, **{version: event.at for version in changed}}
        moved = replace(moved, since=MappingProxyType(since))
    pinned = event.evidence.get("digest")
    if pinned and event.version not in moved.digests:
        moved = replace(moved, digests=MappingProxyType({**moved.digests, event.version: pinned}))
    return moved


def one_of_each(state: ModelState, newest: int) -> ModelState:
    """The state with one version in each stage that only one can hold; it matters where events are missing."""
    crowd = {
        version: "retired"
        for version, stage in state.stages.items()
        if stage in SINGLE and version != newest and list(state.stages.values()).count(stage) > 1
    }
    return _staged(state, crowd) if crowd else state


def plan_of(args: Mapping[str, Any]) -> CanaryPlan:
    """The plan in the arguments of a start event; raises pydantic's ValidationError where it is none."""
    fields = {"steps": args.get("plan", ()), "auto": args.get("auto", True), "rules": args.get("rules", {})}
    return CanaryPlan.model_validate(fields)


def _why_no_plan(args: Mapping[str, Any]) -> str:
    try:
        plan_of(args)
    except ValidationError as error:
        return f"its plan is none: {error.errors()[0]['msg']}"
    return ""


def _staged(state: ModelState, changes: Mapping[int, str]) -> ModelState:
    return replace(state, stages=MappingProxyType({**state.stages, **changes}))


def _evaluate(state: ModelState, event: Event, number: int) -> ModelState:
    del number
    digests = {version: pinned for version, pinned in state.digests.items() if version != event.version}
    return replace(_staged(state, {event.version: "evaluating"}), digests=MappingProxyType(digests))


def _verdict(state: ModelState, event: Event, number: int) -> ModelState:
    del number
    return _staged(state, {event.version: str(event.args["outcome"])})


def _start(state: ModelState, event: Event, number: int) -> ModelState:
    plan = plan_of(event.args)
    trial = Trial(plan.steps, 0, plan.auto, plan.rules, event.id[:16], event.at, number)
    return replace(_staged(state, {event.version: "challenger"}), trial=trial)


def _step(state: ModelState, event: Event, number: int) -> ModelState:
    return replace(state, trial=replace(state.trial, step=state.trial.step + 1, at=event.at, number=number))


def _promote(state: ModelState, event: Event, number: int) -> ModelState:
    del number
    changes = {}
    if state.previous is not None:
        changes[state.previous] = "retired"
    if state.champion is not None:
        changes[state.champion] = "previous"
    trial = Trial() if state.challenger in (None, event.version) else state.trial
    return replace(_staged(state, {**changes, event.version: "champion"}), trial=trial)


def _rollback(state: ModelState, event: Event, number: int) -> ModelState:
    del number
    changes = {} if state.champion is None else {state.champion: "aborted"}
    return _staged(state, {**changes, event.version: "champion"})


def _abort(state: ModelState, event: Event, number: int) -> ModelState:
    del number
    on_trial = state.challenger == event.version
    aborted = _staged(state, {event.version: "aborted"})
    return replace(aborted, trial=Trial()) if on_trial else aborted


def _retire(state: ModelState, event: Event, number: int) -> ModelState:
    del number
    return _staged(state, {event.version: "retired"})


def _drift(state: ModelState, event: Event, number: int) -> ModelState:
    del event
    return replace(state, drift=number)


_EFFECTS: Mapping[str, Callable[[ModelState, Event, int], ModelState]] = {
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
