"""Text that was read off a picture: similarity by edit distance."""

from collections.abc import Sequence
from typing import Final

from sightloom.objectives.rewards.reward import Reward
from sightloom.records import Answer

ANLS_THRESHOLD: Final = 0.5


def score_text(content: str, answer: Answer) -> Reward:
    """ANLS of the content against the answer."""
    value = anls(content, str(answer.value))
    return Reward(value, "right" if value == 1 else f"ANLS {value:.2f}")


def score_words(content: str, answer: Answer) -> Reward:
    """1 − word error rate of a transcription, at least 0: words missing, added and replaced ÷ words of the truth."""
    said, truth = (text.casefold().split() for text in (content, str(answer.value)))
    if not truth or abs(len(said) - len(truth)) >= len(truth):  # the errors are at least the difference in length
        return Reward(0.0, "far from it")
    errors = levenshtein(said, truth)
    return Reward(max(0.0, 1 - errors / len(truth)), "right" if errors == 0 else f"{errors} words wrong")


def anls(said: str, truth: str) -> float:
    """1 − edit distance / length of the longer, case and spacing aside; below 0.5 it is 0 (Biten et al. 2019)."""
    said, truth = (" ".join(text.casefold().split()).strip(" .\"'") for text in (said, truth))
    if said == truth:
        return 1.0
    longer, shorter = max(len(said), len(truth)), min(len(said), len(truth))
    if shorter < ANLS_THRESHOLD * longer:  # the distance is at least the difference in length
        return 0.0
    similarity = 1 - levenshtein(said, truth) / longer
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def levenshtein(left: Sequence[str], right: Sequence[str]) -> int:
    """The least number of inserted, deleted and replaced characters, or words."""
    previous = list(range(len(right) + 1))
    for row, char in enumerate(left, 1):
        current = [row]
        for column, other in enumerate(right, 1):
            current.append(min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (char != other)))
        previous = current
    return previous[-1]
