"""The dispatcher over handles: where a request goes, where it goes again, and what a full or lost replica answers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from sightloom.serving.dispatch import Route
from sightloom.serving.engines.base import Delta, EngineInfo, EngineRequest, Sampling, Thinking, ThinkingPolicy, Turn
from sightloom.serving.errors import ApiError
from sightloom.serving.limits import Pace
from sightloom.serving.meters import LocalMeters
from sightloom.serving.router import HandleDispatcher, through
from sightloom.serving.routes import Live, ModelRoutes, Routes

ASKED = EngineRequest("r", (Turn("user", ("x",)),), (), Sampling(0, 1, 0, 0), Thinking(None, None, 1), 4, 9.0)


class Replies:
    """What a handle returns: an iterator that can be cancelled."""

    def __init__(self, items: list[Any]) -> None:
        self._items, self.cancelled = items, False

    async def __aiter__(self) -> AsyncIterator[Any]:
        for item in self._items:
            if isinstance(item, Exception) and not isinstance(item, ApiError):
                raise item
            yield item

    def cancel(self) -> None:
        """Note it."""
        self.cancelled = True


class Handle:
    """A handle that answers as it is told."""

    def __init__(self, *items: Any) -> None:
        self.replies = Replies(list(items))

    def remote(self, _: EngineRequest) -> Replies:
        """The replies."""
        return self.replies


def read(handle: Handle, pace: Pace, most: int = 9) -> list[Delta]:
    async def run() -> list[Delta]:
        found = []
        source = through(handle, ASKED, pace)  # type: ignore[arg-type]
        async for delta in source:
            found.append(delta)
            if len(found) == most:
                break
        await source.aclose()
        return found

    return asyncio.run(run())


def test_a_full_queue_is_429_with_the_version_s_own_pace() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    end = Delta(answer="a", num_answer_tokens=1, finish="stop")
    for _ in range(20):
        now[0] += 0.25
        assert read(Handle(end), pace, 1) == [end]
    with pytest.raises(ApiError) as caught:
        read(Handle(BackPressureError(1, 64)), pace)
    assert (caught.value.status, caught.value.code) == (429, "engine_overloaded")
    assert 14 <= (caught.value.retry_after_s or 0) <= 17, "64 that wait, about four a second"


def test_a_lost_replica_is_502_and_a_reader_who_leaves_cancels() -> None:
    with pytest.raises(ApiError) as caught:
        read(Handle(Delta(answer="a"), RayActorError()), Pace())
    assert (caught.value.status, caught.value.code) == (502, "engine_error")
    left, ended = Handle(Delta(answer="a"), Delta(answer="b")), Handle(Delta(answer="a", finish="stop"))
    read(left, Pace(), 1), read(ended, Pace(), 1)
    assert left.replies.cancelled and not ended.replies.cancelled
    refused = Handle(ApiError(400, "invalid_value", "no"))
    with pytest.raises(ApiError, match="no"):
        read(refused, Pace())
    assert not refused.replies.cancelled


def dispatcher(**infos: EngineInfo) -> HandleDispatcher:
    """Champion 1 in app a, challenger 2 in app b, each with half; version 9 can be pinned; all are known."""
    found = HandleDispatcher(LocalMeters())
    live = (Live(version="1", app="a", bp=5000), Live(version="2", app="b", bp=5000))
    model = ModelRoutes(live=live, pins={"9": "p"}, aliases={"champion": "1", "previous": "9"}, salt="s")
    found._routes = Routes(generation=7, models={"m": model})
    found._infos = infos
    return found


def info(version: str) -> EngineInfo:
    policy = ThinkingPolicy(efforts={}, reserve=1)
    return EngineInfo("transformers", version, "d" * 64, 100, "float32", frozenset(), policy)


def test_requests_go_by_their_subject_and_pins_by_their_name() -> None:
    served = dispatcher(a=info("1"), b=info("2"), p=info("9"))

    async def run() -> None:
        ways = [await served.route("m", f"subject-{number}") for number in range(200)]
        again = [await served.route("m", f"subject-{number}") for number in range(200)]
        assert [way.app for way in ways] == [way.app for way in again], "the same subject goes the same way"
        share = sum(way.kind == "challenger" for way in ways) / 200
        assert 0.35 < share < 0.65 and {way.app for way in ways} == {"a", "b"}
        for name, app in (("m:1", "a"), ("m:2", "b"), ("m:9", "p"), ("m@champion", "a"), ("m@previous", "p")):
            way = await served.route(name, "anybody")
            assert (way.app, way.kind) == (app, "pin")
        for name in ("n", "m:3", "m@challenger", "m:x"):
            with pytest.raises(ApiError) as caught:
                await served.route(name, "anybody")
            assert caught.value.status == 404

    asyncio.run(run())


def test_a_challenger_that_fails_falls_back_once_and_a_champion_is_asked_again() -> None:
    served = dispatcher(a=info("1"), b=info("2"), p=info("9"))
    lost, full, late = (
        ApiError(502, "engine_error", ""), ApiError(429, "engine_overloaded", ""),
        ApiError(504, "deadline_exceeded", ""),
    )  # fmt: skip

    async def run() -> None:
        def way(kind: Any, app: str, retry: bool = False) -> Route:
            return Route("m", kind, 7, info("1"), None, "s", app, retry)  # type: ignore[arg-type]

        for error in (lost, full):
            other = await served.elsewhere(way("challenger", "b"), error)
            assert other is not None and (other.app, other.kind, other.retry) == ("a", "fallback", True)
            assert await served.elsewhere(other, error) is None, "once"
        assert await served.elsewhere(way("challenger", "b"), late) is None, "the client's time is up"
        assert await served.elsewhere(way("challenger", "b"), ApiError(400, "invalid_value", "")) is None
        again = await served.elsewhere(way("champion", "a"), lost)
        assert again is not None and (again.app, again.kind, again.retry) == ("a", "champion", True)
        assert await served.elsewhere(way("champion", "a"), full) is None

    asyncio.run(run())
