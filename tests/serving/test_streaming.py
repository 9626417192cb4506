"""Streams whose client leaves: whatever the moment, what was begun for it ends (ASGI by hand, an endless engine)."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from sightloom.errors import SightloomError
from sightloom.serving.app import build_app
from sightloom.serving.config import EndpointConfig
from sightloom.serving.dispatch import LocalDispatcher, Route
from sightloom.serving.engines.base import Delta, EngineRequest, PromptUsage
from sightloom.serving.engines.transformers import TransformersEngine
from sightloom.serving.errors import ApiError
from sightloom.serving.meters import LocalMeters

BODY = json.dumps(
    {"model": "sightloom", "stream": True, "messages": [{"role": "user", "content": "Describe the image."}]}
).encode()
SCOPE: dict[str, Any] = {
    "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
    "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions", "query_string": b"", "scheme": "http",
    "headers": [(b"content-type", b"application/json")], "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1),
    "root_path": "",
}  # fmt: skip


class Replying(LocalDispatcher):
    """The route of a real engine, with the reply of `generate`."""

    async def route(self, model: str, subject: str) -> Route:
        """That route."""
        return replace(await super().route(model, subject), generate=self.generate)

    def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        """The reply."""
        raise NotImplementedError


class Endless(Replying):
    """Its engine writes until it is closed."""

    running = 0

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
        await app(dict(SCOPE), receive, send)
        assert dispatcher.running == 0, "the engine writes on for nobody"

    asyncio.run(asyncio.wait_for(scenario(), 20))
    text = meters.text().decode()
    assert 'phase="decode"' in text, "a client that left is counted"
    assert 'sightloom_inflight{model="sightloom",version="3"} 0.0' in text, text


def test_a_client_that_leaves_while_it_uploads_is_nobody_s_fault(engine: TransformersEngine) -> None:
    meters, sent = LocalMeters(), []
    app = build_app(EndpointConfig(), LocalDispatcher("sightloom", engine), meters=meters)
    messages = [{"type": "http.request", "body": BODY[:10], "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(asyncio.wait_for(app(SCOPE, receive, send), 20))
    text = meters.text().decode()
    assert sent == [] and 'code="499"' in text and 'phase="upload"' in text and "internal_error" not in text


@pytest.mark.parametrize("stream", [True, False])
def test_what_takes_longer_than_its_deadline_is_told_so(engine: TransformersEngine, stream: bool) -> None:
    dispatcher, meters = Endless("sightloom", engine), LocalMeters()
    app = build_app(EndpointConfig(deadline_s=1.2), dispatcher, meters=meters)
    ask = {**json.loads(BODY), "stream": stream}
    with TestClient(app, base_url="http://127.0.0.1") as client:
        reply = client.post("/v1/chat/completions", json={**ask, "sightloom": {"deadline_s": 1}})
        late = client.post("/v1/chat/completions", json={**ask, "sightloom": {"deadline_s": 2}})
        assert dispatcher.running == 0
    if stream:
        events = [line for line in reply.text.splitlines() if line]
        assert reply.status_code == 200 and '"code":"deadline_exceeded"' in events[-2] and events[-1] == "data: [DONE]"
    else:
        assert reply.status_code == 504 and reply.json()["error"]["code"] == "deadline_exceeded"
    assert late.status_code == 400 and late.json()["error"]["param"] == "sightloom.deadline_s", "refused, not shortened"
    assert 'code="deadline_exceeded"' in meters.text().decode()


class Scripted(Replying):
    """Its engine says what it is told, then fails if it is told."""

    def __init__(self, name: str, engine: TransformersEngine, deltas: list[Delta], error: ApiError | None) -> None:
        super().__init__(name, engine)
        self._deltas, self._error = deltas, error

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        """The deltas, half a second apart where one is empty."""
        for delta in self._deltas:
            if delta == Delta():
                await asyncio.sleep(0.5)
            else:
                yield delta
        if self._error is not None:
            raise self._error


def events_of(engine: TransformersEngine, deltas: list[Delta], error: ApiError | None, **ask: Any) -> list[Any]:
    app = build_app(EndpointConfig(keep_alive_s=0.2), Scripted("sightloom", engine, deltas, error))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        text = client.post("/v1/chat/completions", json={**json.loads(BODY), **ask}).text
    lines = [line for line in text.split("\n") if line]
    return [json.loads(line[6:]) if line.startswith("data: {") else line for line in lines]


def test_the_transcript_of_a_stream(engine: TransformersEngine) -> None:
    usage = PromptUsage(7, 3, 2)
    deltas = [
        Delta(reasoning="hm", num_reasoning_tokens=1, usage=usage), Delta(),
        Delta(answer=" Yes", num_answer_tokens=1), Delta(answer=".", num_answer_tokens=1, finish="stop"),
    ]  # fmt: skip
    found = events_of(engine, deltas, None, stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert found[-1] == "data: [DONE]" and ":keep-alive" in found
    chunks = [one for one in found if isinstance(one, dict)]
    shown = [(one["choices"][0]["delta"], one["choices"][0]["finish_reason"]) for one in chunks if one["choices"]]
    assert shown == [
        ({"role": "assistant", "content": ""}, None),
        ({"reasoning_content": "hm", "reasoning": "hm"}, None),
        ({"content": "Yes"}, None), ({"content": "."}, None), ({}, "stop"),
    ]  # fmt: skip
    assert len({(one["id"], one["created"], one["model"], one["system_fingerprint"]) for one in chunks}) == 1
    counts = [one["usage"]["completion_tokens"] for one in chunks[1:]]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == 3, "usage goes along with every chunk"
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == {
        "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 2, "image_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }  # fmt: skip


def test_the_transcript_of_a_stream_that_fails(engine: TransformersEngine) -> None:
    found = events_of(engine, [Delta(answer="Yes", num_answer_tokens=1)], ApiError(502, "engine_error", "it was lost"))
    assert found[-1] == "data: [DONE]"
    assert found[-2] == {
        "error": {"message": "it was lost", "type": "server_error", "param": None, "code": "engine_error"}
    }
    assert [one["choices"][0]["delta"].get("content") for one in found[:2]] == ["", "Yes"]


def test_a_batch_that_fails_is_told_and_a_dead_thread_is_seen(
    engine: TransformersEngine, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = {**json.loads(BODY), "stream": False, "max_tokens": 2}
    with monkeypatch.context() as patched:
        patched.setattr(engine._generator, "generate", lambda *_: 1 / 0)
        reply = client.post("/v1/chat/completions", json=ask)
    assert reply.status_code == 502 and "ZeroDivisionError" in reply.json()["error"]["message"]
    assert client.post("/v1/chat/completions", json=ask).status_code == 200, "the next batch is answered"
    assert engine.load().alive
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_thread", threading.Thread())  # one that does not run
        with pytest.raises(SightloomError):
            engine.check()
        assert client.post("/v1/chat/completions", json=ask).status_code == 503
