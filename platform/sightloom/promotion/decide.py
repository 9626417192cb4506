"""Which events lead from where a version stands to where it shall be: pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sightloom.errors import GateNotPassed, UserMistake
from sightloom.promotion.states import ModelState


@dataclass(frozen=True, slots=True)
class Move:
    """An event to be written."""

    kind: str
    version: int
    args: Mapping[str, Any] = field(default_factory=dict)


def moves_to_promote(
    state: ModelState, version: int, outcome: str, override: bool, plan: Sequence[Mapping[str, Any]] = ()
) -> list[Move]:
    """The events that promote a version with this verdict; up to the verdict alone where it did not pass.

    With a champion the candidate is its challenger first, through `plan`; an empty plan is done at once.

    Raises:
        UserMistake: the version is champion already, or the previous champion (a rollback brings it back).
    """
    check_candidate(state, version)
    moves = [] if state.challenger == version else [
        Move("evaluate", version), Move("verdict", version, {"outcome": outcome})
    ]  # fmt: skip
    if outcome != "passed" and not override:
        return moves
    extra = {"override": True} if override else {}
    if state.challenger != version and (state.champion is not None or outcome != "passed"):
        moves.append(Move("start", version, {"plan": list(plan), **extra}))
    if not plan:
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
