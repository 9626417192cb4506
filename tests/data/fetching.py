"""A server on this machine and one chunk fetched from it, for the tests of fetching."""

import asyncio
import threading
from typing import Any

import pyarrow.parquet as pq
from aiohttp import web

from sightloom.data.fetch.chunk import FetchJob, fetch_chunk
from sightloom.data.sources.config import FetchConfig
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
