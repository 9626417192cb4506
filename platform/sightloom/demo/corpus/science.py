"""Scientific figures: test tubes to compare, a balance to load, curves that rise or fall."""

import math
from typing import Final

from numpy.random import Generator

from sightloom.demo.corpus import arithmetic
from sightloom.demo.corpus.canvas import BLACK, GREY, INK, WHITE, Canvas, tint
from sightloom.demo.corpus.document import distinct_levels, level_questions
from sightloom.demo.corpus.draws import maybe, pick, pick_some
from sightloom.demo.corpus.sample import Question, Sample, choice, number

SHAPES: Final = ("rising", "falling", "peak", "dip")
SIDES: Final = ("left", "right", "none")


def draw(rng: Generator) -> Sample:
    """Test tubes, a balance, or two curves."""
    kind = rng.random()
    return _tubes(rng) if kind < 0.5 else _balance(rng) if kind < 0.75 else _curves(rng)


def _tubes(rng: Generator) -> Sample:
    facts = distinct_levels(rng, tuple(INK), 4)
    canvas = Canvas(tint((228, 238, 246), (205, 222, 236), rng.uniform(0, 1)))
    for column, (colour, level) in enumerate(facts.items()):
        middle = 8 + 16 * column + rng.uniform(-0.7, 0.7)
        canvas.rectangle(middle - 6, 3, middle + 6, 62, GREY, 5)
        canvas.rectangle(middle - 5, 3, middle + 5, 61, WHITE, 4)
        canvas.rectangle(middle - 5, 56 - 8 * level, middle + 5, 61, INK[colour], 4)
        canvas.rectangle(middle - 5, 56 - 8 * level, middle + 5, 59 - 8 * level, INK[colour])
        for mark in range(1, 7):
            canvas.rectangle(middle - 5, 56 - 8 * mark, middle - 2.5, 56.7 - 8 * mark, BLACK)
        canvas.rectangle(middle - 7, 2, middle + 7, 4, GREY, 1)
    words = ("How much is in the {} tube?", "Which tube is the fullest?", "Which tube is the emptiest?")
    direct = level_questions(rng, facts, words, "What colour is the {} tube?")
    return Sample(
        "science", canvas.finish(), f"test tubes, {arithmetic.say(facts)}", (*direct, _tube_steps(rng, facts))
    )


def _tube_steps(rng: Generator, facts: dict[str, int]) -> Question:
    one, other = pick_some(rng, tuple(facts), 2)
    if maybe(rng, 0.6):
        total, steps = arithmetic.add(facts, (other, one))
        return number("pour", f"How much is in {other} after {one} is poured into it?", total, steps)
    more, less = (one, other) if facts[one] > facts[other] else (other, one)
    difference, steps = arithmetic.subtract(facts, more, less)
    return number("difference", f"How much more is in {more} than in {less}?", difference, steps)


def _balance(rng: Generator) -> Sample:
    facts = {"left": int(rng.integers(1, 6)), "right": int(rng.integers(1, 6))}
    colours = pick_some(rng, tuple(INK), 2)
    lean = (facts["right"] > facts["left"]) - (facts["right"] < facts["left"])
    canvas = Canvas(tint((244, 240, 230), (226, 232, 226), rng.uniform(0, 1)))
    canvas.polygon([(32, 50), (26, 62), (38, 62)], BLACK)
    canvas.line([(4, 52 - 4 * lean), (60, 52 + 4 * lean)], BLACK, 2)
    for place, (x, tilt) in enumerate(((14 + rng.uniform(-1, 1), -3), (50 + rng.uniform(-1, 1), 3))):
        base = 51 + tilt * lean
        for block in range(facts[SIDES[place]]):
            top = base - 9 * (block + 1)
            canvas.rectangle(x - 8, top, x + 8, top + 8, INK[colours[place]], 1)
    heavier = {-1: "left", 0: "none", 1: "right"}[lean]
    caption = f"balance, left {facts['left']} {colours[0]}, right {facts['right']} {colours[1]}, {heavier} is heavier"
    total, steps = arithmetic.add(facts, ("left", "right"))
    asked = int(rng.integers(2))
    side = SIDES[asked]
    questions = (
        number("blocks", f"How many blocks are on the {side}?", facts[side]),
        choice("heavier", "Which side is heavier?", heavier, SIDES),
        choice("block-colour", f"What colour are the blocks on the {side}?", colours[asked], tuple(INK)),
        number("blocks-total", "How many blocks are there in all?", total, steps),
    )
    return Sample("science", canvas.finish(), caption, questions)


def _curves(rng: Generator) -> Sample:
    colours = pick_some(rng, tuple(INK), 2)
    shapes = [pick(rng, SHAPES), pick(rng, SHAPES)]
    canvas = Canvas(WHITE)
    for panel, (colour, shape) in enumerate(zip(colours, shapes, strict=True)):
        top = 32 * panel
        canvas.rectangle(3, top + 2, 62, top + 30, tint(WHITE, (225, 232, 242), rng.uniform(0.3, 1)))
        reach, middle = rng.uniform(10, 12), top + 16 + rng.uniform(-1, 1)
        points = [(5 + 5.5 * step, middle - reach * _height(shape, step / 10)) for step in range(11)]
        canvas.line(points, INK[colour], 3)
        canvas.rectangle(3, top + 29, 62, top + 30, BLACK)
        canvas.rectangle(3, top + 2, 4, top + 30, BLACK)
    asked, other = (0, 1) if maybe(rng, 0.5) else (1, 0)
    caption = f"plots, {colours[0]} {shapes[0]} above, {colours[1]} {shapes[1]} below"
    questions = (
        choice("curve", f"How does the {colours[asked]} curve go?", shapes[asked], SHAPES),
        choice("curve-colour", f"What colour is the curve {('above', 'below')[other]}?", colours[other], tuple(INK)),
        choice("panel", f"How does the curve {('above', 'below')[other]} go?", shapes[other], SHAPES),
    )
    return Sample("science", canvas.finish(), caption, questions)


def _height(shape: str, x: float) -> float:
    if shape in ("rising", "falling"):
        return (2 * x - 1) * (1 if shape == "rising" else -1)
    bump = 2 * math.sin(math.pi * x) - 1
    return bump if shape == "peak" else -bump
