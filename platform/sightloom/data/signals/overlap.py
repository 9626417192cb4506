"""Pictures with their text covered: what a caption gains by reading the picture aloud is then lost (T-MARS).

Boxes come from a text detector (Differentiable Binarization, an ONNX file that RapidOCR runs on one thread); each is
filled with the mean colour of what lies around it. Source: T-MARS (Maini et al. 2023, arXiv 2307.03132), where the
detector is FAST and the better half by the score of the covered pictures is kept.

Shapes: B boxes, their corners (x, y) in pixels of the picture.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sightloom import storage
from sightloom.data.signals.config import Overlap
from sightloom.errors import SightloomError, UserMistake

VERSION = 1
LIBRARY, ENGINE = "rapidocr", "onnxruntime"
BROUGHT = "PP-OCRv6_det_small.onnx"  # lies in RapidOCR's package, Apache-2.0
RING = 0.25  # of a box's height: how far around it the colour is taken
Boxes = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TextMask:
    """How text is found in a picture; an empty `detector` is the one that RapidOCR brings, wherever that lies."""

    detector: str
    sha256: str
    side: int
    confidence: float

    def identity(self) -> dict[str, Any]:
        """Return what decides which boxes are found, as plain data."""
        return {"version": VERSION, "sha256": self.sha256, "side": self.side, "confidence": self.confidence}


def resolve_mask(config: Overlap) -> TextMask:
    """Find the detector of a recipe; UserMistake where it, or what runs it, is not there."""
    package = importlib.util.find_spec(LIBRARY)
    if package is None or importlib.util.find_spec(ENGINE) is None:
        raise UserMistake(f"score.overlap needs {LIBRARY} and {ENGINE}, which are not installed", _INSTALL)
    folder = (package.submodule_search_locations or [""])[0]
    path = config.detector or str(Path(folder) / "models" / BROUGHT)
    if not Path(path).is_file():
        raise UserMistake(f"score.overlap: no detector at '{path}'", "give the ONNX file of a DB text detector")
    return TextMask(config.detector or "", storage.sha256_file(path), config.side, config.confidence)


def covered(image: Image.Image, mask: TextMask) -> Image.Image:
    """Return an RGB picture with the text that is found in it covered; the picture itself where there is none."""
    return cover(image, text_boxes(image, mask))


def text_boxes(image: Image.Image, mask: TextMask) -> Boxes:
    """Return the corners of the text boxes in an RGB picture, float32 [B, 4, 2]."""
    small = image
    if max(image.size) > mask.side:
        scale = mask.side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        small = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    found = _detector(mask)(np.asarray(small, np.uint8)[:, :, ::-1]).boxes
    if found is None:
        return np.zeros((0, 4, 2), np.float32)
    ratio = np.array([image.width / small.width, image.height / small.height], np.float32)
    return np.asarray(found, np.float32) * ratio


def cover(image: Image.Image, boxes_B42: Boxes) -> Image.Image:
    """Return the picture with each box filled with the mean colour of what lies around it, other boxes left out."""
    if not len(boxes_B42):
        return image
    inside = Image.new("1", image.size)
    corners = [[tuple(map(float, corner)) for corner in box] for box in boxes_B42]
    for box in corners:
        ImageDraw.Draw(inside).polygon(box, fill=1, outline=1)
    pixels, outside = np.asarray(image, np.uint8), ~np.asarray(inside)
    whole = pixels[outside].mean(0) if outside.any() else np.full(3, 127.0)
    result = image.copy()
    draw = ImageDraw.Draw(result)
    for box, place in zip(corners, boxes_B42, strict=True):
        (left, top), (right, bottom) = place.min(0), place.max(0)
        ring = max(2.0, RING * float(bottom - top))
        rows = slice(max(0, int(top - ring)), int(bottom + ring) + 1)
        columns = slice(max(0, int(left - ring)), int(right + ring) + 1)
        around = pixels[rows, columns][outside[rows, columns]]
        colour = around.mean(0) if len(around) else whole
        fill = tuple(round(float(level)) for level in colour)
        draw.polygon(box, fill=fill, outline=fill)
    return result


@functools.cache
def _detector(mask: TextMask) -> Any:
    """Load the detector, once a process; SightloomError where this worker lacks it or has another."""
    try:
        library = importlib.import_module(LIBRARY)
        importlib.import_module(ENGINE)
    except ImportError as error:
        raise SightloomError(f"score.overlap: this worker has no text detector ({error})", _INSTALL) from error
    path = mask.detector or str(Path(str(library.__file__)).parent / "models" / BROUGHT)
    if not Path(path).is_file() or storage.sha256_file(path) != mask.sha256:
        raise SightloomError(f"score.overlap: '{path}' on this worker is not the detector of the recipe", _INSTALL)
    return library.RapidOCR(
        params={
            "Global.log_level": "error",
            "Global.use_cls": False,
            "Global.use_rec": False,
            "Det.model_path": path,
            "Det.limit_type": "max",
            "Det.limit_side_len": mask.side,
            "Det.box_thresh": mask.confidence,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,  # as many processes as cores measure; equal bits
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


_INSTALL = "install sightloom[overlap], on every node"
