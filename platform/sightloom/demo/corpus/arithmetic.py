"""Worked steps over small numbers, said the same way in every domain.

Captions and steps write numbers as words: a tokenizer that splits digits off puts a blank between a name and its digit,
and then the name itself no longer leads to the value. Answers are digits.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from numpy.random import Generator

from sightloom.demo.corpus.draws import maybe
from sightloom.demo.corpus.sample import Question, number

Facts = Mapping[str, int]

WORDS: Final = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen",
)  # fmt: skip


def say(facts: Facts, names: Sequence[str] | None = None) -> str:
    """The facts, or some of them, in the caption's own words: `red three, blue five`."""
    return ", ".join(listed(facts, names))


def listed(facts: Facts, names: Sequence[str] | None = None) -> list[str]:
    """The same, one by one."""
    return [f"{name} {WORDS[facts[name]]}" for name in names or tuple(facts)]


def add(facts: Facts, names: Sequence[str]) -> tuple[int, str]:
    """The sum of the named facts and its steps: `tea three, cake five, three plus five is eight`."""
    steps, total = chain([facts[name] for name in names])
    return total, f"{say(facts, names)}, {steps}"


def chain(values: Sequence[int]) -> tuple[str, int]:
    """Values added one by one, and their sum: `three plus five is eight, eight plus two is ten`."""
    total, steps = values[0], []
    for value in values[1:]:
        steps.append(f"{WORDS[total]} plus {WORDS[value]} is {WORDS[total + value]}")
        total += value
    return ", ".join(steps), total


def subtract(facts: Facts, more: str, less: str) -> tuple[int, str]:
    """How much larger one fact is than another, and the steps."""
    difference = facts[more] - facts[less]
    words = f"{WORDS[facts[more]]} minus {WORDS[facts[less]]} is {WORDS[difference]}"
    return difference, f"{say(facts, (more, less))}, {words}"


def extremes(facts: Facts) -> tuple[str, str]:
    """The names of the largest and of the smallest fact."""
    return max(facts, key=facts.__getitem__), min(facts, key=facts.__getitem__)


def drills(rng: Generator, most: int) -> list[Question]:
    """Two sums or differences without a picture, of numbers as the worked steps meet them."""
    questions = []
    for _ in range(2):
        one, other = int(rng.integers(1, 2 * most + 1)), int(rng.integers(1, most + 1))
        if maybe(rng, 0.3):
            questions.append(number("drill", f"What is {WORDS[one + other]} minus {WORDS[other]}?", one))
        else:
            questions.append(number("drill", f"What is {WORDS[one]} plus {WORDS[other]}?", one + other))
    return questions
