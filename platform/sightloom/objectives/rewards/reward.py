"""What a score is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reward:
    """A value in [0, 1], or NaN when the scorer itself failed, and why."""

    value: float
    detail: str


def right_or_wrong(right: bool) -> Reward:
    """1 or 0."""
    return Reward(1.0, "right") if right else Reward(0.0, "wrong")
