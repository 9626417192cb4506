"""The media guard: what comes in is whole, still, upright and within budgets; the rest is a typed refusal."""

import asyncio
import gzip
import io
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from PIL import Image
from tests.serving.conftest import data_url, picture

from sightloom.serving.errors import ApiError
from sightloom.serving.media import MediaGuard, MediaLimits, Reference


def load(*urls: str, limits: MediaLimits | None = None, detail: str = "auto") -> list[bytes]:
    async def run() -> list[bytes]:
        guard = MediaGuard(limits or MediaLimits())
        try:
            references = [
                Reference(url, detail, f"messages[0].content[{i}].image_url.url") for i, url in enumerate(urls)
            ]
            return await guard.load(references)
        finally:
            await guard.close()

    return asyncio.run(run())


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


def bomb(kind: bytes, size: int = 100_000_000) -> bytes:
    """A small PNG one of whose chunks (zTXt, iCCP) unpacks to 100 MB."""
    whole = picture()
    data = b"Comment\0\0" + zlib.compress(b"\0" * size, 9)
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return whole[:33] + chunk + whole[33:]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_plain_picture_passes_unchanged_by_content_not_by_label(format: str) -> None:
    data = picture(format=format)
    assert load(data_url(data, "text/html")) == [data]


@pytest.mark.parametrize("progressive", [False, True])
def test_a_photo_that_was_cut_anywhere_is_refused(progressive: bool) -> None:
    whole = encode(Image.open(io.BytesIO(picture(200, 120))), "JPEG", quality=85, progressive=progressive)
    for part in (0.3, 0.6, 0.9, 0.99):
        with pytest.raises(ApiError) as caught:
            load(data_url(whole[: int(len(whole) * part)]))
        assert caught.value.code == "invalid_image"


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "CMYK"])
def test_other_modes_become_rgb(mode: str) -> None:
    format = "JPEG" if mode == "CMYK" else "PNG"
    (data,) = load(data_url(picture(mode=mode, format=format)))
    assert Image.open(io.BytesIO(data)).mode == "RGB"


def test_a_turned_photo_is_set_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (data,) = load(data_url(encode(Image.new("RGB", (40, 20)), "JPEG", exif=exif)))
    assert Image.open(io.BytesIO(data)).size == (20, 40)


def test_transparent_pixels_become_white() -> None:
    (data,) = load(data_url(encode(Image.new("RGBA", (8, 8), (255, 0, 0, 0)))))
    assert Image.open(io.BytesIO(data)).getpixel((3, 3)) == (255, 255, 255)


def test_low_detail_shrinks() -> None:
    (data,) = load(data_url(encode(Image.new("RGB", (2000, 1000)))), detail="low")
    assert Image.open(io.BytesIO(data)).size == (512, 256)


GIF = encode(
    Image.new("RGB", (8, 8), "red"),
    "GIF",
    save_all=True,
    append_images=[Image.new("RGB", (8, 8), "blue")],
    duration=100,
)
REFUSED: dict[str, tuple[str, int, str]] = {
    "truncated": (data_url(picture()[:-400]), 400, "invalid_image"),
    "animated": (data_url(GIF), 400, "invalid_image"),
    "svg": (data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), 400, "invalid_image"),
    "html": (data_url(b"<!doctype html><html></html>"), 400, "invalid_image"),
    "empty": (data_url(b""), 400, "invalid_image"),
    "huge header": (data_url(png_header(100_000, 100_000)), 413, "image_too_large"),
    "21 megapixels": (data_url(png_header(7000, 3000)), 413, "image_too_large"),
    "thin": (data_url(encode(Image.new("RGB", (603, 2)))), 400, "invalid_image"),
    "one pixel": (data_url(encode(Image.new("RGB", (1, 1)))), 400, "invalid_image"),
    "text bomb": (data_url(bomb(b"zTXt")), 400, "invalid_image"),
    "profile bomb": (data_url(bomb(b"iCCP")), 400, "invalid_image"),
    "no base64": ("data:image/png,abc", 400, "invalid_image"),
    "bad base64": ("data:image/png;base64,a$b=", 400, "invalid_image"),
    "too many bytes": ("data:image/png;base64," + "A" * (12 * 2**20), 413, "image_too_large"),
    "file": ("file:///etc/passwd", 400, "media_url_not_allowed"),
    "path": ("/etc/passwd", 400, "media_url_not_allowed"),
    "foreign domain": ("https://example.org/a.png", 400, "media_url_not_allowed"),
    "metadata": ("http://169.254.169.254/latest/meta-data", 400, "media_url_not_allowed"),
    "broken address": ("https://[::1/a.png", 400, "media_url_not_allowed"),
}


@pytest.mark.parametrize(("url", "status", "code"), REFUSED.values(), ids=REFUSED)
def test_what_is_dangerous_or_broken_is_refused_at_once(url: str, status: int, code: str) -> None:
    began = time.monotonic()
    with pytest.raises(ApiError) as caught:
        load(url)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert caught.value.param == "messages[0].content[0].image_url.url"
    assert time.monotonic() - began < 2


def test_what_is_refused_costs_little_memory(tmp_path: Path) -> None:
    """In a process of its own, because the peak of this one is that of all tests before."""
    urls = tmp_path / "urls.json"
    urls.write_text(json.dumps([url for url, _, _ in REFUSED.values()]))
    code = """
import asyncio, json, resource, sys
from sightloom.serving.errors import ApiError
from sightloom.serving.media import MediaGuard, MediaLimits, Reference
urls = json.load(open(sys.argv[1]))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
async def run():
    guard, before = MediaGuard(MediaLimits()), peak()
    for url in urls:
        try:
            await guard.load([Reference(url, "auto", "url")])
        except ApiError:
            continue
        raise AssertionError(url[:60])
    await guard.close()
    return peak() - before
print(asyncio.run(run()))
"""
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(urls)], capture_output=True, text=True, env=paths, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 200  # MiB


def test_count_and_sums_are_bounded() -> None:
    url = data_url(picture())
    with pytest.raises(ApiError, match="9 pictures"):
        load(*[url] * 9)
    with pytest.raises(ApiError) as caught:
        load(*[url] * 3, limits=MediaLimits(total_pixels=10_000))
    assert caught.value.code == "image_too_large"
    assert caught.value.param == "messages[0].content[2].image_url.url"


def served(handle: Callable[[web.Request], Awaitable[web.StreamResponse]], path: str, **limits: object) -> bytes:
    """Load a picture from a real server on loopback, under the name localhost."""

    async def run() -> bytes:
        app = web.Application()
        app.router.add_get("/{name}", handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        settings = {"allow_domains": ("localhost",), "allow_http": True, "allow_ports": (port,)} | limits
        guard = MediaGuard(MediaLimits.model_validate(settings))
        try:
            (data,) = await guard.load([Reference(f"http://localhost:{port}/{path}", "auto", "url")])
            return data
        finally:
            await guard.close()
            await runner.cleanup()

    return asyncio.run(run())


def test_an_allowed_domain_on_an_inner_address_is_still_not_reached() -> None:
    reached: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        reached.append(request.path)
        return web.Response(body=picture())

    with pytest.raises(ApiError) as caught:
        served(handle, "a.png")
    assert caught.value.code == "media_url_not_allowed"
    assert reached == []
    assert served(handle, "a.png", allow_networks=("127.0.0.0/8", "::1/128")) == picture()


def test_redirects_are_judged_like_first_addresses() -> None:
    async def away(_: web.Request) -> web.Response:
        raise web.HTTPFound("http://169.254.169.254/latest")

    async def around(request: web.Request) -> web.Response:
        raise web.HTTPFound(str(request.url))

    opened = {"allow_networks": ("127.0.0.0/8", "::1/128")}
    with pytest.raises(ApiError) as caught:
        served(away, "a.png", **opened)
    assert caught.value.code == "media_url_not_allowed"
    with pytest.raises(ApiError, match="redirects"):
        served(around, "a.png", **opened)


def test_a_packed_answer_is_not_unpacked() -> None:
    async def packed(_: web.Request) -> web.Response:
        body = gzip.compress(b"\0" * 50_000_000)
        return web.Response(body=body, headers={"content-encoding": "gzip", "content-type": "image/png"})

    with pytest.raises(ApiError) as caught:
        served(packed, "a.png", allow_networks=("127.0.0.0/8", "::1/128"))
    assert caught.value.code == "invalid_image"  # what came is judged as it came: no picture


def test_a_slow_or_endless_server_is_left() -> None:
    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response(body=picture())

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"\0" * 65536)

    opened = {"allow_networks": ("127.0.0.0/8", "::1/128")}
    began = time.monotonic()
    with pytest.raises(ApiError) as caught:
        served(slow, "a.png", fetch_s=0.3, **opened)
    assert caught.value.code == "media_fetch_failed" and time.monotonic() - began < 2
    with pytest.raises(ApiError) as caught:
        served(endless, "a.png", image_bytes=1_000_000, **opened)
    assert caught.value.code == "image_too_large"


def cut_gif() -> bytes:
    """An animated GIF that ends inside its second picture's descriptor."""
    frames = [Image.new("P", (16, 16), colour) for colour in (1, 2)]
    whole = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    return whole[: whole.rindex(b"\x2c") + 4]


def odd_exif(kind: str) -> bytes:
    """A picture whose Exif ends behind its first four bytes."""
    image = Image.new("RGB", (16, 16), "red")
    return encode(image, kind, exif=b"Exif\0\0II*\0" if kind == "JPEG" else b"II*\0")


@pytest.mark.parametrize(
    "broken",
    [cut_gif(), odd_exif("PNG"), odd_exif("JPEG"), encode(Image.new("RGB", (64, 64), "red"), "WEBP")[:60]],
    ids=["gif", "png-exif", "jpeg-exif", "webp"],
)
def test_whatever_a_decoder_stumbles_over_is_the_picture_s_fault(broken: bytes) -> None:
    try:
        loaded = load(data_url(broken))
    except ApiError as error:
        assert (error.status, error.code) == (400, "invalid_image")
    else:  # Pillow may read past the damage; then what comes out is a whole picture
        Image.open(io.BytesIO(loaded[0])).load()


def test_a_phone_s_photo_with_a_second_picture_inside_is_its_first() -> None:
    first, second = Image.new("RGB", (64, 48), "red"), Image.new("RGB", (64, 48), "blue")
    photo = encode(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(photo)).format == "MPO"
    out = Image.open(io.BytesIO(load(data_url(photo, "image/jpeg"))[0]))
    assert getattr(out, "n_frames", 1) == 1, "the second one goes nowhere unseen"
    shown = out.convert("RGB")
    red, _, blue = shown.getpixel((30, 20))  # type: ignore[misc]
    assert shown.size == (64, 48) and red > 200 and blue < 50


def test_a_picture_that_finds_no_free_thread_is_not_called_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(data: bytes, reference: Reference) -> bytes:
        time.sleep(0.5)
        return data

    monkeypatch.setattr("sightloom.serving.media.normalise", slow)

    async def run(seconds: float) -> list[bytes | BaseException]:
        guard = MediaGuard(MediaLimits(decode_s=seconds))
        asked = [Reference(data_url(picture()), "auto", "p") for _ in range(8)]
        try:
            loads = await asyncio.gather(*(guard.load([one]) for one in asked), return_exceptions=True)
            return [one if isinstance(one, BaseException) else one[0] for one in loads]
        finally:
            await guard.close()

    assert not any(isinstance(one, BaseException) for one in asyncio.run(run(0.8))), "a wait is no decoding"
    found = asyncio.run(run(0.2))
    codes = sorted(one.code for one in found if isinstance(one, ApiError))
    assert codes == ["engine_overloaded"] * 4 + ["invalid_image"] * 4, "too slow are those that were decoded"
