"""The same questions to a model in this process and through the endpoint that will serve it."""

import asyncio
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image

from sightloom.evaluation.answerers import EndpointAnswerer, LocalAnswerer
from sightloom.evaluation.suites import Example
from sightloom.model.load import load
from sightloom.model.scratch import build_folder
from sightloom.records import Answer, Conversation, Message
from sightloom.serving.app import EndpointConfig, build_app
from sightloom.serving.dispatch import LocalDispatcher
from sightloom.serving.engines.transformers import TransformersEngine, TransformersSettings

QUESTIONS = ("what colour is the circle?", "how many squares are there?", "where is the button?")


def questions(count: int) -> list[Example]:
    examples = []
    for number in range(count):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        answer = Answer("text", "x")
        asked = Message("user", QUESTIONS[number % 3], image=True)
        conversation = Conversation(str(number), "conversation", "t", "ui", (asked,), answer)
        examples.append(Example(str(number), "s", "ui", "t", buffer.getvalue(), conversation, answer, str(number)))
    return examples


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_folder("nano", QUESTIONS * 40, tmp_path_factory.mktemp("endpoint") / "nano", seed=5)


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    engine = TransformersEngine(folder, "1", TransformersSettings())
    app = build_app(EndpointConfig(), LocalDispatcher("nano", engine))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))

    async def live() -> None:
        await engine.start()
        await server.serve()
        await engine.stop(5.0)

    thread = threading.Thread(target=asyncio.run, args=(live(),))
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the endpoint did not start"
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.mark.parametrize(("thinking", "budget"), [(False, None), (True, 16)])
def test_endpoint_and_process_give_the_same_answers(
    folder: Path, address: str, thinking: bool, budget: int | None
) -> None:
    examples = questions(20)  # more than the 16 that are asked at once
    local = LocalAnswerer(load(str(folder)), thinking_budget=budget).answer(examples, thinking, 80)
    endpoint = EndpointAnswerer(address, thinking_budget=budget)
    remote = endpoint.answer(examples, thinking, 80)
    endpoint.close()
    assert [p.error for p in remote] == [None] * 20
    # An untrained model repeats the mark after the forced one; the endpoint shows no marks, the row keeps them.
    assert [p.content for p in remote] == [p.content.replace("</think>", "").strip() for p in local]
    assert [p.thinking or None for p in remote] == [p.thinking or None for p in local]
    assert [p.well_formed for p in remote] == [p.well_formed for p in local]
    assert [p.num_tokens for p in remote] == pytest.approx([p.num_tokens for p in local], abs=2)  # marks, end of turn
