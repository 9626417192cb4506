import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from sightloom.data.recipe import Recipe
from sightloom.data.signals import overlap
from sightloom.data.signals.config import Overlap, ScoreConfig, origin_of
from sightloom.data.signals.crops import CropSpec, crop, views
from sightloom.data.signals.overlap import cover, covered, resolve_mask, text_boxes
from sightloom.errors import UserMistake

from ..raw_pairs import smooth

LIBRARIES = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("rapidocr", "onnxruntime"))),
    reason="the text detector is the extra `overlap` (rapidocr, onnxruntime), which is not installed",
)
SCORER = {"name": "b32", "model": "ViT-B-32"}


def photo(number: int, text: str = "", size: int = 256) -> Image.Image:
    """A picture like a photo, with words written on it."""
    image = Image.open(io.BytesIO(smooth(number))).resize((size, size), Image.Resampling.BICUBIC)
    if text:
        ImageDraw.Draw(image).text((size // 16, size // 2), text, (255, 230, 40), ImageFont.load_default(size / 9))
    return image


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray[Any, Any]:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)


def test_a_box_takes_the_colour_of_what_is_around_it_and_nothing_else_changes() -> None:
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[:, :50], pixels[:, 50:] = (10, 200, 30), (90, 20, 250)
    pixels[20:31, 10:31] = pixels[20:31, 60:81] = 255
    image = Image.fromarray(pixels)
    found = np.asarray(cover(image, np.stack([box(10, 20, 30, 30), box(60, 20, 80, 30)])))
    assert (found[20:31, 10:31] == (10, 200, 30)).all() and (found[20:31, 60:81] == (90, 20, 250)).all()
    left = np.ones((60, 100), np.bool_)
    left[20:31, 10:31] = left[20:31, 60:81] = False
    assert (found[left] == pixels[left]).all()
    assert (np.asarray(image) == pixels).all()  # the picture itself is still needed


def test_boxes_that_touch_do_not_colour_each_other_and_a_covered_picture_is_grey() -> None:
    pixels = np.full((40, 80, 3), 50, np.uint8)
    pixels[10:31, 10:31], pixels[10:31, 31:52] = 255, 0
    image = Image.fromarray(pixels)
    found = np.asarray(cover(image, np.stack([box(10, 10, 30, 30), box(31, 10, 51, 30)])))
    assert (found == 50).all()
    assert (np.asarray(cover(image, box(-5, -5, 200, 200)[None])) == 127).all()
    assert cover(image, np.zeros((0, 4, 2), np.float32)) is image


@LIBRARIES
def test_written_words_are_covered_and_pictures_without_any_stay_as_they_are() -> None:
    mask = resolve_mask(Overlap(scorers=("b32",)))
    for number in range(3):
        plain, written = photo(number), photo(number, "BUY SHARK 50% OFF")
        assert len(text_boxes(plain, mask)) == 0 and covered(plain, mask) is plain
        assert len(text_boxes(written, mask)) >= 1
        ink = np.abs(np.asarray(written, np.int16) - np.asarray(plain)).max(2) > 60
        left = (np.abs(np.asarray(covered(written, mask), np.int16) - np.asarray(plain)).max(2) > 100) & ink
        assert ink.sum() > 500 and left.sum() < 0.05 * ink.sum()
    large = photo(0, "BUY SHARK 50% OFF", 1600)  # looked at in a smaller size, covered in its own
    places = text_boxes(large, mask)
    assert places.min() < 200 and places.max() > 800


@LIBRARIES
def test_each_model_gets_its_own_view_and_text_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = resolve_mask(Overlap(scorers=("b32",)))
    looked: list[Any] = []
    found = text_boxes
    monkeypatch.setattr(overlap, "text_boxes", lambda *given: looked.append(given) or found(*given))
    written, plain = photo(1, "BUY SHARK 50% OFF"), CropSpec(64, "shortest", "bicubic")
    specs = [plain, CropSpec(64, "shortest", "bicubic", mask), CropSpec(32, "squash", "bicubic", mask)]
    one, other, small = views(written, specs)
    assert (one == crop(written, plain)).all() and len(looked) == 1
    assert (other == crop(covered(written, mask), plain)).all() and (other != one).any()
    assert small.shape == (32, 32, 3)
    looked.clear()
    views(written, [plain])
    assert not looked


@pytest.mark.parametrize(
    ("clip", "scorers", "words"),
    [
        ([SCORER], ["l14"], "no scorer 'l14'; score.clip has: b32"),
        ([SCORER, {**SCORER, "name": "b32_masked"}], ["b32"], "clip_b32_masked"),
        ([SCORER], ["b32", "b32"], "clip_b32_masked"),
        ([SCORER], [], "at least 1 item"),
    ],
)
def test_scorers_that_cannot_be_masked_are_refused(clip: list[Any], scorers: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ScoreConfig.model_validate({"clip": clip, "overlap": {"scorers": scorers}})


@LIBRARIES
def test_a_detector_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match=r"no detector at '.*gone\.onnx'"):
        resolve_mask(Overlap(scorers=("b32",), detector=str(tmp_path / "gone.onnx")))


def test_a_missing_library_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "LIBRARY", "no_such_library")
    with pytest.raises(UserMistake, match="needs no_such_library") as caught:
        resolve_mask(Overlap(scorers=("b32",)))
    assert "sightloom[overlap]" in caught.value.hint


def test_a_rule_on_a_masked_score_says_where_it_would_come_from() -> None:
    assert origin_of("clip_b32_masked") == "add the scorer to score.overlap.scorers"


def test_a_recipe_without_it_is_the_recipe_it_was() -> None:
    from sightloom.data.prepare import recipe_identity

    given = {"name": "a", "out": "out", "source": [{"kind": "folder", "uri": "raw"}]}
    assert "overlap" not in recipe_identity(Recipe.model_validate(given))["score"]
