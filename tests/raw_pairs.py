"""Raw pairs as users have them: pictures of blocks, tars in any make, and a tiny open_clip model to score them with."""

import io
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image

TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
Samples = list[tuple[str, dict[str, bytes]]]  # key → content by extension


def scene_bytes(number: int, size: tuple[int, int] = (48, 48), form: str = "PNG") -> bytes:
    """A picture of blocks, different for each number."""
    blocks = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(sink, form)
    return sink.getvalue()


def tar_bytes(samples: Samples) -> bytes:
    """A tar as others write it: GNU format, any names."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for key, members in samples:
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def bomb_bytes() -> bytes:
    """A PNG of 170 bytes that says it has 1.6 gigapixels."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(bytes(99))) + part(b"IEND", b"")


def jpeg(data: bytes, scale: float, quality: int) -> bytes:
    """The same picture at another size and quality."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    size = (round(image.width * scale), round(image.height * scale))
    sink = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(sink, "JPEG", quality=quality)
    return sink.getvalue()


def smooth(number: int) -> bytes:
    """Noise whose energy falls with frequency as that of photos does."""
    frequency = np.fft.fftfreq(128)
    radius = np.hypot(frequency[:, None], frequency[None])
    radius[0, 0] = 1 / 128
    noise = np.random.default_rng(number).normal(size=(128, 128))
    grey = np.fft.ifft2(np.fft.fft2(noise) / radius).real
    levels = (grey - grey.min()) / (grey.max() - grey.min()) * 255
    sink = io.BytesIO()
    Image.fromarray(levels.astype(np.uint8)).convert("RGB").save(sink, "PNG")
    return sink.getvalue()
