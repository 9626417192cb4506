"""Documents: bar charts to read and bills to add up."""

from typing import Final

from numpy.random import Generator

from sightloom.demo.corpus import arithmetic
from sightloom.demo.corpus.canvas import BLACK, INK, WHITE, Canvas, Colour, tint
from sightloom.demo.corpus.draws import maybe, pick, pick_some
from sightloom.demo.corpus.icons import FOOD
from sightloom.demo.corpus.sample import Question, Sample, choice, number, text

MOST: Final = 6  # the largest bar and the largest price
LINES: Final = ("first", "second", "third")


def draw(rng: Generator) -> Sample:
    """A bar chart or a bill."""
    return _chart(rng) if maybe(rng, 0.5) else _bill(rng)


def distinct_levels(rng: Generator, names: tuple[str, ...], count: int) -> dict[str, int]:
    """`count` of the names, each with its own level from 1 to MOST."""
    levels = pick_some(rng, tuple(range(1, MOST + 1)), count)
    return dict(zip(pick_some(rng, names, count), levels, strict=True))


def level_questions(rng: Generator, facts: dict[str, int], words: tuple[str, str, str], order: str) -> list[Question]:
    """Direct questions on coloured columns; `words` ask for a value, for the largest and for the smallest."""
    value_words, most_words, least_words = words
    most, least = arithmetic.extremes(facts)
    asked = pick(rng, tuple(facts))
    place = int(rng.integers(len(facts)))
    ends = (most_words, most) if maybe(rng, 0.5) else (least_words, least)
    return [
        number("value", value_words.format(asked), facts[asked]),
        choice("extreme", ends[0], ends[1], tuple(INK)),
        choice("place", order.format(("first", "second", "third", "last")[place]), tuple(facts)[place], tuple(INK)),
    ]


def _chart(rng: Generator) -> Sample:
    facts = distinct_levels(rng, tuple(INK), 4)
    paper = tint(WHITE, pick(rng, tuple(INK.values())), rng.uniform(0, 0.12))
    canvas = Canvas(paper)
    for level in range(1, MOST + 1):
        canvas.rectangle(2, 56 - 8 * level, 62, 56.7 - 8 * level, (205, 208, 214))
    for column, (colour, level) in enumerate(facts.items()):
        middle, half = 8 + 16 * column + rng.uniform(-0.7, 0.7), rng.uniform(4.5, 6)
        canvas.rectangle(middle - half, 56 - 8 * level, middle + half, 56, INK[colour])
    canvas.rectangle(1, 56, 63, 57.5, BLACK)
    canvas.rectangle(1, 4, 2.5, 57, BLACK)
    words = ("How tall is the {} bar?", "Which bar is the tallest?", "Which bar is the shortest?")
    direct = level_questions(rng, facts, words, "What colour is the {} bar?")
    caption = f"bar chart, {arithmetic.say(facts)}"
    return Sample("document", canvas.finish(), caption, (*direct, _chart_steps(rng, facts)))


def _chart_steps(rng: Generator, facts: dict[str, int]) -> Question:
    most, least = arithmetic.extremes(facts)
    kind = int(rng.integers(3))
    if kind == 0:
        one, other = pick_some(rng, tuple(facts), 2)
        total, steps = arithmetic.add(facts, (one, other))
        return number("add", f"What do the {one} and {other} bars add up to?", total, steps)
    if kind == 1:
        total, steps = arithmetic.add(facts, (most, least))
        reasoning = f"{arithmetic.say(facts)}, tallest {most}, shortest {least}, {steps}"
        return number("extremes", "What do the tallest and the shortest bar add up to?", total, reasoning)
    one, other = pick_some(rng, tuple(facts), 2)
    more, less = (one, other) if facts[one] > facts[other] else (other, one)
    difference, steps = arithmetic.subtract(facts, more, less)
    return number("difference", f"How much taller is {more} than {less}?", difference, steps)


def _bill(rng: Generator) -> Sample:
    names = pick_some(rng, tuple(FOOD), 3)
    facts = {name: int(rng.integers(1, MOST + 1)) for name in names}
    paper: Colour = tint((255, 252, 240), (235, 225, 195), rng.uniform(0, 1))
    canvas = Canvas(tint((120, 130, 145), (70, 80, 95), rng.uniform(0, 1)))
    canvas.rectangle(1, 1, 63, 63, paper, 2)
    canvas.write("BILL", 17, 4, BLACK, 2)
    for row, name in enumerate(names):
        middle = 24 + 16 * row
        FOOD[name](canvas, 11 + rng.uniform(-0.7, 0.7), middle)
        for dot in range(22, 48, 4):
            canvas.circle(dot, middle + 4, 0.7, (150, 150, 150))
        canvas.write(str(facts[name]), 51.5 + rng.uniform(-0.5, 0.5), middle - 6.5, BLACK, 2.6)
    asked, line = pick(rng, names), int(rng.integers(3))
    most = max(facts.values())
    first = [name for name, price in facts.items() if price == most]
    direct = [
        number("price", f"What does the {asked} cost?", facts[asked]),
        text("line", f"What is on the {LINES[line]} line?", names[line]),
        number("line-price", f"What is the {LINES[2 - line]} price?", facts[names[2 - line]]),
    ]
    if len(first) == 1 and maybe(rng, 0.5):
        direct[2] = text("dearest", "What costs the most?", first[0])
    if maybe(rng, 0.6):
        total, steps = arithmetic.add(facts, names)
        question = number("total", "What is the total?", total, steps)
    else:
        one, other = pick_some(rng, names, 2)
        total, steps = arithmetic.add(facts, (one, other))
        question = number("together", f"What do {one} and {other} cost together?", total, steps)
    return Sample("document", canvas.finish(), f"bill, {arithmetic.say(facts)}", (*direct, question))
