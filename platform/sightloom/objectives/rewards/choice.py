"""One of several options, by its words or by its letter."""

import re
from typing import Final

from sightloom.objectives.rewards.reward import Reward, right_or_wrong
from sightloom.records import Answer

FREE_WORDS: Final = 6
_NEGATION = re.compile(r"\b(?:not|no|neither|nor|never|without|isn't|aren't|except)\b")
_LETTER = re.compile(r"^(?:the )?(?:answer(?: is)?:? |option )?\(?([a-z])\)?$")


def score_choice(content: str, answer: Answer) -> Reward:
    """Right if the content is the right option or its letter, or names it and no other.

    Content that names several options, or denies one, is worth nothing; so is a long one where the options are unknown.
    """
    said = normalised(content)
    right = normalised(str(answer.value))
    options = sorted({normalised(option) for option in answer.options} | {right}, key=len, reverse=True)
    if said in options:
        return right_or_wrong(said == right)
    if (letter := _LETTER.match(said)) and (index := ord(letter[1]) - ord("a")) < len(answer.options):
        return right_or_wrong(normalised(answer.options[index]) == right)
    if not answer.options and len(said.split()) > FREE_WORDS:
        return Reward(0.0, "too many words for a choice")
    if _NEGATION.search(said):
        return Reward(0.0, "denies an option")
    named = []
    rest = said
    for option in options:  # longest first, so that `dark red` is not also `red`
        shorter = re.sub(rf"(?<!\w){re.escape(option)}(?!\w)", " ", rest) if option else rest
        if shorter != rest:
            named.append(option)
        rest = shorter
    if len(named) != 1:
        return Reward(0.0, "names several options" if named else "names no option")
    return right_or_wrong(named[0] == right)


def normalised(text: str) -> str:
    """Lower case, one space between words, no punctuation at the ends, no article in front."""
    words = " ".join(text.casefold().split()).strip(" .,;:!?\"'`*")
    return re.sub(r"^(?:the|an|a) (?=\w{2})", "", words)
