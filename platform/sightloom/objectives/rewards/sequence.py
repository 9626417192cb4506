"""A list in an order."""

import re

from sightloom.objectives.rewards.choice import normalised
from sightloom.objectives.rewards.number import EXACT, numbers
from sightloom.objectives.rewards.reward import Reward
from sightloom.records import Answer

_SEPARATOR = re.compile(r"\s*(?:,\s*and\b|[,;\n>]|->|→|\band\b|\bthen\b)\s*")


def score_list(content: str, answer: Answer) -> Reward:
    """The longest common subsequence of said and true items, divided by the longer list: 1 only for the very list."""
    truth = [_item(str(value)) for value in answer.value]
    said = [_item(part) for part in _SEPARATOR.split(content.strip(" []().\n")) if part.strip()]
    if not truth or not said:
        return Reward(0.0, "empty list")
    if len(said) > 4 * len(truth) + 8:
        return Reward(0.0, "too many items")
    value = _common(said, truth) / max(len(said), len(truth))
    return Reward(value, "right" if value == 1 else f"{value:.2f} of the list")


def _item(text: str) -> str | float:
    words = normalised(text)
    found = numbers(words)
    if len(found) == 1 and re.fullmatch(r"[-−+$€£¥]*[\d.,]+\s?%?", words):
        return round(found[0] / EXACT) * EXACT
    return words


def _common(left: list[str | float], right: list[str | float]) -> int:
    previous = [0] * (len(right) + 1)
    for item in left:
        current = [0]
        for column, other in enumerate(right, 1):
            current.append(previous[column - 1] + 1 if item == other else max(previous[column], current[-1]))
        previous = current
    return previous[-1]
