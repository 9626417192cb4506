"""User interfaces: buttons to click and switches to read."""

from typing import Final

from numpy.random import Generator

from sightloom.demo.corpus.arithmetic import WORDS
from sightloom.demo.corpus.canvas import GREY, INK, WHITE, Canvas, Colour, tint
from sightloom.demo.corpus.draws import maybe, pick, pick_some, told
from sightloom.demo.corpus.icons import SETTINGS, SIGNS
from sightloom.demo.corpus.places import PLACES, WAYS
from sightloom.demo.corpus.sample import Sample, choice, click, compose, number, text

BUTTON_SPOTS: Final = ((250, 300), (750, 300), (250, 750), (750, 750))


def draw(rng: Generator) -> Sample:
    """A window with buttons or a page of settings."""
    return _buttons(rng) if maybe(rng, 0.5) else _settings(rng)


def _box(x1: float, y1: float, x2: float, y2: float) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(side * 1000 / 64) for side in (x1, y1, x2, y2))
    return left, top, right, bottom


def _buttons(rng: Generator) -> Sample:
    colours = pick_some(rng, tuple(INK), 4)
    signs = [pick(rng, tuple(SIGNS)) for _ in range(4)]
    canvas = Canvas(tint((236, 238, 242), (214, 220, 230), rng.uniform(0, 1)))
    canvas.rectangle(0, 0, 64, 6, (70, 78, 92))
    for dot, ink in enumerate(("red", "yellow", "green")):
        canvas.circle(4 + 5 * dot, 3, 1.5, INK[ink])
    boxes = []
    for place in range(4):
        x, y = 16 + 32 * (place % 2) + rng.uniform(-1.5, 1.5), 20 + 28 * (place // 2) + rng.uniform(-1, 1)
        half = rng.uniform(11, 13)
        canvas.rectangle(x - half, y - 11, x + half, y + 11, INK[colours[place]], 4)
        SIGNS[signs[place]](canvas, x, y, WHITE)
        boxes.append(_box(x - half, y - 11, x + half, y + 11))
    facts = tuple(zip(colours, signs, PLACES, strict=True))
    direct = [
        *(click("click", f"Click the {colours[at]} button.", BUTTON_SPOTS[at], boxes[at]) for at in range(4)),
        *(text("sign", f"What is on the {colour} button?", sign) for colour, sign, _ in facts),
    ]
    by_place = [f"{colour} {place}" for colour, _, place in facts]
    worked = []
    for start, ways in enumerate(WAYS):
        for way, end in ways:
            steps = f"{', '.join(by_place)}, so {colours[start]} {PLACES[start]}, {way} is {PLACES[end]}"
            prompt = f"Click the button {way} the {colours[start]} one."
            worked.append(click("click-next", prompt, BUTTON_SPOTS[end], boxes[end], steps))
    by_sign = [f"{colour} {sign}" for colour, sign, _ in facts]
    caption = f"window, {told(rng, by_sign)}, {told(rng, by_place)}"
    return compose(rng, "ui", canvas.finish(), caption, direct, worked)


def _settings(rng: Generator) -> Sample:
    names = pick_some(rng, tuple(SETTINGS), 4)
    states = [maybe(rng, 0.5) for _ in names]
    canvas = Canvas(tint((248, 249, 251), (228, 233, 240), rng.uniform(0, 1)))
    for row, (name, state) in enumerate(zip(names, states, strict=True)):
        y = 8 + 16 * row
        if row:
            canvas.rectangle(3, y - 8.4, 61, y - 7.8, (205, 210, 218))
        SETTINGS[name](canvas, 10 + rng.uniform(-0.7, 0.7), y)
        x = 50 + rng.uniform(-1, 1)
        _switch(canvas, x, y, state)
    words = ["on" if state else "off" for state in states]
    facts = [f"{name} {word}" for name, word in zip(names, words, strict=True)]
    seen, steps = 0, []
    for state, fact in zip(states, facts, strict=True):
        seen += state
        steps.append(f"{fact} {WORDS[seen]}")
    direct = [
        choice("switch", f"Is the {name} on or off?", word, ("on", "off"))
        for name, word in zip(names, words, strict=True)
    ]
    worked = [number("count-on", "How many switches are on?", seen, ", ".join(steps))]
    caption = f"settings, {told(rng, facts)}"
    return compose(rng, "ui", canvas.finish(), caption, direct, worked)


def _switch(canvas: Canvas, x: float, y: float, state: bool) -> None:
    track: Colour = (40, 180, 90) if state else GREY
    canvas.rectangle(x - 9, y - 5, x + 9, y + 5, track, 5)
    canvas.circle(x + 4.5 if state else x - 4.5, y, 3.8, WHITE)
