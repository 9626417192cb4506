"""Decoding images that anyone may have made: type by content, limits before pixels, a named reason for each refusal."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

from sightloom.data.signals.config import DecodeLimits

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
_ORIENTATION = 0x0112
# What Pillow's decoders raise on bytes that are no whole image of their type.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    OverflowError,
    RuntimeError,
    MemoryError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class Undecodable(Exception):
    """An image that cannot be used; `status` is the reason it is counted under."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Decoded:
    """The first frame as RGB, upright, and what its header said."""

    image: Image.Image
    width: int
    height: int
    format: str
    mode: str
    alpha: bool
    frames: int


def image_format(data: bytes) -> str | None:
    """Return Pillow's name of the image type that the bytes show, or None."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:2] == b"BM":
        return "BMP"
    return "TIFF" if data[:4] in (b"II*\0", b"MM\0*") else None


def decode(data: bytes, limits: DecodeLimits) -> Decoded:
    """Decode an image wholly, or raise Undecodable with its reason."""
    kind = image_format(data)
    if kind is None:
        raise Undecodable("unsupported_image", f"its first bytes are {data[:8]!r}")
    if len(data) > limits.max_mb * 1e6:
        raise Undecodable("large_image", f"{len(data)} bytes")
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            if image.width * image.height > limits.max_pixels:
                raise Undecodable("too_many_pixels", f"{image.width} x {image.height}")
            mode, frames = image.mode, int(getattr(image, "n_frames", 1))
            alpha = mode in _ALPHA_MODES or "transparency" in image.info
            image.load()
            upright: Image.Image = image
            if kind != "GIF" and image.getexif().get(_ORIENTATION, 1) != 1:
                upright = ImageOps.exif_transpose(image)
            rgb = upright if upright.mode == "RGB" else upright.convert("RGB")
            rgb = rgb.copy() if rgb is image else rgb
    except Image.DecompressionBombError as error:  # Pillow reads no header that says more than twice its own limit
        raise Undecodable("too_many_pixels", str(error)) from error
    except UnidentifiedImageError as error:
        raise Undecodable("decode_error", str(error)) from error
    except DECODE_ERRORS as error:
        words = f"{type(error).__name__}: {error}"
        cut = any(mark in str(error).lower() for mark in ("truncated", "unexpected end", "incomplete"))
        raise Undecodable("truncated_image" if cut else "decode_error", words) from error
    return Decoded(rgb, rgb.width, rgb.height, kind, mode, alpha, frames)
