"""Whether a response keeps to the think protocol."""

from typing import Protocol

from sightloom.objectives.rewards.reward import Reward


class ParsedResponse(Protocol):
    """A response taken apart (`sightloom.model.chat.Parsed` is one)."""

    @property
    def thinking(self) -> str | None: ...

    @property
    def content(self) -> str: ...

    @property
    def well_formed(self) -> bool: ...


def format_reward(parsed: ParsedResponse) -> Reward:
    """1 for exactly one closed think block that is not empty, then a non-empty answer; else 0."""
    if parsed.thinking is None:
        return Reward(0.0, "no think block")
    if not parsed.well_formed:
        return Reward(0.0, "think block not closed, several of them, or no answer")
    return Reward(1.0, "well formed") if parsed.thinking else Reward(0.0, "empty think block")
