"""Natural scenes: coloured things in the sky and on the ground, by day or by night."""

from typing import Final

from numpy.random import Generator

from sightloom.demo.corpus.canvas import INK, WHITE, Canvas
from sightloom.demo.corpus.draws import maybe, pick, pick_some
from sightloom.demo.corpus.icons import GROUND, SKY, outlined
from sightloom.demo.corpus.sample import Question, Sample, choice, number, text

PLACES: Final = ("top left", "top right", "bottom left", "bottom right")
TIMES: Final = {"day": (150, 200, 245), "night": (22, 24, 62)}
GROUNDS: Final = {"grass": (120, 190, 95), "sand": (226, 200, 140), "snow": (232, 238, 246)}
# From a place, the way to another: the words of the question and where one arrives.
_WAYS: Final = {
    0: (("right of", 1), ("below", 2)),
    1: (("left of", 0), ("below", 3)),
    2: (("above", 0), ("right of", 3)),
    3: (("above", 1), ("left of", 2)),
}

Thing = tuple[str, str] | None  # colour, name


def draw(rng: Generator) -> Sample:
    """A scene of two to four things, its caption and questions."""
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
    return Sample("natural", canvas.finish(), _caption(things, time, ground), _questions(rng, things, time, ground))


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


def _caption(things: list[Thing], time: str, ground: str) -> str:
    parts = [f"{_say(thing)} {place}" for thing, place in zip(things, PLACES, strict=True)]
    return f"{', '.join(parts)}, {time} over {ground}"


def _say(thing: Thing) -> str:
    return " ".join(thing) if thing else "nothing"


def _questions(rng: Generator, things: list[Thing], time: str, ground: str) -> tuple[Question, ...]:
    present = [place for place, thing in enumerate(things) if thing]
    asked = things[pick(rng, present)] or ("", "")
    place = int(rng.integers(4))
    scene = (
        choice("time", "Is it day or night?", time, tuple(TIMES))
        if maybe(rng, 0.5)
        else choice("ground", "What is the ground?", ground, tuple(GROUNDS))
    )
    steps = _count(rng, things) if maybe(rng, 0.5) else _relation(rng, things, present)
    return (
        choice("colour", f"What colour is the {asked[1]}?", asked[0], tuple(INK)),
        text("thing", f"What is {PLACES[place]}?", _say(things[place])),
        scene,
        steps,
    )


def _count(rng: Generator, things: list[Thing]) -> Question:
    colours = [thing[0] for thing in things if thing]
    asked = pick(rng, colours) if maybe(rng, 0.85) else pick(rng, tuple(INK))
    facts, seen = [], 0
    for thing in things:
        if thing:
            seen += thing[0] == asked
            facts.append(f"{_say(thing)} {seen}")
    return number("count", f"How many things are {asked}?", seen, ", ".join(facts))


def _relation(rng: Generator, things: list[Thing], present: list[int]) -> Question:
    start = pick(rng, present)
    ways = [way for way in _WAYS[start] if things[way[1]]]
    way, end = pick(rng, ways)
    (_, name), (colour, other) = things[start] or ("", ""), things[end] or ("", "")
    reasoning = f"{name} {PLACES[start]}, {way} is {PLACES[end]}, {colour} {other} {PLACES[end]}"
    return choice("relation", f"What colour is the thing {way} the {name}?", colour, tuple(INK), reasoning)
