"""Natural scenes: coloured things in the sky and on the ground, by day or by night."""

from collections.abc import Iterator
from typing import Final

from numpy.random import Generator

from sightloom.demo.corpus.arithmetic import WORDS
from sightloom.demo.corpus.canvas import INK, WHITE, Canvas
from sightloom.demo.corpus.draws import maybe, pick, pick_some, told
from sightloom.demo.corpus.icons import GROUND, SKY, outlined
from sightloom.demo.corpus.places import PLACES, WAYS
from sightloom.demo.corpus.sample import Question, Sample, choice, compose, number

TIMES: Final = {"day": (150, 200, 245), "night": (22, 24, 62)}
GROUNDS: Final = {"grass": (120, 190, 95), "sand": (226, 200, 140), "snow": (232, 238, 246)}

Thing = tuple[str, str] | None  # colour, name


def draw(rng: Generator) -> Sample:
    """A scene of three or four things, its caption and questions."""
    time, ground = pick(rng, tuple(TIMES)), pick(rng, tuple(GROUNDS))
    names = [*pick_some(rng, tuple(SKY), 2), *pick_some(rng, tuple(GROUND), 2)]
    things: list[Thing] = [(pick(rng, tuple(INK)), name) for name in names]
    if maybe(rng, 0.5):
        things[int(rng.integers(4))] = None
    canvas = _background(rng, time, ground)
    for place, thing in enumerate(things):
        if thing:
            colour, name = thing
            x, y = 16 + 32 * (place % 2) + rng.uniform(-2, 2), 16 + 32 * (place // 2) + rng.uniform(-2, 2)
            icon = SKY[name] if place < 2 else GROUND[name]
            outlined(canvas, icon, x, y, INK[colour], TIMES[time] if place < 2 else GROUNDS[ground])
    direct = [
        choice("time", "Is it day or night?", time, tuple(TIMES)),
        choice("ground", "What is the ground?", ground, tuple(GROUNDS)),
        *(choice("colour", f"What colour is the {thing[1]}?", thing[0], tuple(INK)) for thing in things if thing),
        *(
            choice("place", f"Where is the {thing[1]}?", place, PLACES)
            for place, thing in zip(PLACES, things, strict=True)
            if thing
        ),
    ]
    steps = [*_counts(things), *_relations(things)]
    caption = f"{told(rng, _by_colour(things))}, {told(rng, _by_place(things))}, {time} over {ground}"
    return compose(rng, "natural", canvas.finish(), caption, direct, steps)


def _background(rng: Generator, time: str, ground: str) -> Canvas:
    canvas = Canvas(TIMES[time])
    if time == "night":
        for _ in range(9):
            canvas.circle(rng.uniform(0, 64), rng.uniform(0, 34), 0.6, WHITE)
    else:
        x = rng.uniform(0, 64)
        canvas.ellipse(x, rng.uniform(2, 10), 9, 3, (225, 238, 250))
    rise = rng.uniform(-3, 3)
    canvas.polygon([(0, 36 + rise), (32, 33), (64, 36 - rise), (64, 64), (0, 64)], GROUNDS[ground])
    return canvas


def _by_colour(things: list[Thing]) -> list[str]:
    return [f"{thing[1]} {thing[0]}" for thing in things if thing]


def _by_place(things: list[Thing]) -> list[str]:
    return [f"{thing[1]} {place}" for place, thing in zip(PLACES, things, strict=True) if thing]


def _counts(things: list[Thing]) -> Iterator[Question]:
    for asked in INK:
        facts, seen = [], 0
        for thing in things:
            if thing:
                seen += thing[0] == asked
                facts.append(f"{thing[1]} {thing[0]} {WORDS[seen]}")
        if seen:
            yield number("count", f"How many things are {asked}?", seen, ", ".join(facts))


def _relations(things: list[Thing]) -> Iterator[Question]:
    seen = ", ".join(_by_place(things))
    for start, from_thing in enumerate(things):
        for way, end in WAYS[start]:
            to_thing = things[end]
            if from_thing and to_thing:
                colour, name = to_thing
                reasoning = f"{seen}, so {from_thing[1]} {PLACES[start]}, {way} is {PLACES[end]}, {name} {colour}"
                prompt = f"What colour is the thing {way} the {from_thing[1]}?"
                yield choice("relation", prompt, colour, tuple(INK), reasoning)
