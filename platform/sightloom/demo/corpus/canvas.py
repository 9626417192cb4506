"""A 64-pixel canvas with smooth edges, and the drawing words that the five domains share."""

from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw

SIZE: Final = 64
SCALE: Final = 3  # drawn larger, then averaged: smooth edges

Colour = tuple[int, int, int]

INK: Final[dict[str, Colour]] = {
    "red": (222, 40, 40),
    "blue": (40, 85, 225),
    "green": (25, 150, 60),
    "yellow": (250, 205, 20),
    "purple": (155, 50, 185),
}
WHITE: Final[Colour] = (255, 255, 255)
BLACK: Final[Colour] = (30, 30, 36)
GREY: Final[Colour] = (150, 152, 160)

# Three columns by five rows, a bit a cell.
_GLYPHS: Final = {
    "0": "111101101101111",
    "1": "010110010010111",
    "2": "111001111100111",
    "3": "111001111001111",
    "4": "101101111001001",
    "5": "111100111001111",
    "6": "111100111101111",
    "7": "111001001010010",
    "8": "111101111101111",
    "9": "111101111001111",
    "A": "010101111101101",
    "B": "110101110101110",
    "I": "111010010010111",
    "L": "100100100100111",
}


class Canvas:
    """A square picture in coordinates of 64 pixels a side, whole or fractional."""

    def __init__(self, background: Colour) -> None:
        self._image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), background)
        self._draw = ImageDraw.Draw(self._image)

    def rectangle(self, x1: float, y1: float, x2: float, y2: float, fill: Colour, radius: float = 0) -> None:
        """A filled rectangle that ends before `x2`, `y2`, with rounded corners if asked."""
        box = (x1 * SCALE, y1 * SCALE, x2 * SCALE - 1, y2 * SCALE - 1)
        if radius:
            self._draw.rounded_rectangle(box, radius * SCALE, fill)
        else:
            self._draw.rectangle(box, fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        """A filled ellipse around `x`, `y`."""
        self._draw.ellipse(((x - rx) * SCALE, (y - ry) * SCALE, (x + rx) * SCALE, (y + ry) * SCALE), fill)

    def circle(self, x: float, y: float, radius: float, fill: Colour) -> None:
        """A filled circle around `x`, `y`."""
        self.ellipse(x, y, radius, radius, fill)

    def ring(self, x: float, y: float, radius: float, fill: Colour, width: float) -> None:
        """A circle line of `width` inside `radius`."""
        box = ((x - radius) * SCALE, (y - radius) * SCALE, (x + radius) * SCALE, (y + radius) * SCALE)
        self._draw.ellipse(box, outline=fill, width=round(width * SCALE))

    def arc(self, x: float, y: float, radius: float, start: float, end: float, fill: Colour, width: float) -> None:
        """An arc in degrees, clockwise from the right."""
        box = ((x - radius) * SCALE, (y - radius) * SCALE, (x + radius) * SCALE, (y + radius) * SCALE)
        self._draw.arc(box, start, end, fill, round(width * SCALE))

    def polygon(self, points: Sequence[tuple[float, float]], fill: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill)

    def line(self, points: Sequence[tuple[float, float]], fill: Colour, width: float) -> None:
        """A line through `points`."""
        self._draw.line([(x * SCALE, y * SCALE) for x, y in points], fill, round(width * SCALE), joint="curve")

    def write(self, words: str, x: float, y: float, fill: Colour, pixel: float) -> None:
        """Digits (and the few known letters) from the upper left corner on, a glyph 3×5 squares of `pixel`."""
        for position, glyph in enumerate(words):
            left = x + position * 4 * pixel
            for cell, bit in enumerate(_GLYPHS[glyph]):
                if bit == "1":
                    row, column = divmod(cell, 3)
                    x1, y1 = left + column * pixel, y + row * pixel
                    self.rectangle(x1, y1, x1 + pixel, y1 + pixel, fill)

    def finish(self) -> Image.Image:
        """The picture at its true size."""
        return self._image.reduce(SCALE)


def tint(colour: Colour, towards: Colour, share: float) -> Colour:
    """`colour` moved by `share` towards another."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, towards, strict=True))
    return red, green, blue
