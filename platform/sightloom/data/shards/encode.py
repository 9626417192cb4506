"""Writing pictures anew on request: upright RGB, at most so large, in one format, and never more bytes than before."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from sightloom.data.decode import decode
from sightloom.data.shards.config import Encoding
from sightloom.data.signals.config import DecodeLimits


@dataclass(frozen=True, slots=True)
class Encoded:
    """A new picture file and its sides in pixels."""

    data: bytes
    width: int
    height: int


def encode(data: bytes, encoding: Encoding, limits: DecodeLimits) -> Encoded | None:
    """Write a picture anew as `encoding` says; None where the result is not smaller than `data`: that is to stay.

    Raises Undecodable for a picture that scoring would have refused.
    """
    image = decode(data, limits).image
    scale = encoding.max_side / max(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    image.info = {}  # Pillow would write some of what it read: ICC, comments
    sink = io.BytesIO()
    if encoding.format == "png":
        image.save(sink, "PNG", optimize=True)
    else:
        image.save(sink, encoding.format.upper(), quality=encoding.quality)
    written = sink.getvalue()
    return Encoded(written, image.width, image.height) if len(written) < len(data) else None
