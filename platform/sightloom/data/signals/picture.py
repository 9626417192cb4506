"""Signals of a picture: size, sharpness, entropy, flatness, and the hashes that find its copies.

Shapes: N images; grey values are float32 in 0..255.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

LONG_SIDE = 256  # sharpness, entropy and hashes are taken at this size, so that they compare across resolutions
SMALL, LARGE, THUMB = 32, 64, 4
Grey = npt.NDArray[np.float32]


def shrink(image: Image.Image) -> Image.Image:
    """Return the image with a long side of at most 256."""
    long_side = max(image.size)
    if long_side <= LONG_SIDE:
        return image
    scale = LONG_SIDE / long_side
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def picture_signals(small: Image.Image, width: int, height: int) -> dict[str, float]:
    """Return aspect, sharpness (variance of the Laplacian), entropy (bits) and flatness of a shrunk image."""
    grey = small.convert("L")
    histogram = grey.histogram()
    total = sum(histogram)
    entropy = -sum(count / total * math.log2(count / total) for count in histogram if count)
    return {
        "aspect": max(width, height) / min(width, height),
        "sharpness": _sharpness(np.asarray(grey, np.float32)),
        "entropy": abs(entropy),
        "flatness": max(histogram) / total,
    }


def _sharpness(grey_HW: Grey) -> float:
    if min(grey_HW.shape) < 3:
        return 0.0
    inner = grey_HW[1:-1, 1:-1]
    laplacian = grey_HW[:-2, 1:-1] + grey_HW[2:, 1:-1] + grey_HW[1:-1, :-2] + grey_HW[1:-1, 2:] - 4 * inner
    return float(laplacian.var())


def hash_inputs(small: Image.Image) -> tuple[Grey, Grey, bytes]:
    """Return what the hashes are made of: grey 32x32, grey 64x64, and the 4x4 RGB thumbnail's 48 bytes."""
    grey = small.convert("L")
    coarse = np.asarray(grey.resize((SMALL, SMALL), Image.Resampling.BILINEAR), np.float32)
    fine = np.asarray(grey.resize((LARGE, LARGE), Image.Resampling.BILINEAR), np.float32)
    return coarse, fine, small.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes()


def perceptual_hashes(grey_NSS: Grey, side: int) -> npt.NDArray[np.uint8]:
    """Return the DCT hashes of N grey squares, side*side bits each, packed: uint8 [N, side*side/8].

    A bit says whether one of the lowest `side` x `side` frequencies lies above their median (the constant left out).
    """
    size = grey_NSS.shape[-1]
    basis_KS = _cosines(side + 1, size)
    spectrum = np.einsum("ks,nst,lt->nkl", basis_KS, grey_NSS, basis_KS, optimize=True)[:, 1:, 1:]
    flat = spectrum.reshape(len(grey_NSS), -1)
    bits = flat > np.median(flat, axis=1, keepdims=True) if len(flat) else flat > 0
    return np.packbits(bits, axis=1)


def _cosines(rows: int, size: int) -> Grey:
    frequency, place = np.arange(rows)[:, None], np.arange(size)[None, :]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * size)).astype(np.float32)
