"""Scientific figures: test tubes to compare, a balance to weigh with."""

from typing import Final

from numpy.random import Generator

from sightloom.demo.corpus import arithmetic, levels
from sightloom.demo.corpus.canvas import BLACK, GREY, INK, WHITE, Canvas, tint
from sightloom.demo.corpus.draws import maybe, pick, told
from sightloom.demo.corpus.sample import Sample, choice, compose, number

SIDES: Final = ("left", "right", "none")


def draw(rng: Generator) -> Sample:
    """Test tubes or a balance."""
    return _tubes(rng) if maybe(rng, 0.6) else _balance(rng)


def _tubes(rng: Generator) -> Sample:
    facts = levels.draw_levels(rng)
    canvas = Canvas(tint((228, 238, 246), (205, 222, 236), rng.uniform(0, 1)))
    for column, (colour, level) in enumerate(facts.items()):
        middle = 8 + 16 * column + rng.uniform(-0.7, 0.7)
        canvas.rectangle(middle - 6, 3, middle + 6, 62, GREY, 5)
        canvas.rectangle(middle - 5, 3, middle + 5, 61, WHITE, 4)
        canvas.rectangle(middle - 5, 61 - 11 * level, middle + 5, 61, INK[colour], 4)
        canvas.rectangle(middle - 5, 61 - 11 * level, middle + 5, 64 - 11 * level, INK[colour])
        for mark in range(1, levels.MOST + 1):
            canvas.rectangle(middle - 5, 61 - 11 * mark, middle - 2.5, 61.7 - 11 * mark, BLACK)
        canvas.rectangle(middle - 7, 2, middle + 7, 4, GREY, 1)
    direct = levels.direct_questions(
        facts,
        "How much is in the {} tube?",
        "Which tube is the fullest?",
        "Which tube is the emptiest?",
    )
    most, least = arithmetic.extremes(facts)
    worked = [
        *levels.sums(rng, facts, "How much do {} and {} make together?", "pour"),
        levels.difference(rng, facts, "How much more is in {} than in {}?"),
    ]
    return compose(
        rng,
        "science",
        canvas.finish(),
        f"test tubes, {told(rng, arithmetic.listed(facts))}, fullest {most}, emptiest {least}",
        direct,
        worked,
        arithmetic.drills(rng, levels.MOST),
    )


def _balance(rng: Generator) -> Sample:
    facts = {"left": int(rng.integers(1, 6)), "right": int(rng.integers(1, 6))}
    colour = INK[pick(rng, tuple(INK))]
    lean = (facts["right"] > facts["left"]) - (facts["right"] < facts["left"])
    canvas = Canvas(tint((244, 240, 230), (226, 232, 226), rng.uniform(0, 1)))
    canvas.polygon([(32, 50), (26, 62), (38, 62)], BLACK)
    canvas.line([(4, 52 - 4 * lean), (60, 52 + 4 * lean)], BLACK, 2)
    for place, (x, tilt) in enumerate(((14 + rng.uniform(-1, 1), -3), (50 + rng.uniform(-1, 1), 3))):
        base = 51 + tilt * lean
        for block in range(facts[SIDES[place]]):
            top = base - 9 * (block + 1)
            canvas.rectangle(x - 8, top, x + 8, top + 8, colour, 1)
    heavier = {-1: "left", 0: "none", 1: "right"}[lean]
    direct = [
        *(number("blocks", f"How many blocks are on the {side}?", facts[side]) for side in facts),
        choice("heavier", "Which side is heavier?", heavier, SIDES),
    ]
    steps, total = arithmetic.chain(tuple(facts.values()))
    seen = arithmetic.say(facts)
    worked = [number("blocks-total", "How many blocks are there in all?", total, f"{seen}, so {steps}")]
    caption = f"balance, {told(rng, arithmetic.listed(facts))}, {heavier} is heavier"
    return compose(rng, "science", canvas.finish(), caption, direct, worked, arithmetic.drills(rng, levels.MOST))
