"""Resizing and cropping as open_clip does, without torch: what a scorer's actor gets is uint8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from sightloom.data.signals.overlap import TextMask, covered

LONGEST_ASPECT = 32.0  # a longer strip is cut to its middle before it is resized: it would need gigabytes
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, slots=True)
class CropSpec:
    """How a model wants its picture: `shortest` = resize the short side, crop the centre; `squash` = resize both.

    With `mask`, text is covered first.
    """

    side: int
    resize: str
    interpolation: str
    mask: TextMask | None = None


def views(image: Image.Image, specs: Sequence[CropSpec]) -> list[npt.NDArray[np.uint8]]:
    """Return each model's view of an RGB image; where a view is of covered text, that is found once for all."""
    masks = dict.fromkeys(spec.mask for spec in specs if spec.mask is not None)
    shown: dict[TextMask | None, Image.Image] = {None: image, **{mask: covered(image, mask) for mask in masks}}
    return [crop(shown[spec.mask], spec) for spec in specs]


def crop(image: Image.Image, spec: CropSpec) -> npt.NDArray[np.uint8]:
    """Return the model's view of an RGB image, uint8 [side, side, 3], equal to torchvision's Resize + CenterCrop."""
    side, resampling = spec.side, RESAMPLING[spec.interpolation]
    if spec.resize == "squash":
        if image.size != (side, side):
            image = image.resize((side, side), resampling)
        return np.asarray(image, np.uint8)
    image = _middle(image)
    width, height = image.size
    size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    if size != (width, height):
        image = image.resize(size, resampling)
    left, top = round((size[0] - side) / 2.0), round((size[1] - side) / 2.0)
    if size != (side, side):
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image, np.uint8)


def _middle(image: Image.Image) -> Image.Image:
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if long <= LONGEST_ASPECT * short:
        return image
    cut = (long - 4 * short) // 2
    box = (cut, 0, width - cut, height) if width > height else (0, cut, width, height - cut)
    return image.crop(box)
