"""A number, written in digits or as a small number's word, with or without a unit."""

import re
from typing import Final

from sightloom.objectives.rewards.reward import Reward, right_or_wrong
from sightloom.records import Answer

EXACT: Final = 1e-6  # relative difference that still counts as equal where no tolerance is given
_MAX_DIGITS: Final = 18
_NUMBER = re.compile(
    r"(?<![\w.])([-−+]?)\s?[$€£¥]?\s?([-−]?)(\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![,\d])|\d+(?:\.\d+)?|\.\d+)"
    r"(e[-+]?\d{1,2}\b)?(?!\d)",
    re.IGNORECASE,
)
_MARKED = re.compile(r"(?:\\boxed\{|answer(?: is)?\s*[:=]?\s*|=\s*)([^={}]*?)\}?[\s.]*$", re.IGNORECASE)
_WORDS: Final = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20,
}  # fmt: skip


def score_number(content: str, answer: Answer) -> Reward:
    """Right if the one number of the content, or the one behind `answer:` or `=`, is within the relative tolerance."""
    found = numbers(content)
    if len(set(found)) > 1 and (marked := _MARKED.search(content)):
        found = numbers(marked[1])
    if len(set(found)) != 1:
        return Reward(0.0, "names several numbers" if found else "names no number")
    truth = float(answer.value)
    tolerance = EXACT if answer.tolerance is None else answer.tolerance
    return right_or_wrong(abs(found[0] - truth) <= tolerance * max(abs(truth), EXACT))


def numbers(text: str) -> list[float]:
    """All numbers of a text in their order; one with more than 18 digits is none."""
    found = []
    for match in _NUMBER.finditer(text):
        sign, inner_sign, digits, exponent = match.groups()
        digits = digits.replace(",", "")
        if len(digits) <= _MAX_DIGITS:
            value = float(digits + (exponent or ""))
            found.append(-value if sign in ("-", "−") or inner_sign else value)
    return found or [float(_WORDS[word]) for word in re.findall(r"[a-z]+", text.casefold()) if word in _WORDS]
