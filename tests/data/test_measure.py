import hashlib
import io
from typing import Any

import numpy as np
import open_clip
import pytest
from PIL import Image

from sightloom.data.decode import Undecodable, decode
from sightloom.data.measure import COLUMNS, measure
from sightloom.data.signals.caption import caption_signals
from sightloom.data.signals.config import DecodeLimits
from sightloom.data.signals.crops import CropSpec, crop
from sightloom.data.signals.picture import hash_inputs, perceptual_hashes, picture_signals, shrink
from sightloom.data.sources.chunks import to_table
from sightloom.data.sources.records import RawRecord

from ..raw_pairs import bomb_bytes


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (encoded(PHOTO, "JPEG")[:900], "truncated_image"),
        (encoded(PHOTO, "PNG")[:900], "truncated_image"),
        (b"a text named .jpg", "unsupported_image"),
        (b"\xff\xd8\xff" + b"rubbish" * 20, "decode_error"),
        (encoded(Image.new("L", (4000, 4000)), "PNG"), "too_many_pixels"),
        (bomb_bytes(), "too_many_pixels"),
        (encoded(PHOTO, "BMP") + bytes(200_000), "large_image"),
    ],
)
def test_a_picture_that_cannot_be_used_has_its_own_reason(data: bytes, status: str) -> None:
    with pytest.raises(Undecodable) as caught:
        decode(data, DecodeLimits(max_pixels=1_000_000, max_mb=0.2))
    assert caught.value.status == status


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_type_decodes_to_upright_rgb(form: str) -> None:
    decoded = decode(encoded(PHOTO, form), DecodeLimits())
    assert (decoded.image.mode, decoded.width, decoded.height, decoded.format) == ("RGB", 60, 40, form)


def test_unusual_modes_decode_and_exif_turns_the_picture() -> None:
    for image, form in ((PHOTO.convert("CMYK"), "JPEG"), (Image.new("I;16", (9, 9)), "PNG"), (PHOTO.quantize(), "PNG")):
        assert decode(encoded(image, form), DecodeLimits()).image.mode == "RGB"
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(PHOTO, "JPEG", exif=exif), DecodeLimits()).width == 40
    frames = [PHOTO, PHOTO.rotate(90), PHOTO.rotate(180)]
    animated = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(animated, DecodeLimits()).frames == 3


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (64, 64), (333, 77), (1, 1), (64, 65)])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_a_crop_equals_open_clips_own(size: tuple[int, int], mode: str) -> None:
    image = PHOTO.resize(size)
    transform = open_clip.image_transform(64, False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode)
    theirs = transform(image).numpy().transpose(1, 2, 0)
    ours = crop(image, CropSpec(64, mode, "bicubic"))
    assert np.array_equal(ours, np.rint(theirs * 255).astype(np.uint8))


def test_a_strip_does_not_ask_for_gigabytes() -> None:
    assert crop(Image.new("RGB", (1, 30_000)), CropSpec(64, "shortest", "bicubic")).shape == (64, 64, 3)


def test_the_caption_signals_say_what_they_count() -> None:
    signals = caption_signals("the cat and the dog and the bird")
    assert (signals["text_words"], signals["text_repeat"], signals["text_lang"]) == (8, 0.375, "en")
    assert not signals["text_boilerplate"]
    for text in ("IMG_2041.jpg", "see https://shop.example", "<b>buy</b> now", "photo"):
        assert caption_signals(text)["text_boilerplate"], text
    assert caption_signals("")["text_words"] == 0


def test_hashes_tell_pictures_apart_and_a_blank_one_is_flat() -> None:
    def bits(image: Image.Image) -> np.ndarray[Any, Any]:
        _, fine, _ = hash_inputs(shrink(image))
        return np.unpackbits(perceptual_hashes(fine[None], 16))

    assert int((bits(PHOTO) != bits(PHOTO.rotate(180))).sum()) > 60
    assert (bits(PHOTO) == bits(PHOTO.copy())).all()
    flat = picture_signals(Image.new("RGB", (50, 50)), 50, 50)
    assert (flat["flatness"], flat["sharpness"], flat["entropy"]) == (1.0, 0.0, 0.0)


def test_a_chunk_is_measured_with_each_row_its_status_and_the_uid_of_the_design() -> None:
    picture = encoded(PHOTO, "PNG")
    records = to_table(
        [
            RawRecord(0, "a", image=picture, text="a cat", meta={"stars": 3}),
            RawRecord(1, "b", image=picture, text="a dog", meta={"stars": "x"}),
            RawRecord(2, "c", image=picture[:400], text="a cat"),
            RawRecord(3, "d", status="missing_image", text="a cat"),
            RawRecord(4, "e", kind="conversation", image=picture, text="How many?", meta={"id": "e"}),
        ]
    )
    specs = [CropSpec(32, "shortest", "bicubic")]
    result = measure(records, "here.tar", DecodeLimits(), {"stars": "int64"}, specs, frozenset({"pair"}))
    rows = result.table.to_pylist()
    assert result.table.column_names == [*COLUMNS, "src_stars"]
    assert [row["status"] for row in rows] == ["ok", "ok", "truncated_image", "missing_image", "ok"]
    assert result.status == {"ok": 3, "truncated_image": 1, "missing_image": 1}
    assert rows[0]["uid"] == hashlib.sha256(picture + b"\0a cat").digest()[:16]
    assert rows[4]["uid"] == hashlib.sha256(picture + b'\0{"id":"e"}').digest()[:16]
    assert [row["src_stars"] for row in rows[:2]] == [3, None]
    assert rows[0]["sha256"] == hashlib.sha256(picture).hexdigest() and rows[0]["phash"] == rows[4]["phash"]
    assert (result.rows, result.texts, result.crops[0].shape) == ([0, 1], ["a cat", "a dog"], (2, 32, 32, 3))
