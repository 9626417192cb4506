"""Shaping of a response's length, in tokens."""

from collections.abc import Sequence

from sightloom.objectives.rewards.reward import Reward


def length_reward(num_tokens: int, bounds: Sequence[float]) -> Reward:
    """0 outside [min, max], 1 on [low, high], linear between; `bounds` = (min, low, high, max) in tokens.

    Raises:
        ValueError: the bounds do not rise.
    """
    least, low, high, most = bounds
    if not least <= low <= high <= most:
        raise ValueError(f"length bounds must not fall: {tuple(bounds)}")
    if low <= num_tokens <= high:
        return Reward(1.0, "in range")
    if num_tokens < least or num_tokens > most:
        return Reward(0.0, "out of range")
    if num_tokens < low:
        return Reward((num_tokens - least) / (low - least), "short")
    return Reward((most - num_tokens) / (most - high), "long")
