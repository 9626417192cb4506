"""User interfaces: buttons to click, switches to read, apps with unread messages."""

from typing import Final

from numpy.random import Generator

from sightloom.demo.corpus import arithmetic
from sightloom.demo.corpus.canvas import GREY, INK, WHITE, Canvas, Colour, tint
from sightloom.demo.corpus.draws import maybe, pick, pick_some
from sightloom.demo.corpus.icons import APPS, SETTINGS, SIGNS
from sightloom.demo.corpus.natural import PLACES
from sightloom.demo.corpus.sample import Question, Sample, choice, click, number, text

SPOTS: Final = ((250, 300), (750, 300), (250, 750), (750, 750))
MOST: Final = 6
_WAYS: Final = {
    0: (("right of", 1), ("below", 2)),
    1: (("left of", 0), ("below", 3)),
    2: (("above", 0), ("right of", 3)),
    3: (("above", 1), ("left of", 2)),
}


def draw(rng: Generator) -> Sample:
    """A window with buttons, a page of settings, or a home screen."""
    kind = int(rng.integers(3))
    return _buttons(rng) if kind == 0 else _settings(rng) if kind == 1 else _home(rng)


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
    facts = [f"{colour} {sign} {place}" for colour, sign, place in zip(colours, signs, PLACES, strict=True)]
    asked, other, start = (int(place) for place in rng.integers(4, size=3))
    way, end = pick(rng, _WAYS[start])
    steps = f"{colours[start]} {PLACES[start]}, {way} is {PLACES[end]}"
    questions = (
        click("click", f"Click the {colours[asked]} button.", SPOTS[asked], boxes[asked]),
        text("sign", f"What is on the {colours[other]} button?", signs[other]),
        choice("button-colour", f"What colour is the button {PLACES[asked]}?", colours[asked], tuple(INK)),
        click("click-next", f"Click the button {way} the {colours[start]} one.", SPOTS[end], boxes[end], steps),
    )
    return Sample("ui", canvas.finish(), f"window, {', '.join(facts)}", questions)


def _settings(rng: Generator) -> Sample:
    names = pick_some(rng, tuple(SETTINGS), 4)
    states = [maybe(rng, 0.5) for _ in names]
    canvas = Canvas(tint((248, 249, 251), (228, 233, 240), rng.uniform(0, 1)))
    boxes = []
    for row, (name, state) in enumerate(zip(names, states, strict=True)):
        y = 8 + 16 * row
        if row:
            canvas.rectangle(3, y - 8.4, 61, y - 7.8, (205, 210, 218))
        SETTINGS[name](canvas, 10 + rng.uniform(-0.7, 0.7), y)
        x = 50 + rng.uniform(-1, 1)
        _switch(canvas, x, y, state)
        boxes.append(_box(x - 10, y - 6, x + 10, y + 6))
    words = [f"{name} {_on(state)}" for name, state in zip(names, states, strict=True)]
    asked, other, place = (int(row) for row in rng.integers(4, size=3))
    seen, steps = 0, []
    for word, state in zip(words, states, strict=True):
        seen += state
        steps.append(f"{word} {seen}")
    questions: tuple[Question, ...] = (
        choice("switch", f"Is the {names[asked]} on or off?", _on(states[asked]), ("on", "off")),
        click("click", f"Click the {names[other]} switch.", (780, 125 + 250 * other), boxes[other]),
        text("setting", f"What is the {('first', 'second', 'third', 'last')[place]} setting?", names[place]),
        number("count-on", "How many switches are on?", seen, ", ".join(steps)),
    )
    return Sample("ui", canvas.finish(), f"settings, {', '.join(words)}", questions)


def _on(state: bool) -> str:
    return "on" if state else "off"


def _switch(canvas: Canvas, x: float, y: float, state: bool) -> None:
    track: Colour = (40, 180, 90) if state else GREY
    canvas.rectangle(x - 9, y - 5, x + 9, y + 5, track, 5)
    canvas.circle(x + 4.5 if state else x - 4.5, y, 3.8, WHITE)


def _home(rng: Generator) -> Sample:
    names = pick_some(rng, tuple(APPS), 4)
    facts = {name: int(rng.integers(1, MOST + 1)) for name in names}
    canvas = Canvas(tint((175, 205, 215), (215, 195, 215), rng.uniform(0, 1)))
    boxes = []
    for place, name in enumerate(names):
        x, y = 12 + 32 * (place % 2) + rng.uniform(-1, 1), 19 + 32 * (place // 2) + rng.uniform(-1, 1)
        APPS[name](canvas, x, y)
        left, top = 18 + 32 * (place % 2), 1 + 32 * (place // 2)
        canvas.rectangle(left, top, left + 13, top + 15, INK["red"], 4)
        canvas.write(str(facts[name]), left + 3.1, top + 1.7, WHITE, 2.3)
        boxes.append(_box(x - 11, y - 12, x + 14, y + 11))
    asked, place = (int(item) for item in rng.integers(4, size=2))
    one, other = pick_some(rng, names, 2)
    total, steps = arithmetic.add(facts, (one, other))
    spots = ((190, 300), (690, 300), (190, 800), (690, 800))
    questions: tuple[Question, ...] = (
        number("unread", f"How many messages are new in {names[asked]}?", facts[names[asked]]),
        click("click", f"Click {names[place]}.", spots[place], boxes[place]),
        text("app", f"Which app is {PLACES[3 - place]}?", names[3 - place]),
        number("unread-together", f"How many are new in {one} and {other} together?", total, steps),
    )
    words = ", ".join(f"{name} {facts[name]} {place}" for name, place in zip(names, PLACES, strict=True))
    return Sample("ui", canvas.finish(), f"home screen, {words}", questions)
