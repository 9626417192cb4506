"""Which events lead from where a version stands to where it shall be: pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sightloom.errors import GateNotPassed, UserMistake
from sightloom.promotion.canary import AT_ONCE, CanaryPlan
from sightloom.promotion.states import ModelState

_BACK_BY: Final = {"challenger": "abort", "evaluating": "abort", "passed": "retire"}


@dataclass(frozen=True, slots=True)
class Move:
    """An event to be written."""

    kind: str
    version: int
    args: Mapping[str, Any] = field(default_factory=dict)


def moves_to_promote(
    state: ModelState, version: int, outcome: str, override: bool, plan: CanaryPlan = AT_ONCE
) -> list[Move]:
    """The events that promote a version with this verdict; up to the verdict alone where it did not pass.

    With a champion the candidate is its challenger first, through `plan`: with steps in it the last event is the
    start, and the release manager goes on. The first champion has nobody to be compared with.

    Raises:
        UserMistake: the version is champion already, or the previous champion (a rollback brings it back).
    """
    check_candidate(state, version)
    extra = {"override": True} if override else {}
    if state.challenger == version:  # on its way already: at its end, or by an override, a person may end it
        return [Move("promote", version, extra)] if state.trial.done or override else []
    moves = [Move("evaluate", version), Move("verdict", version, {"outcome": outcome})]
    if outcome != "passed" and not override:
        return moves
    if state.champion is None:
        plan = AT_ONCE
    if state.champion is not None or outcome != "passed":
        moves.append(Move("start", version, {**plan.to_args(), **extra}))
    if not plan.steps:
        moves.append(Move("promote", version, extra))
    return moves


def check_candidate(state: ModelState, version: int) -> None:
    """Refuse what cannot be promoted whatever its figures; raises UserMistake."""
    if state.champion == version:
        raise UserMistake(f"version {version} is the champion already")
    if state.previous == version:
        raise UserMistake(f"version {version} is the previous champion", "bring it back: sightloom rollback --reason …")
    if state.challenger not in (None, version):
        raise UserMistake(f"version {state.challenger} is on trial as challenger", "let it finish, or abort it first")


def move_back(state: ModelState, model: str, version: int | None = None) -> Move:
    """The event that takes a version back and its app down; by default the challenger, else the newest other.

    Raises:
        UserMistake: it is not on its way to a promotion, or no version is.
    """
    if version is None:
        newest = (max((one for one, its in state.stages.items() if its == stage), default=None) for stage in _BACK_BY)
        version = next((one for one in newest if one is not None), None)
    if version is None:
        raise UserMistake(f"no version of {model} is on trial", "see: sightloom history")
    stage = state.stages.get(version, "")
    kind = _BACK_BY.get(stage)
    if kind is None:
        raise UserMistake(
            f"{model}:{version} is {stage or 'new'}: only what is under evaluation, passed or on trial is taken back",
            "sightloom rollback takes a champion back; see: sightloom history",
        )
    return Move(kind, version)


def version_to_restore(state: ModelState, model: str) -> int:
    """The version that a rollback makes champion; raises UserMistake where there is none."""
    if state.previous is None:
        raise UserMistake(f"{model} has no previous champion to go back to", "see: sightloom history")
    return state.previous


def refused(model: str, version: int, outcome: str, reasons: Sequence[str]) -> GateNotPassed:
    """The error for a candidate that did not pass."""
    return GateNotPassed(
        f"{model}:{version} did not pass the gate ({outcome}): {'; '.join(reasons)}",
        "the champion is unchanged; --override --reason … promotes it all the same and leaves that on record",
    )
