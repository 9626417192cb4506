"""Documents: bar charts to read and bills to add up."""

from typing import Final

from numpy.random import Generator

from sightloom.demo.corpus import arithmetic, levels
from sightloom.demo.corpus.canvas import BLACK, INK, WHITE, Canvas, Colour, tint
from sightloom.demo.corpus.draws import maybe, pick, pick_some, told
from sightloom.demo.corpus.icons import FOOD
from sightloom.demo.corpus.sample import Sample, compose, number

MOST: Final = 5  # the largest price


def draw(rng: Generator) -> Sample:
    """A bar chart or a bill."""
    return _chart(rng) if maybe(rng, 0.5) else _bill(rng)


def _chart(rng: Generator) -> Sample:
    facts = levels.draw_levels(rng)
    canvas = Canvas(tint(WHITE, pick(rng, tuple(INK.values())), rng.uniform(0, 0.12)))
    for level in range(1, levels.MOST + 1):
        canvas.rectangle(2, 60 - 11 * level, 62, 60.7 - 11 * level, (205, 208, 214))
    for column, (colour, level) in enumerate(facts.items()):
        middle, half = 8 + 16 * column + rng.uniform(-0.7, 0.7), rng.uniform(4.5, 6)
        canvas.rectangle(middle - half, 60 - 11 * level, middle + half, 60, INK[colour])
    canvas.rectangle(1, 60, 63, 61.5, BLACK)
    canvas.rectangle(1, 2, 2.5, 61, BLACK)
    direct = levels.direct_questions(
        facts,
        "How tall is the {} bar?",
        "Which bar is the tallest?",
        "Which bar is the shortest?",
    )
    most, least = arithmetic.extremes(facts)
    total, steps = arithmetic.add(facts, (most, least))
    worked = [
        *levels.sums(rng, facts, "What do the {} and {} bars add up to?", "add"),
        levels.difference(rng, facts, "How much taller is {} than {}?"),
        number(
            "extremes",
            "What do the tallest and the shortest bar add up to?",
            total,
            levels.worked(facts, f"tallest {most}, shortest {least}, {steps}"),
        ),
    ]
    return compose(
        rng,
        "document",
        canvas.finish(),
        f"bar chart, {told(rng, arithmetic.listed(facts))}, tallest {most}, shortest {least}",
        direct,
        worked,
        arithmetic.drills(rng, MOST),
    )


def _bill(rng: Generator) -> Sample:
    names = pick_some(rng, tuple(FOOD), 3)
    facts = {name: int(rng.integers(1, MOST + 1)) for name in names}
    paper: Colour = tint((255, 252, 240), (235, 225, 195), rng.uniform(0, 1))
    canvas = Canvas(tint((120, 130, 145), (70, 80, 95), rng.uniform(0, 1)))
    canvas.rectangle(1, 1, 63, 63, paper, 2)
    canvas.write("BILL", 17, 4, BLACK, 2)
    for row, name in enumerate(names):
        middle = 24 + 16 * row
        FOOD[name](canvas, 10 + rng.uniform(-0.7, 0.7), middle)
        for coin in range(facts[name]):
            canvas.circle(23 + 4.6 * coin, middle, 2.2, (214, 160, 30))
        canvas.write(str(facts[name]), 52.5 + rng.uniform(-0.5, 0.5), middle - 6.5, BLACK, 2.6)
    direct = [
        *(number("price", f"What does the {name} cost?", facts[name]) for name in names),
    ]
    seen = arithmetic.say(facts)
    steps, total = arithmetic.chain(tuple(facts.values()))
    pair = pick_some(rng, names, 2)
    together, pair_steps = arithmetic.add(facts, pair)
    worked = [
        number("total", "What is the total?", total, f"{seen}, so {steps}"),
        number("together", f"What do {pair[0]} and {pair[1]} cost together?", together, f"{seen}, so {pair_steps}"),
    ]
    caption = f"bill, {told(rng, arithmetic.listed(facts))}"
    return compose(rng, "document", canvas.finish(), caption, direct, worked, arithmetic.drills(rng, MOST))
