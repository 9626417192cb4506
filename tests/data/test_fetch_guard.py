import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from sightloom.errors import SightloomError
from sightloom.storage import read_json

from .fetching import LOOPBACK, fetch, serve


def test_what_servers_say_of_length_and_encoding_is_not_believed(tmp_path: Path, scene: Any) -> None:
    picture = scene(1)
    sent: dict[str, int] = {}

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.method == "GET"  # nothing asks by HEAD: many servers know none
        assert request.headers["Accept-Encoding"] == "identity"
        response = web.StreamResponse(headers={"Content-Type": "text/html"})
        if request.path == "/endless":
            response.enable_chunked_encoding()
            await response.prepare(request)
            await response.write(picture)
            for _ in range(2000):
                sent["endless"] = sent.get("endless", 0) + 65_536
                await response.write(bytes(65_536))
            return response
        if request.path == "/chunked":
            response.enable_chunked_encoding()
            await response.prepare(request)
            await response.write(picture[:100])
            await response.write(picture[100:])
            return response
        if request.path == "/packed":  # it was told not to: 100 MB of zeros would come out of 100 kB
            packed = gzip.compress(picture + bytes(100_000_000))
            return web.Response(body=packed, headers={"Content-Encoding": "gzip", "Content-Type": "image/png"})
        if request.path == "/early":
            request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + picture)  # type: ignore[union-attr]
            request.transport.close()  # type: ignore[union-attr]
        return web.Response(status=404)

    base, stop = serve(handler)
    paths = ["endless", "chunked", "packed", "early"]
    try:
        status = fetch([f"{base}/{path}" for path in paths], str(tmp_path), allow_networks=LOOPBACK, max_mb=0.5,
                       robots=False)  # fmt: skip
    finally:
        stop()
    assert dict(zip(paths, status, strict=True)) == {
        "endless": "fetch_too_large", "chunked": "ok", "packed": "fetch_not_image", "early": "fetch_connection",
    }  # fmt: skip
    assert sent["endless"] < 20_000_000  # the connection was closed, not read to its end
    assert read_json(f"{tmp_path}/commit/c.json")["bytes"] < 100_000


def test_a_public_name_that_answers_with_a_private_address_is_blocked_at_the_connection(
    tmp_path: Path, scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    reached: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        reached.append(request.path)
        return web.Response(body=scene(1))

    async def resolve(self: Any, host: str, port: int = 0, family: Any = 0) -> list[dict[str, Any]]:
        asked.append(host)
        if host.startswith("nowhere"):
            raise OSError("no such host")
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 0, "flags": 0}]

    base, stop = serve(handler)
    port = base.rsplit(":", 1)[1]
    monkeypatch.setattr("aiohttp.connector.DefaultResolver.resolve", resolve)
    try:
        urls = [f"http://rebound.example:{port}/a.png", f"http://nowhere.example:{port}/a.png"]
        status = fetch(urls, str(tmp_path), robots=False)
    finally:
        stop()
    assert status == ["fetch_blocked_address", "fetch_dns"] and reached == []
    assert {"rebound.example", "nowhere.example"} <= set(asked)


def test_a_host_that_cannot_say_its_rules_now_is_not_asked_and_a_long_redirect_meets_the_rules_again(
    tmp_path: Path, scene: Any
) -> None:
    asked: list[str] = []

    async def busy(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=503) if request.path == "/robots.txt" else web.Response(body=scene(1))

    async def strict(request: web.Request) -> web.Response:
        asked.append(f"strict{request.path}")
        if request.path == "/robots.txt":
            return web.Response(text="User-agent: sightloom\nDisallow: /\n\nUser-agent: *\nAllow: /")
        return web.Response(body=scene(1))

    closed, stop_closed = serve(strict)

    async def open_(request: web.Request) -> web.Response:
        if request.path == "/robots.txt":
            return web.Response(status=404)
        raise web.HTTPMovedPermanently(f"{closed}/picture.png")

    first, stop_first = serve(busy)
    second, stop_second = serve(open_)
    try:
        status = fetch([f"{first}/a.png", f"{second}/b.png"], str(tmp_path), allow_networks=LOOPBACK)
    finally:
        for stop in (stop_closed, stop_first, stop_second):
            stop()
    assert status == ["fetch_robots", "fetch_robots"]
    assert "/a.png" not in asked and "strict/picture.png" not in asked


def test_a_full_temporary_disk_is_told_in_words_and_the_same_chunk_is_fetched_later(
    tmp_path: Path, scene: Any, monkeypatch: pytest.MonkeyPatch, small_disk: Callable[[str], Path]
) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=scene(1, (90, 90)) + bytes(20_000))

    base, stop = serve(handler)
    out, urls = str(tmp_path / "out"), [f"{base}/{number}.png" for number in range(10)]
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(small_disk("100k")))
        with pytest.raises(SightloomError, match="no space is left on the disk"):
            fetch(urls, out, allow_networks=LOOPBACK, robots=False)
        assert not list(Path(out).rglob("*.*")) and not list(Path(tempfile.gettempdir()).iterdir())
        small_disk("4m")
        assert fetch(urls, out, allow_networks=LOOPBACK, robots=False) == ["ok"] * 10
    finally:
        stop()


def test_rules_that_a_broken_connection_kept_back_are_asked_for_again_but_not_without_end(
    scene: Any, tmp_path: Path
) -> None:
    asked: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path == "/robots.txt" and asked.count("/robots.txt") <= broken:
            assert request.transport is not None
            request.transport.close()
        return web.Response(body=scene(1)) if request.path != "/robots.txt" else web.Response(status=404)

    for broken, status, times in ((2, ["ok"] * 3, {3}), (100, ["fetch_connection"] * 3, {4, 6})):
        asked.clear()
        base, stop = serve(handler)
        try:
            urls = [f"{base}/{n}.png" for n in range(3)]
            assert fetch(urls, str(tmp_path / str(broken)), allow_networks=LOOPBACK) == status
        finally:
            stop()
        assert asked.count("/robots.txt") in times  # of three URLs, each tried twice; aiohttp asks twice itself
