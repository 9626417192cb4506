"""Art: a framed picture with a pattern, a palette and a medium."""

from typing import Final

from numpy.random import Generator

from sightloom.demo.corpus.canvas import BLACK, WHITE, Canvas, Colour
from sightloom.demo.corpus.draws import pick
from sightloom.demo.corpus.sample import Sample, choice, compose

PALETTES: Final[dict[str, tuple[Colour, ...]]] = {
    "warm": ((205, 50, 40), (240, 140, 40), (250, 205, 90), (150, 40, 50)),
    "cool": ((35, 70, 160), (60, 150, 200), (40, 140, 120), (150, 205, 230)),
    "grey": ((60, 60, 64), (120, 120, 124), (180, 180, 184), (225, 225, 228)),
}
PATTERNS: Final = ("stripes", "checks", "rings", "dots")
MEDIA: Final = ("oil", "pencil", "mosaic")
FRAMES: Final[dict[str, Colour]] = {"gold": (205, 165, 60), "black": BLACK, "white": (246, 246, 244)}


def draw(rng: Generator) -> Sample:
    """A framed picture."""
    palette, pattern = pick(rng, tuple(PALETTES)), pick(rng, PATTERNS)
    medium, frame = pick(rng, MEDIA), pick(rng, tuple(FRAMES))
    inks = [PALETTES[palette][int(place)] for place in rng.permutation(4)]
    canvas = Canvas(WHITE if medium == "pencil" else inks[0])
    _pattern(rng, canvas, pattern, inks, outline=medium == "pencil")
    _surface(rng, canvas, medium, inks)
    for x1, y1, x2, y2 in ((0, 0, 64, 6), (0, 58, 64, 64), (0, 0, 6, 64), (58, 0, 64, 64)):
        canvas.rectangle(x1, y1, x2, y2, FRAMES[frame])
    questions = (
        choice("palette", "Which palette is it?", palette, tuple(PALETTES)),
        choice("pattern", "Which pattern is it?", pattern, PATTERNS),
        choice("medium", "Which medium is it?", medium, MEDIA),
        choice("frame", "Which frame has it?", frame, tuple(FRAMES)),
    )

    caption = f"{medium} painting, {palette} {pattern}, {frame} frame"
    return compose(rng, "art", canvas.finish(), caption, questions)


def _pattern(rng: Generator, canvas: Canvas, pattern: str, inks: list[Colour], outline: bool) -> None:
    shift = rng.uniform(-2, 2)
    if pattern == "stripes":
        for stripe in range(0, 64, 12):
            top = stripe + shift
            canvas.rectangle(0, top, 64, top + 6, inks[1 + stripe // 12 % 3])
            if outline:
                canvas.rectangle(0, top + 1.5, 64, top + 4.5, WHITE)
    elif pattern == "checks":
        for cell in range(25):
            if cell % 2 == 0:
                x, y = cell % 5 * 13 + shift, cell // 5 * 13 + shift
                canvas.rectangle(x, y, x + 13, y + 13, inks[1 + cell // 5 % 3])
                if outline:
                    canvas.rectangle(x + 1.5, y + 1.5, x + 11.5, y + 11.5, WHITE)
    elif pattern == "rings":
        for ring in range(4):
            canvas.ring(32 + shift, 32 - shift, 33 - 8 * ring, inks[1 + ring % 3], 2 if outline else 5)
    else:
        for cell in range(9):
            x, y = 14 + cell % 3 * 18 + shift, 14 + cell // 3 * 18 + shift
            canvas.circle(x, y, 6, inks[1 + cell % 3])
            if outline:
                canvas.circle(x, y, 4.5, WHITE)


def _surface(rng: Generator, canvas: Canvas, medium: str, inks: list[Colour]) -> None:
    if medium == "mosaic":
        for line in range(8, 64, 8):
            canvas.rectangle(line - 0.8, 0, line + 0.8, 64, WHITE)
            canvas.rectangle(0, line - 0.8, 64, line + 0.8, WHITE)
    elif medium == "oil":
        for _ in range(14):
            x, y = rng.uniform(8, 54), rng.uniform(8, 56)
            canvas.line([(x, y), (x + 5, y - 2)], inks[int(rng.integers(4))], 1.5)
