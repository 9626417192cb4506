"""Worked steps over small numbers, said the same way in every domain."""

from collections.abc import Mapping, Sequence

from numpy.random import Generator

from sightloom.demo.corpus.draws import maybe
from sightloom.demo.corpus.sample import Question, number

Facts = Mapping[str, int]


def say(facts: Facts, names: Sequence[str] | None = None) -> str:
    """The facts, or some of them, in the caption's own words: `red 3, blue 5`."""
    return ", ".join(listed(facts, names))


def listed(facts: Facts, names: Sequence[str] | None = None) -> list[str]:
    """The same, one by one."""
    return [f"{name} {facts[name]}" for name in names or tuple(facts)]


def add(facts: Facts, names: Sequence[str]) -> tuple[int, str]:
    """The sum of the named facts and its steps: `tea 3, cake 5, fish 2, 3 plus 5 is 8, 8 plus 2 is 10`."""
    steps, total = chain([facts[name] for name in names])
    return total, f"{say(facts, names)}, {steps}"


def chain(values: Sequence[int]) -> tuple[str, int]:
    """Values added one by one, and their sum: `3 plus 5 is 8, 8 plus 2 is 10`."""
    total, steps = values[0], []
    for value in values[1:]:
        steps.append(f"{total} plus {value} is {total + value}")
        total += value
    return ", ".join(steps), total


def subtract(facts: Facts, more: str, less: str) -> tuple[int, str]:
    """How much larger one fact is than another, and the steps."""
    difference = facts[more] - facts[less]
    return difference, f"{say(facts, (more, less))}, {facts[more]} minus {facts[less]} is {difference}"


def extremes(facts: Facts) -> tuple[str, str]:
    """The names of the largest and of the smallest fact."""
    return max(facts, key=facts.__getitem__), min(facts, key=facts.__getitem__)


def drills(rng: Generator, most: int) -> list[Question]:
    """Two sums or differences without a picture, of numbers as the worked steps meet them."""
    questions = []
    for _ in range(2):
        one, other = int(rng.integers(1, 2 * most + 1)), int(rng.integers(1, most + 1))
        if maybe(rng, 0.3):
            questions.append(number("drill", f"What is {one + other} minus {other}?", one))
        else:
            questions.append(number("drill", f"What is {one} plus {other}?", one + other))
    return questions
