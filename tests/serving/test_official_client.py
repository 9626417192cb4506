"""The official Python client, sync and async, works unchanged, and its exceptions are its own."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from sightloom.serving.app import build_app
from sightloom.serving.auth import new_key
from sightloom.serving.config import EndpointConfig
from sightloom.serving.dispatch import LocalDispatcher, Route
from sightloom.serving.engines.base import EngineRequest
from sightloom.serving.engines.transformers import TransformersEngine
from sightloom.serving.listening import listen

from .conftest import data_url, picture

MESSAGES: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": data_url(picture()), "detail": "low"}},
            {"type": "text", "text": "How many red circles are there?"},
        ],
    }
]
free, free_entry = new_key()
narrow, narrow_entry = new_key()


class Answer(BaseModel):
    """What the answer is parsed into."""

    colour: Literal["red", "green"]
    parts: list[bool]


class Faulty(LocalDispatcher):
    """A dispatcher whose engine fails for one user, as no real engine does on demand."""

    async def route(self, model: str, subject: str) -> Route:
        """The route, broken for the user 'unlucky'."""
        route = await super().route(model, subject)
        if subject != "unlucky":
            return route

        async def generate(request: EngineRequest) -> Any:
            raise KeyError("inside")
            yield

        return Route(route.model, route.kind, route.generation, route.info, generate)


@pytest.fixture(scope="module")
def address(engine: TransformersEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    keys: Path = tmp_path_factory.mktemp("keys") / "keys.json"
    entries = [free_entry.model_copy(update={"rpm": None}), narrow_entry.model_copy(update={"rpm": 1})]
    keys.write_text(json.dumps([entry.model_dump(mode="json") for entry in entries]))
    with listen(build_app(EndpointConfig(keys=str(keys)), Faulty("sightloom", engine))) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=address, api_key=free, max_retries=0)


def test_answers_parsed_into_a_class(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(
        model="sightloom", messages=MESSAGES, response_format=Answer, max_completion_tokens=200, seed=2, temperature=1
    )
    parsed = reply.choices[0].message.parsed
    assert isinstance(parsed, Answer) and parsed.colour in ("red", "green")


def test_a_stream_helper_collects_the_answer_and_the_usage(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="sightloom",
        messages=MESSAGES,
        max_completion_tokens=200,
        seed=1,
        response_format=Answer,
        stream_options={"include_usage": True},
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.usage is not None and 0 < final.usage.completion_tokens <= 200
    assert isinstance(final.choices[0].message.parsed, Answer)


def test_the_async_client_streams_and_stops_when_it_has_enough(
    address: str, client: openai.OpenAI, engine: TransformersEngine
) -> None:
    async def scenario() -> int:
        async with openai.AsyncOpenAI(base_url=address, api_key=free, max_retries=0) as client:
            asked = {"model": "sightloom", "messages": MESSAGES, "temperature": 1}
            whole = await client.chat.completions.create(**asked, max_tokens=20, seed=4)
            text = ""
            async for chunk in await client.chat.completions.create(**asked, max_tokens=20, seed=4, stream=True):
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
            assert text == whole.choices[0].message.content
            stream = await client.chat.completions.create(**asked, max_tokens=1900, seed=1, stream=True)
            async for _ in stream:
                break
            await stream.close()
            for step in range(200):
                if engine.load().running == 0:
                    return step
                await asyncio.sleep(0.05)
            raise AssertionError("the engine went on")

    assert asyncio.run(scenario()) < 200


def test_every_status_is_the_exception_that_the_client_knows(address: str, client: openai.OpenAI) -> None:
    def ask(key: str = free, **changes: Any) -> Any:
        asked: dict[str, Any] = {"model": "sightloom", "messages": MESSAGES, "max_tokens": 2, **changes}
        return openai.OpenAI(base_url=address, api_key=key, max_retries=0).chat.completions.create(**asked)

    cases: list[tuple[type[openai.APIStatusError], int, dict[str, Any]]] = [
        (openai.BadRequestError, 400, {"temperature": 3}),
        (openai.AuthenticationError, 401, {"key": "sl-nobody"}),
        (openai.PermissionDeniedError, 403, {"model": "sightloom:3"}),
        (openai.NotFoundError, 404, {"model": "other"}),
        (openai.InternalServerError, 500, {"user": "unlucky"}),
    ]
    for kind, status, changes in cases:
        with pytest.raises(kind) as caught:
            ask(**changes)
        assert caught.value.status_code == status and caught.value.request_id and caught.value.code
    assert ask(narrow).choices
    with pytest.raises(openai.RateLimitError) as limited:
        ask(narrow)
    assert int(limited.value.response.headers["retry-after"]) >= 1
    with pytest.raises(openai.APIError):  # behind the first byte an error is an event, which the client raises
        for _ in ask(user="unlucky", stream=True):
            pass


def test_a_client_that_retries_gets_through(address: str) -> None:
    key_client = openai.OpenAI(base_url=address, api_key=free, max_retries=2)
    raw = key_client.chat.completions.with_raw_response.create(model="sightloom", messages=MESSAGES, max_tokens=2)
    assert raw.headers["x-request-id"] and raw.headers["x-sightloom-model"] == "sightloom:3"
    assert raw.headers["server-timing"] and raw.parse().choices[0].message.role == "assistant"
