"""Verifiable rewards: how right a response's content is, checked by a program, one answer family a file.

Every score is in [0, 1]. An answer that cannot be read, or that could mean several things, is worth 0, never an error.
"""

from collections.abc import Callable
from typing import Final

from sightloom.objectives.rewards.choice import score_choice
from sightloom.objectives.rewards.format import format_reward
from sightloom.objectives.rewards.geometry import score_box, score_point
from sightloom.objectives.rewards.length import length_reward
from sightloom.objectives.rewards.math import score_math
from sightloom.objectives.rewards.number import score_number
from sightloom.objectives.rewards.reward import Reward
from sightloom.objectives.rewards.sequence import score_list
from sightloom.objectives.rewards.text import score_text, score_words
from sightloom.records import Answer

__all__ = ["MAX_CHARS", "Reward", "format_reward", "length_reward", "score"]

MAX_CHARS: Final = 4000  # a longer content is no answer; it also bounds the time of a score

_SCORERS: Final[dict[str, Callable[[str, Answer], Reward]]] = {
    "choice": score_choice,
    "number": score_number,
    "text": score_text,
    "list": score_list,
    "box": score_box,
    "point": score_point,
    "math": score_math,
    "words": score_words,
}


def score(content: str, answer: Answer) -> Reward:
    """How right `content`, the response without its thinking, is: a value in [0, 1] and the reason."""
    if not content.strip():
        return Reward(0.0, "empty")
    if len(content) > MAX_CHARS:
        return Reward(0.0, "too long")
    return _SCORERS[answer.kind](content, answer)
