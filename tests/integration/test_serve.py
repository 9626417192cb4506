"""The endpoint on a real Ray Serve, asked by the official Python client."""

import asyncio
import base64
import io
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import ray
from PIL import Image

from sightloom.errors import UserMistake
from sightloom.model.scratch import build_folder
from sightloom.serving.deploy import Deployment, deploy, shutdown


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def question(text: str = "How many red circles are there?") -> list[dict[str, object]]:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = ["How many red circles are there? There are three red circles.", "Describe the image."] * 8
    return build_folder("nano", texts, tmp_path_factory.mktemp("serve") / "nano", seed=3)


@pytest.fixture(scope="module")
def running(ray_session: None, folder: Path) -> Iterator[Deployment]:
    yield deploy(folder, "sightloom", "7", free_port())
    shutdown()


@pytest.fixture(scope="module")
def client(running: Deployment) -> openai.OpenAI:
    return openai.OpenAI(base_url=running.api, api_key="none", max_retries=0)


def test_the_official_client_gets_an_answer_with_thinking_and_usage(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="sightloom",
        messages=question(),
        max_completion_tokens=48,
        seed=1,
        temperature=1,
        extra_body={"thinking_token_budget": 6},
    )
    message = reply.choices[0].message
    assert message.reasoning_content and message.content is not None
    assert reply.usage.completion_tokens_details.reasoning_tokens == 7
    assert reply.usage.prompt_tokens_details.image_tokens == 16
    assert reply.system_fingerprint.startswith("sightloom-v7-")


def test_a_stream_equals_the_whole_answer_through_the_handle(client: openai.OpenAI) -> None:
    asked = {"model": "sightloom", "messages": question(), "max_tokens": 60, "seed": 5, "temperature": 1}
    whole = client.chat.completions.create(**asked)
    text, usage = "", None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert usage == whole.usage


def test_refusals_arrive_as_the_client_s_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=question())
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="sightloom", messages=question("word " * 3000))
    assert long.value.code == "context_length_exceeded"  # found in the engine, behind the handle
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(
            model="sightloom", messages=question(), tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert tools.value.param == "tools"


def test_every_answer_says_what_answered(client: openai.OpenAI, running: Deployment) -> None:
    raw = client.chat.completions.with_raw_response.create(model="sightloom:7", messages=question(), max_tokens=2)
    assert raw.headers["x-sightloom-model"] == "sightloom:7"
    assert raw.headers["x-sightloom-route"] == "pin"
    assert [model.id for model in client.models.list()] == ["sightloom", "sightloom@champion", "sightloom:7"]
    assert running.seconds["total"] > 0


def test_an_aborted_stream_frees_the_engine(running: Deployment) -> None:
    async def wait_share() -> float:
        async with openai.AsyncOpenAI(base_url=running.api, api_key="none", max_retries=0) as client:
            asked = {"model": "sightloom", "messages": question(), "temperature": 1, "max_tokens": 1900}

            async def length(seed: int) -> int:
                reply = await client.chat.completions.create(**asked, seed=seed)
                assert reply.usage is not None
                return reply.usage.completion_tokens

            # A model with random weights ends when it likes: the longest of many answers lasts many decode steps.
            lengths = await asyncio.gather(*(length(seed) for seed in range(16)))
            seed = lengths.index(max(lengths))
            began = time.monotonic()
            await length(seed)
            whole_s = time.monotonic() - began
            stream = await client.chat.completions.create(**asked, seed=seed, stream=True)
            async for _ in stream:
                break
            await stream.close()
            began = time.monotonic()
            await client.chat.completions.create(**{**asked, "max_tokens": 2}, seed=3)
            return (time.monotonic() - began) / whole_s

    # One batch at a time: had the aborted row gone on, the next request would have waited for most of it, each time.
    # A busy neighbour can slow one try.
    assert min(asyncio.run(wait_share()) for _ in range(3)) < 0.5


def test_many_clients_at_once_all_get_their_own_answer(running: Deployment) -> None:
    async def scenario() -> list[str]:
        async with openai.AsyncOpenAI(base_url=running.api, api_key="none", max_retries=0) as client:

            async def ask(seed: int) -> str:
                reply = await client.chat.completions.create(
                    model="sightloom", messages=question(), seed=seed, temperature=1, max_tokens=24
                )
                return str(reply.choices[0].message.content)

            together = await asyncio.gather(*(ask(seed) for seed in range(12)))
            alone = [await ask(seed) for seed in (0, 11)]
            assert [together[0], together[11]] == alone
            return together

    assert len(set(asyncio.run(scenario()))) == 12


def test_a_port_in_use_or_a_missing_model_is_said_before_anything_starts(
    ray_session: None, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserMistake, match="no model folder"):
        deploy(tmp_path, "other", "1", free_port())
    with pytest.raises(UserMistake, match="without keys"):
        deploy(folder, "other", "1", free_port(), host="0.0.0.0")


def test_a_second_endpoint_on_one_cluster_is_refused(running: Deployment, folder: Path) -> None:
    with pytest.raises(UserMistake, match="already runs"):
        deploy(folder, "other", "1", free_port())


def test_it_ends_and_leaves_nothing(running: Deployment, folder: Path) -> None:
    """The last test of this file: it ends the endpoint."""
    shutdown()
    port = int(running.address.rsplit(":", 1)[1])
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", port))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserMistake, match="is in use"):
            deploy(folder, "sightloom", "7", taken.getsockname()[1])
    actors = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if actor["namespace"] == "serve"]
    assert actors == []
