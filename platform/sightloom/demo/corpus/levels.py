"""Coloured columns of different heights: what bar charts and test tubes have in common."""

from typing import Final

from numpy.random import Generator

from sightloom.demo.corpus import arithmetic
from sightloom.demo.corpus.canvas import INK
from sightloom.demo.corpus.draws import pick_some
from sightloom.demo.corpus.sample import Question, choice, number

MOST: Final = 5  # the highest level


def draw_levels(rng: Generator) -> dict[str, int]:
    """Four colours from left to right, each with its own level from 1 to MOST."""
    levels = pick_some(rng, range(1, MOST + 1), 4)
    return dict(zip(pick_some(rng, tuple(INK), 4), levels, strict=True))


def direct_questions(facts: dict[str, int], value: str, most: str, least: str) -> list[Question]:
    """All that can be read off; `value` has a gap for the colour."""
    largest, smallest = arithmetic.extremes(facts)
    inks = tuple(INK)
    return [
        *(number("value", value.format(name), level) for name, level in facts.items()),
        choice("extreme", most, largest, inks),
        choice("extreme", least, smallest, inks),
    ]


def worked(facts: dict[str, int], steps: str) -> str:
    """A reasoning: first all facts as the caption tells them, then the steps."""
    return f"{arithmetic.say(facts)}, so {steps}"


def sums(rng: Generator, facts: dict[str, int], prompt: str, task: str) -> list[Question]:
    """Two questions that add two columns each; `prompt` has a gap for each of them."""
    questions = []
    for _ in range(2):
        names = pick_some(rng, tuple(facts), 2)
        total, steps = arithmetic.add(facts, names)
        questions.append(number(task, prompt.format(*names), total, worked(facts, steps)))
    return questions


def difference(rng: Generator, facts: dict[str, int], prompt: str) -> Question:
    """How much one column is above another; `prompt` has a gap for each of them."""
    one, other = pick_some(rng, tuple(facts), 2)
    more, less = (one, other) if facts[one] > facts[other] else (other, one)
    value, steps = arithmetic.subtract(facts, more, less)
    return number("difference", prompt.format(more, less), value, worked(facts, steps))
