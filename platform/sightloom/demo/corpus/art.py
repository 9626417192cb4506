"""Art: a framed picture with a subject, a palette and a medium."""

from typing import Final

from numpy.random import Generator

from sightloom.demo.corpus.canvas import BLACK, WHITE, Canvas, Colour, tint
from sightloom.demo.corpus.draws import pick
from sightloom.demo.corpus.sample import Sample, choice, compose

# Each palette: dark inks, then light ones.
PALETTES: Final[dict[str, tuple[Colour, Colour, Colour, Colour]]] = {
    "warm": ((190, 40, 40), (150, 40, 60), (250, 200, 80), (245, 160, 70)),
    "cool": ((30, 60, 150), (20, 100, 120), (150, 210, 235), (120, 200, 190)),
    "grey": ((50, 50, 54), (84, 84, 88), (190, 190, 194), (220, 220, 224)),
}
SUBJECTS: Final = ("sun", "tower", "waves", "checks")
MEDIA: Final = ("oil", "pencil", "mosaic")
FRAMES: Final[dict[str, Colour]] = {"gold": (205, 165, 60), "black": BLACK, "white": (246, 246, 244)}


def draw(rng: Generator) -> Sample:
    """A framed picture."""
    palette, subject = pick(rng, tuple(PALETTES)), pick(rng, SUBJECTS)
    medium, frame = pick(rng, MEDIA), pick(rng, tuple(FRAMES))
    inks = PALETTES[palette]
    dark, light = pick(rng, inks[:2]), pick(rng, inks[2:])
    canvas = Canvas(WHITE if medium == "pencil" else light)
    _paint(rng, canvas, subject, tint(dark, WHITE, 0.45) if medium == "pencil" else dark)
    _surface(rng, canvas, medium, dark, light)
    for x1, y1, x2, y2 in ((0, 0, 64, 6), (0, 58, 64, 64), (0, 0, 6, 64), (58, 0, 64, 64)):
        canvas.rectangle(x1, y1, x2, y2, FRAMES[frame])
    questions = (
        choice("palette", "Which palette is it?", palette, tuple(PALETTES)),
        choice("subject", "What does it show?", subject, SUBJECTS),
        choice("medium", "Which medium is it?", medium, MEDIA),
        choice("frame", "Which frame has it?", frame, tuple(FRAMES)),
    )
    caption = f"{medium} painting, {palette} {subject}, {frame} frame"
    return compose(rng, "art", canvas.finish(), caption, questions)


def _paint(rng: Generator, canvas: Canvas, subject: str, ink: Colour) -> None:
    x, y = rng.uniform(-2, 2), rng.uniform(-2, 2)
    if subject == "sun":
        canvas.circle(32 + x, 32 + y, 17, ink)
    elif subject == "tower":
        canvas.rectangle(25 + x, 12 + y, 39 + x, 64, ink)
        canvas.polygon([(21 + x, 16 + y), (32 + x, 6 + y), (43 + x, 16 + y)], ink)
    elif subject == "waves":
        for wave in range(2):
            top = 16 + 32 * wave + y
            canvas.polygon(
                [
                    (0, top + 2),
                    (16, top - 2),
                    (32, top + 2),
                    (48, top - 2),
                    (64, top + 2),
                    (64, top + 14),
                    (0, top + 14),
                ],
                ink,
            )
    else:
        for cell in range(0, 16, 2):
            left, top = 16 * ((cell + cell // 4) % 4), 16 * (cell // 4)
            canvas.rectangle(left, top, left + 16, top + 16, ink)


def _surface(rng: Generator, canvas: Canvas, medium: str, dark: Colour, light: Colour) -> None:
    if medium == "mosaic":
        for line in range(8, 64, 8):
            canvas.rectangle(line - 0.8, 0, line + 0.8, 64, WHITE)
            canvas.rectangle(0, line - 0.8, 64, line + 0.8, WHITE)
    elif medium == "oil":
        for _ in range(14):
            x, y = rng.uniform(8, 54), rng.uniform(8, 56)
            canvas.line([(x, y), (x + 5, y - 2)], pick(rng, (dark, light)), 1.5)
    else:
        for line in range(-48, 64, 5):
            canvas.line([(line, 64), (line + 48, 0)], tint(dark, WHITE, 0.6), 0.7)
