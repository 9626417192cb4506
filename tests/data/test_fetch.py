import asyncio
import threading
from typing import Any

import pyarrow.parquet as pq
import pytest
from aiohttp import web

from sightloom.data.fetch.chunk import FetchJob, fetch_chunk
from sightloom.data.recipe import FetchConfig
from sightloom.storage import read_json

LOOPBACK = ("127.0.0.0/8", "::1/128")


def serve(handler: Any) -> tuple[str, Any]:
    loop = asyncio.new_event_loop()
    ready: list[Any] = []

    async def start() -> None:
        app = web.Application()
        app.router.add_get("/{tail:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ready.append((runner, runner.addresses[0][1]))

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def stop() -> None:
        asyncio.run_coroutine_threadsafe(ready[0][0].cleanup(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)

    return f"http://127.0.0.1:{ready[0][1]}", stop


def fetch(urls: list[Any], folder: str, **config: Any) -> list[str]:
    rows = [{"row": n, "url": url, "text": "a cat", "rest": {"domain": "art"}} for n, url in enumerate(urls)]
    settings = FetchConfig(contact="tests@example.org", total_s=2, tries=2, **config)
    fetch_chunk(FetchJob("c", False, rows, settings, folder, f"{folder}/robots", {}))
    return list(pq.read_table(read_json(f"{folder}/commit/c.json")["table"]).column("status").to_pylist())


def test_every_url_has_a_status_and_only_pictures_are_staged(tmp_path: Any, scene: Any) -> None:
    tries: dict[str, int] = {}

    async def handler(request: web.Request) -> web.StreamResponse:
        path = request.path
        tries[path] = tries.get(path, 0) + 1
        if path == "/robots.txt":
            return web.Response(text="User-agent: *\nDisallow: /private/")
        if path == "/moved":
            raise web.HTTPFound("/ok.png")
        if path == "/inside":
            raise web.HTTPFound("http://169.254.169.254/latest/meta-data")
        if path == "/loop":
            raise web.HTTPFound("/loop")
        if path == "/flaky" and tries[path] == 1:
            return web.Response(status=503)
        if path == "/gone":
            return web.Response(status=404)
        if path == "/page":
            return web.Response(text="<html>")
        if path == "/big":
            return web.Response(body=scene(1) + bytes(200_000))
        if path == "/opt-out":
            return web.Response(body=scene(1), headers={"X-Robots-Tag": "otherbot: all, noai"})
        if path == "/slow":
            await asyncio.sleep(4)
        return web.Response(body=scene(1))

    base, stop = serve(handler)
    paths = ["ok.png", "moved", "inside", "loop", "flaky", "gone", "page", "big", "opt-out", "private/a.png", "slow"]
    urls = [f"{base}/{path}" for path in paths]
    others = ["ftp://example.org/a.png", "http://user@example.org/a.png", None, "file:///etc/passwd"]
    try:
        status = fetch([*urls, *others], str(tmp_path), allow_networks=LOOPBACK, max_mb=0.1)
    finally:
        stop()
    assert dict(zip(paths, status, strict=False)) == {
        "ok.png": "ok", "moved": "ok", "inside": "fetch_blocked_address", "loop": "fetch_redirects", "flaky": "ok",
        "gone": "fetch_http_404", "page": "fetch_not_image", "big": "fetch_too_large", "opt-out": "fetch_opt_out",
        "private/a.png": "fetch_robots", "slow": "fetch_timeout",
    }  # fmt: skip
    assert set(status[len(paths) :]) == {"fetch_scheme"}
    assert tries["/robots.txt"] == 1 and tries["/flaky"] == 2 and tries["/gone"] == 1
    commit = read_json(f"{tmp_path}/commit/c.json")
    assert commit["status"]["ok"] == 3 and sum(commit["status"].values()) == len(urls) + 4


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost", "169.254.169.254"])
def test_private_addresses_are_not_reached_however_they_are_written(tmp_path: Any, host: str) -> None:
    assert fetch([f"http://{host}:9/a.png"], str(tmp_path)) == ["fetch_blocked_address"]
