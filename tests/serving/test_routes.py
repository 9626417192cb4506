"""The choice of a version, and what happens when it fails before its first byte."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from sightloom.serving.app import build_app
from sightloom.serving.config import EndpointConfig
from sightloom.serving.dispatch import LocalDispatcher, Route
from sightloom.serving.engines.base import Delta, EngineRequest, Sampling, Thinking, Turn
from sightloom.serving.engines.transformers import TransformersEngine
from sightloom.serving.errors import ApiError
from sightloom.serving.meters import LocalMeters
from sightloom.serving.observe import Outcome, Recorder
from sightloom.serving.routes import Live, ModelRoutes, Shadow, choose, shadow_of
from sightloom.serving.shadows import MAX_AT_ONCE, Shadows

ASK = {"model": "sightloom", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}


def canary(bp: int, salt: str = "s") -> ModelRoutes:
    return ModelRoutes(live=(Live(version="1", app="a", bp=10_000 - bp), Live(version="2", app="b", bp=bp)), salt=salt)


@given(st.text(max_size=20), st.integers(1, 9999), st.integers(1, 9999))
def test_raising_a_share_only_adds_subjects(subject: str, one: int, other: int) -> None:
    low, high = sorted((one, other))
    if choose(canary(low), subject)[1] == "challenger":
        assert choose(canary(high), subject)[1] == "challenger"


def test_shares_are_kept_and_another_salt_chooses_others() -> None:
    subjects = [f"user-{number}" for number in range(20_000)]
    chosen = {subject for subject in subjects if choose(canary(1000), subject)[1] == "challenger"}
    assert 1850 < len(chosen) < 2150  # 2000 ± 3.5 standard deviations
    others = {subject for subject in subjects if choose(canary(1000, "t"), subject)[1] == "challenger"}
    assert len(chosen & others) < 300
    shadowed = ModelRoutes(live=(Live(version="1", app="a"),), shadow=(Shadow(version="2", app="b", share=0.2),))
    assert 3800 < sum(shadow_of(shadowed, subject) is not None for subject in subjects) < 4200


class Failing(LocalDispatcher):
    """A challenger that fails, before its first piece or after it, in front of a champion that answers."""

    def __init__(self, engine: TransformersEngine) -> None:
        super().__init__("sightloom", engine)
        self.pieces_before = 0
        self.code = "engine_error"
        self.outcomes: list[Outcome] = []

    async def route(self, model: str, subject: str) -> Route:
        champion = await super().route(model, subject)

        async def fail(request: EngineRequest) -> AsyncGenerator[Delta, None]:
            for _ in range(self.pieces_before):
                yield Delta(answer="x", num_answer_tokens=1)
            raise ApiError(502, self.code, "the engine was lost")

        info = replace(champion.info, version="4")
        return replace(champion, kind="challenger", info=info, generate=fail, subject=subject)

    async def elsewhere(self, route: Route, error: ApiError) -> Route | None:
        if route.retry:
            return None
        return replace(await super().route(route.model, route.subject), kind="fallback", retry=True)

    def record(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


@pytest.fixture
def failing(engine: TransformersEngine) -> Iterator[tuple[Failing, TestClient]]:
    dispatcher = Failing(engine)
    with TestClient(build_app(EndpointConfig(), dispatcher), base_url="http://127.0.0.1") as client:
        yield dispatcher, client


@pytest.mark.parametrize(("stream", "pieces_before"), [(False, 0), (False, 2), (True, 0)])
def test_what_fails_before_the_first_byte_is_answered_by_the_champion_and_says_so(
    failing: tuple[Failing, TestClient], stream: bool, pieces_before: int
) -> None:
    dispatcher, client = failing
    dispatcher.pieces_before = pieces_before
    reply = client.post("/v1/chat/completions", json={**ASK, "stream": stream})
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-sightloom-route"] == "fallback"
    assert reply.headers["x-sightloom-model"] == "sightloom:3"
    assert "sightloom-v3-" in reply.text
    assert [(one.version, one.route, one.failed) for one in dispatcher.outcomes] == [
        ("4", "challenger", True), ("3", "fallback", False),
    ]  # fmt: skip
    assert dispatcher.outcomes[1].ttft_s is not None


def test_what_fails_after_the_first_byte_ends_with_an_error_event_and_counts(
    failing: tuple[Failing, TestClient],
) -> None:
    dispatcher, client = failing
    dispatcher.pieces_before = 1
    reply = client.post("/v1/chat/completions", json={**ASK, "stream": True})
    assert reply.headers["x-sightloom-route"] == "challenger"
    assert '"engine_error"' in reply.text
    assert reply.text.rstrip().endswith("data: [DONE]")
    assert [(one.version, one.failed) for one in dispatcher.outcomes] == [("4", True)]


def test_pins_and_what_clients_did_wrong_do_not_count() -> None:
    recorder = Recorder()
    good = Outcome("m", "2", "challenger", 7, False, 200, ttft_s=0.1)
    recorder.add(good)
    recorder.add(replace(good, route="pin"))
    recorder.add(replace(good, status=400, code="invalid_value"))
    recorder.add(replace(good, status=429, code="rate_limit_exceeded"))
    recorder.add(replace(good, status=429, code="engine_overloaded"))
    recorder.add(replace(good, status=504, code="deadline_exceeded", hurried=True))
    recorder.add(replace(good, route="shadow", agrees=True))
    live, shadow = recorder.take()
    assert (live.requests, live.errors, live.version, live.generation) == (2, 1, 2, 7)
    assert (shadow.shadow, shadow.requests, shadow.compared, shadow.agreed) == (True, 1, 1, 1)
    assert recorder.take() == []


def test_shadows_are_few_at_once_dropped_when_full_and_compared() -> None:
    outcomes: list[Outcome] = []
    gate, meters = asyncio.Event(), LocalMeters()

    async def ask(app: str, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        await gate.wait()
        if request.request_id == "3-shadow":
            raise ApiError(429, "engine_overloaded", "full")
        if request.request_id == "2-shadow":
            raise ApiError(502, "engine_error", "lost")
        yield Delta(answer=" Yes! And more" if request.request_id == "0-shadow" else "no", num_answer_tokens=1)
        assert request.request_id != "0-shadow", "behind a stop string nothing more is asked for"
        yield Delta(finish="stop")

    async def scenario(engine_free_route: Route) -> list[bool]:
        shadows = Shadows(ask, outcomes.append, meters)
        routes = ModelRoutes(live=(Live(version="1", app="a"),), shadow=(Shadow(version="2", app="b", share=1.0),))
        request = EngineRequest(
            "", (Turn("user", ("x",)),), (), Sampling(0, 1, 0, 0), Thinking(None, None, 1), max_tokens=4, deadline_s=9
        )
        sent = [
            shadows.send(routes, engine_free_route, replace(request, request_id=str(number)), ("!",), "yes")
            for number in range(MAX_AT_ONCE + 1)
        ]
        gate.set()
        while shadows._running:
            await asyncio.sleep(0.01)
        return sent

    route = Route("m", "champion", 7, None, None, "subject")  # type: ignore[arg-type]
    assert asyncio.run(scenario(route)) == [True] * MAX_AT_ONCE + [False]
    found = sorted((outcome.status, outcome.agrees) for outcome in outcomes if outcome.agrees is not None)
    assert found == [(200, False), (200, True)]
    assert [outcome.code for outcome in outcomes if outcome.code] == ["engine_error"], "a full queue is nobody's fault"
    counted = [line for line in meters.text().decode().splitlines() if line.startswith("sightloom_shadow_total{")]
    seen = {line.split('outcome="')[1].split('"')[0]: line.rsplit(" ", 1)[1] for line in counted}
    assert seen == {"agrees": "1.0", "differs": "1.0", "failed": "1.0", "dropped": "2.0"}
