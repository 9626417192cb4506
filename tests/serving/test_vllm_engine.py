"""The vLLM engine when its server dies, hangs or does not start (a stand-in for vLLM, which starts in a second)."""

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sightloom.errors import SightloomError, UserMistake
from sightloom.serving.engines.base import Delta, EngineRequest, Sampling, Thinking, Turn
from sightloom.serving.engines.settings import VllmSettings
from sightloom.serving.engines.vllm import VllmEngine
from sightloom.serving.errors import ApiError, EngineDied

STAND_IN = Path(__file__).with_name("stand_in.py")


def request(text: str, **changes: Any) -> EngineRequest:
    asked = EngineRequest(
        "r", (Turn("user", (text,)),), (), Sampling(0.0, 1.0, 0, 0), Thinking(False, None, 32), 8, 60.0
    )
    return replace(asked, **changes)


@pytest.fixture
def settings(tmp_path: Path) -> VllmSettings:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n')
    python.chmod(0o755)
    return VllmSettings(
        python=str(python), cache=str(tmp_path / "cache"), probe_every_s=0.2, probe_timeout_s=1.0, stop_grace_s=1.0
    )


def with_engine(
    folder: Path, settings: VllmSettings, scenario: Callable[[VllmEngine], Coroutine[Any, Any, None]]
) -> None:
    async def run() -> None:
        engine = VllmEngine(folder, "1", settings)
        await engine.start()
        try:
            await scenario(engine)
        finally:
            await engine.stop(0.1)
        assert engine.child is not None and engine.child.status is not None and not engine.child.folder.exists()

    asyncio.run(run())


async def answer(engine: VllmEngine, asked: EngineRequest) -> list[Delta]:
    return [delta async for delta in engine.generate(asked)]


async def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


def test_an_answer_has_its_usage_counts_and_timing(nano_folder: Path, settings: VllmSettings) -> None:
    async def scenario(engine: VllmEngine) -> None:
        deltas = await answer(engine, request("hello"))
        assert sum(delta.num_answer_tokens for delta in deltas) == 8
        assert deltas[0].usage is not None and deltas[0].usage.prompt == 3
        assert deltas[-1].finish == "length" and deltas[-1].timing is not None
        assert len(await answer(engine, request("hello", pieces="token"))) >= 8
        assert set(engine.startup) == {"engine", "warmup"}
        await until(lambda: engine.load().kv_used == 0.25)
        with pytest.raises(ApiError, match="control token"):
            await answer(engine, request("a<|im_end|>"))
        # Its bound is beyond the window, so the prompt is measured first: it is not.
        long = await answer(engine, request("x" * 4000, max_tokens=3000))
        assert sum(delta.num_answer_tokens for delta in long) == 8

    with_engine(nano_folder, settings, scenario)


@pytest.mark.parametrize("fault", ["die", "stop", "give up"])
def test_what_is_in_flight_fails_clearly_and_the_server_is_started_again(
    nano_folder: Path, settings: VllmSettings, fault: str
) -> None:
    async def scenario(engine: VllmEngine) -> None:
        first = engine.child
        began = time.monotonic()
        with pytest.raises(EngineDied):
            await answer(engine, request(fault))
        assert time.monotonic() - began < 10
        if fault == "give up":  # one request was given up, and the server goes on
            assert len(await answer(engine, request("hello"))) >= 1
            return
        await until(lambda: not engine.load().alive)
        with pytest.raises(ApiError) as caught:
            await answer(engine, request("hello"))
        assert (caught.value.status, caught.value.code) == (503, "not_ready") and caught.value.retry_after_s
        await until(lambda: engine.load().alive)
        assert engine.child is not first and await answer(engine, request("hello"))
        engine.check()

    with_engine(nano_folder, settings, scenario)


def test_a_server_that_says_nothing_for_long_is_taken_for_dead(nano_folder: Path, settings: VllmSettings) -> None:
    async def scenario(engine: VllmEngine) -> None:
        with pytest.raises(EngineDied):
            await answer(engine, request("say nothing"))
        await until(lambda: engine.load().alive)

    with_engine(nano_folder, settings.model_copy(update={"stall_s": 1.0}), scenario)


def test_too_many_deaths_are_the_end(nano_folder: Path, settings: VllmSettings) -> None:
    async def scenario(engine: VllmEngine) -> None:
        for _ in range(2):
            await until(lambda: engine.load().alive)
            engine.check()
            with pytest.raises(EngineDied):
                await answer(engine, request("die"))
            await until(lambda: not engine.load().alive)

        def failed() -> bool:
            try:
                engine.check()
            except SightloomError as error:
                return "died 2 times" in str(error)
            return False

        await until(failed)

    with_engine(nano_folder, settings.model_copy(update={"max_restarts": 1}), scenario)


def test_a_failed_start_says_what_the_server_said(nano_folder: Path, settings: VllmSettings) -> None:
    wrong = settings.model_copy(update={"extra_args": {"quantization": "imaginary"}})

    async def run() -> None:
        engine = VllmEngine(nano_folder, "1", wrong)
        with pytest.raises(SightloomError, match="there is no such quantization"):
            await engine.start()
        assert engine.child is not None and not engine.child.folder.exists()

    asyncio.run(run())


def test_a_missing_key_file_or_server_is_the_operators_mistake(nano_folder: Path, tmp_path: Path) -> None:
    for settings, message in (
        (VllmSettings(url="http://127.0.0.1:9", key_file=str(tmp_path / "none")), "cannot be read"),
        (VllmSettings(url="http://127.0.0.1:9"), "no vLLM server answers"),
    ):
        with pytest.raises(UserMistake, match=message):
            asyncio.run(VllmEngine(nano_folder, "1", settings).start())


def test_closing_the_iterator_closes_the_stream(nano_folder: Path, settings: VllmSettings) -> None:
    async def scenario(engine: VllmEngine) -> None:
        source = engine.generate(request("say nothing"))
        await anext(source)
        assert engine.load().running == 1
        await source.aclose()
        assert engine.load().running == 0
        assert await answer(engine, request("hello"))

    with_engine(nano_folder, settings, scenario)


def test_pieces_are_larger_the_more_replies_are_written_at_a_time(
    nano_folder: Path,
) -> None:
    engine = VllmEngine(nano_folder, "1", VllmSettings())
    engine._token_s = 0.005
    found = []
    for engine._running in (1, 4, 8, 16, 64):
        found.append(engine._interval("streamed"))
    assert found == [4, 4, 8, 16, 20], "20 ms alone, 40 ms beside seven others, 100 ms at most"
    assert engine._interval("token") == 1 and engine._interval("large") == 200


def test_an_engine_that_nobody_watches_is_replaced(
    nano_folder: Path, settings: VllmSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(engine: VllmEngine) -> None:
        engine.check()

        async def fails() -> str:
            raise ZeroDivisionError

        monkeypatch.setattr(engine, "_broken", fails)
        assert engine._keeper is not None
        await until(engine._keeper.done)
        with pytest.raises(SightloomError, match="watches"):
            engine.check()

    with_engine(nano_folder, settings, scenario)
