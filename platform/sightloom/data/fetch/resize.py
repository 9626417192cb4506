"""Making pictures smaller as they arrive; what is small enough keeps its own bytes."""

from __future__ import annotations

import io

from PIL import Image, ImageOps

from sightloom.data.decode import DECODE_ERRORS, image_format
from sightloom.data.signals.config import DecodeLimits
from sightloom.data.sources.config import Resize


def resize(data: bytes, config: Resize) -> bytes:
    """Return a JPEG with the wanted side, upright; the given bytes where the picture is not larger.

    A picture that cannot be decoded, or says it has very many pixels, comes back as it is: scoring gives it its reason.
    """
    kind = image_format(data)
    try:
        with Image.open(io.BytesIO(data), formats=[str(kind)]) as image:
            if image.width * image.height > DecodeLimits().max_pixels:
                return data
            measure = min if config.mode == "short_side" else max
            if measure(image.size) <= config.side or getattr(image, "n_frames", 1) > 1:
                return data
            scale = config.side / measure(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            if kind == "JPEG":
                image.draft("RGB", (2 * size[0], 2 * size[1]))
            small = ImageOps.exif_transpose(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0))
            sink = io.BytesIO()
            (small if small.mode in ("RGB", "L") else small.convert("RGB")).save(sink, "JPEG", quality=config.quality)
            return sink.getvalue()
    except DECODE_ERRORS:
        return data
