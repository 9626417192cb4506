"""Planted defects: what is wrong with each pair of a shard, decided before anything is drawn."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from numpy.random import Generator
from PIL import Image

OK: Final = "ok"
MISMATCH: Final = "mismatch"
# Shares of all pairs; what is left over is sound.
SHARES: Final[dict[str, float]] = {
    MISMATCH: 0.28,
    "duplicate": 0.03,
    "reencoded": 0.03,
    "truncated": 0.015,
    "tiny": 0.01,
    "empty": 0.015,
    "boilerplate": 0.03,
}
BOILERPLATE: Final = (
    "IMG_{0:04d}.jpg",
    "DSC{0:05d}.JPG",
    "click here to buy",
    "image may contain text",
    "free shipping on all orders",
    "untitled picture {0}",
)


@dataclass(frozen=True, slots=True)
class Fate:
    """What happens to one pair; `source` lends the caption (mismatch), or picture and caption (copies)."""

    defect: str
    source: int


def plan(rng: Generator, captions: Sequence[str]) -> list[Fate]:
    """One fate a pair of a shard, in shares that hold exactly up to rounding.

    A mismatched pair gets the caption of the next mismatched one; where both happen to read alike, the pair is sound.
    """
    count = len(captions)
    order = [int(place) for place in rng.permutation(count)]
    groups: dict[str, list[int]] = {}
    taken = 0
    for defect, share in SHARES.items():
        number = round(share * count)
        groups[defect] = order[taken : taken + number]
        taken += number
    sound = order[taken:]
    fates = {place: Fate(OK, place) for place in sound}
    for defect, places in groups.items():
        for position, place in enumerate(places):
            if defect == MISMATCH:
                source = places[(position + 1) % len(places)]
                fates[place] = Fate(MISMATCH if captions[source] != captions[place] else OK, source)
            elif defect in ("duplicate", "reencoded") and sound:
                fates[place] = Fate(defect, sound[position % len(sound)])
            else:
                fates[place] = Fate(defect, place)
    return [fates[place] for place in range(count)]


def truncated(data: bytes) -> bytes:
    """An image file cut off in the middle."""
    return data[: len(data) // 2]


def tiny() -> bytes:
    """A picture of one pixel, as trackers use them."""
    return encode(Image.new("RGB", (1, 1), (255, 255, 255)), "png")


def boilerplate(rng: Generator) -> str:
    """A caption that says nothing about the picture."""
    return BOILERPLATE[int(rng.integers(len(BOILERPLATE)))].format(int(rng.integers(10_000)))


def encode(image: Image.Image, extension: str, quality: int = 92) -> bytes:
    """The bytes of an image file: `png`, or `jpg` of a `quality`."""
    buffer = io.BytesIO()
    if extension == "png":
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
