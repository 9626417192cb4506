"""Streams whose client leaves: whatever the moment, what was begun for it ends (ASGI by hand, an endless engine)."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from sightloom.serving.app import build_app
from sightloom.serving.config import EndpointConfig
from sightloom.serving.dispatch import LocalDispatcher, Route
from sightloom.serving.engines.base import Delta, EngineRequest
from sightloom.serving.engines.transformers import TransformersEngine
from sightloom.serving.meters import LocalMeters

BODY = json.dumps(
    {"model": "sightloom", "stream": True, "messages": [{"role": "user", "content": "Describe the image."}]}
).encode()
HEADERS = [(b"content-type", b"application/json")]


class Endless(LocalDispatcher):
    """Its engine writes until it is closed."""

    running = 0

    async def route(self, model: str, subject: str) -> Route:
        """The route of a real engine, with an endless reply."""
        real = await super().route(model, subject)
        return Route(real.model, real.kind, real.generation, real.info, self.generate)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        """One token at once, then one every 10 ms."""
        self.running += 1
        try:
            while True:
                yield Delta(answer="a", num_answer_tokens=1)
                await asyncio.sleep(0.01)
        finally:
            self.running -= 1


@pytest.mark.parametrize("leaves_at", ["at once", "in the stream", "without reading"])
def test_a_client_that_leaves_takes_its_reply_along(engine: TransformersEngine, leaves_at: str) -> None:
    dispatcher, meters = Endless("sightloom", engine), LocalMeters()
    app = build_app(EndpointConfig(), dispatcher, meters=meters)
    sent: list[dict[str, Any]] = []
    asked = 0

    async def receive() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        if asked == 1:
            return {"type": "http.request", "body": BODY, "more_body": False}
        if asked == 2:  # whoever watches for a client that leaves before the first piece
            await asyncio.sleep(3600)
        while leaves_at != "at once" and len(sent) < 4:
            await asyncio.sleep(0.005)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if leaves_at == "without reading" and len(sent) >= 4:
            await asyncio.sleep(3600)

    async def scenario() -> None:
        scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1"}
        scope |= {"method": "POST", "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions"}
        scope |= {"query_string": b"", "headers": HEADERS, "scheme": "http", "server": ("127.0.0.1", 80)}
        await app({**scope, "client": ("127.0.0.1", 1), "root_path": ""}, receive, send)
        assert dispatcher.running == 0, "the engine writes on for nobody"

    asyncio.run(asyncio.wait_for(scenario(), 20))
    text = meters.text().decode()
    assert 'phase="decode"' in text, "a client that left is counted"
    assert 'sightloom_inflight{model="sightloom",version="3"} 0.0' in text, text
