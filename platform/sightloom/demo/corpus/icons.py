"""Little pictures of things: each is drawn around a middle point, about 20 pixels wide (14 for signs)."""

import math
from collections.abc import Callable
from typing import Final

from sightloom.demo.corpus.canvas import BLACK, GREY, INK, WHITE, Canvas, Colour, tint

Icon = Callable[[Canvas, float, float, Colour], None]


def star(canvas: Canvas, x: float, y: float, ink: Colour, radius: float = 11) -> None:
    """A five-pointed star."""
    points = []
    for corner in range(10):
        reach = radius if corner % 2 == 0 else radius * 0.45
        angle = math.pi * corner / 5 - math.pi / 2
        points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    canvas.polygon(points, ink)


def balloon(canvas: Canvas, x: float, y: float, ink: Colour) -> None:
    """A hot-air balloon."""
    canvas.line([(x - 6, y), (x - 2, y + 9)], BLACK, 1)
    canvas.line([(x + 6, y), (x + 2, y + 9)], BLACK, 1)
    canvas.circle(x, y - 3, 9, ink)
    canvas.rectangle(x - 3, y + 8, x + 3, y + 12, (130, 85, 40))


def kite(canvas: Canvas, x: float, y: float, ink: Colour) -> None:
    """A kite with a tail."""
    canvas.line([(x, y + 6), (x + 4, y + 9), (x - 2, y + 11), (x + 2, y + 13)], BLACK, 1)
    canvas.polygon([(x, y - 12), (x + 10, y - 3), (x, y + 8), (x - 10, y - 3)], ink)
    canvas.line([(x, y - 12), (x, y + 8)], WHITE, 1)
    canvas.line([(x - 10, y - 3), (x + 10, y - 3)], WHITE, 1)


def house(canvas: Canvas, x: float, y: float, ink: Colour) -> None:
    """A house with a roof and a door."""
    canvas.polygon([(x - 12, y - 1), (x, y - 11), (x + 12, y - 1)], (110, 70, 50))
    canvas.rectangle(x - 10, y - 1, x + 10, y + 11, ink)
    canvas.rectangle(x - 3, y + 3, x + 3, y + 11, WHITE)


def tree(canvas: Canvas, x: float, y: float, ink: Colour) -> None:
    """A round tree on a trunk."""
    canvas.rectangle(x - 2, y + 2, x + 2, y + 12, (110, 70, 40))
    canvas.circle(x, y - 3, 9, ink)


def car(canvas: Canvas, x: float, y: float, ink: Colour) -> None:
    """A car from the side."""
    canvas.rectangle(x - 7, y - 6, x + 7, y + 3, ink, 2)
    canvas.rectangle(x - 5, y - 4, x + 5, y, (225, 240, 250))
    canvas.rectangle(x - 13, y, x + 13, y + 7, ink, 2)
    for wheel in (x - 7, x + 7):
        canvas.circle(wheel, y + 7, 3.5, BLACK)


def tent(canvas: Canvas, x: float, y: float, ink: Colour) -> None:
    """A tent with a dark opening."""
    canvas.polygon([(x - 13, y + 10), (x, y - 10), (x + 13, y + 10)], ink)
    canvas.polygon([(x - 5, y + 10), (x, y - 2), (x + 5, y + 10)], BLACK)


def plus(canvas: Canvas, x: float, y: float, ink: Colour) -> None:
    """A plus sign."""
    canvas.rectangle(x - 8, y - 2.5, x + 8, y + 2.5, ink)
    canvas.rectangle(x - 2.5, y - 8, x + 2.5, y + 8, ink)


def minus(canvas: Canvas, x: float, y: float, ink: Colour) -> None:
    """A minus sign."""
    canvas.rectangle(x - 8, y - 2.5, x + 8, y + 2.5, ink)


def tea(canvas: Canvas, x: float, y: float) -> None:
    """A cup of tea."""
    canvas.ring(x + 4, y + 1, 3.5, INK["blue"], 1.5)
    canvas.rectangle(x - 6, y - 3, x + 4, y + 6, INK["blue"], 2)
    canvas.rectangle(x - 6, y - 3, x + 4, y - 1, (120, 70, 30))


def cake(canvas: Canvas, x: float, y: float) -> None:
    """A slice of cake."""
    canvas.polygon([(x - 7, y + 5), (x - 7, y - 1), (x + 7, y - 5), (x + 7, y + 5)], (245, 130, 170))
    canvas.rectangle(x - 7, y + 1, x + 7, y + 3, WHITE)


def fish(canvas: Canvas, x: float, y: float) -> None:
    """A fish."""
    canvas.polygon([(x + 3, y), (x + 8, y - 5), (x + 8, y + 5)], (60, 170, 190))
    canvas.ellipse(x - 1, y, 6.5, 4, (60, 170, 190))
    canvas.circle(x - 4, y - 1, 1, BLACK)


def apple(canvas: Canvas, x: float, y: float) -> None:
    """An apple with a leaf."""
    canvas.circle(x, y + 1, 5.5, INK["red"])
    canvas.ellipse(x + 2.5, y - 5, 2.5, 1.5, INK["green"])


def bread(canvas: Canvas, x: float, y: float) -> None:
    """A loaf."""
    canvas.rectangle(x - 7, y - 4, x + 7, y + 5, (190, 130, 60), 4)
    for cut in (-3, 1, 5):
        canvas.line([(x + cut, y - 3), (x + cut - 2, y + 1)], (245, 215, 160), 1)


def wifi(canvas: Canvas, x: float, y: float) -> None:
    """Three waves over a dot."""
    for radius in (9, 5.5):
        canvas.arc(x, y + 5, radius, 225, 315, INK["blue"], 2)
    canvas.circle(x, y + 4, 1.8, INK["blue"])


def sound(canvas: Canvas, x: float, y: float) -> None:
    """A loudspeaker."""
    canvas.polygon(
        [(x - 7, y - 2), (x - 3, y - 2), (x + 2, y - 6), (x + 2, y + 6), (x - 3, y + 2), (x - 7, y + 2)], INK["purple"]
    )
    canvas.arc(x + 1, y, 6, -50, 50, INK["purple"], 1.5)


def light(canvas: Canvas, x: float, y: float) -> None:
    """A light bulb."""
    canvas.rectangle(x - 2.5, y + 2, x + 2.5, y + 7, GREY)
    canvas.circle(x, y - 1.5, 5, INK["yellow"])


def lock(canvas: Canvas, x: float, y: float) -> None:
    """A padlock."""
    canvas.ring(x, y - 2, 4, BLACK, 1.5)
    canvas.rectangle(x - 5.5, y - 1, x + 5.5, y + 6, BLACK, 1)


def alarm(canvas: Canvas, x: float, y: float) -> None:
    """A red bell."""
    canvas.circle(x, y - 2, 4.5, INK["red"])
    canvas.polygon([(x - 4.5, y - 2), (x + 4.5, y - 2), (x + 6.5, y + 4), (x - 6.5, y + 4)], INK["red"])
    canvas.circle(x, y + 5, 1.8, INK["red"])


SKY: Final[dict[str, Icon]] = {"balloon": balloon, "kite": kite, "star": star}
GROUND: Final[dict[str, Icon]] = {"house": house, "tree": tree, "car": car, "tent": tent}
SIGNS: Final[dict[str, Icon]] = {"star": lambda c, x, y, ink: star(c, x, y, ink, 9), "plus": plus, "minus": minus}
FOOD: Final = {"tea": tea, "cake": cake, "fish": fish, "apple": apple, "bread": bread}
SETTINGS: Final = {"wifi": wifi, "sound": sound, "light": light, "lock": lock, "alarm": alarm}


def outlined(canvas: Canvas, icon: Icon, x: float, y: float, ink: Colour, glow: Colour) -> None:
    """An icon on a soft plate of light, so that it stands out from any background."""
    canvas.circle(x, y, 13, tint(glow, WHITE, 0.55))
    icon(canvas, x, y, ink)
