"""`POST /v1/chat/completions`: read, check, route, load pictures, generate, answer as JSON or as a stream."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sightloom.serving.attempt import Attempt
from sightloom.serving.auth import require
from sightloom.serving.dispatch import Dispatcher, Route, parse_model
from sightloom.serving.errors import ApiError, invalid
from sightloom.serving.gate import Visit
from sightloom.serving.gauges import Busy
from sightloom.serving.media import MediaGuard
from sightloom.serving.observe import Watch
from sightloom.serving.protocol import ChatRequest, parse, read_json
from sightloom.serving.replies import Draft, Head
from sightloom.serving.resolve import check_features, most_tokens, references, resolve
from sightloom.serving.samples import Samples
from sightloom.serving.streaming import EventStream
from sightloom.serving.structure import grammar_of
from sightloom.serving.voting import Voted

T = TypeVar("T")
DEADLINE: Final = "sightloom.deadline_s"


class ClientGone(Exception):
    """The client hung up; nobody reads an answer."""


class Chat:
    """Answers chat requests."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        guard: MediaGuard,
        busy: Busy,
        body_bytes: int,
        deadline_s: float,
        keep_alive_s: float,
    ) -> None:
        self._dispatcher = dispatcher
        self._guard = guard
        self._busy = busy
        self._body_bytes = body_bytes
        self._deadline_s = deadline_s
        self._keep_alive_s = keep_alive_s

    async def __call__(self, request: Request) -> Response:
        """Answer one request.

        Raises:
            ApiError: the request is refused, or failed before its first byte.
        """
        began = time.monotonic()
        visit: Visit = request.state.visit
        chat = parse(ChatRequest, read_json(await read_body(request, self._body_bytes)))
        if (chat.sightloom.deadline_s or 0) > self._deadline_s:
            raise invalid(f"'sightloom.deadline_s': this endpoint answers within {self._deadline_s:g} s", DEADLINE)
        route = await self._route(chat, request, visit)
        check_features(chat, route.info)
        visit.reserve(most_tokens(chat, route.info))
        grammar = await grammar_of(chat.response_format)
        images = await self._guard.load(references(chat))
        media_s = time.monotonic() - began
        facts = visit.facts
        facts.media_s, facts.stream = media_s, chat.stream
        facts.images, facts.image_bytes = len(images), sum(map(len, images))
        lost_s = 0.0
        while True:
            attempt = self._attempt(visit, chat, images, grammar, route, began + lost_s, lost_s)
            try:
                return await self._answer(request, attempt, media_s, began)
            except ApiError as error:  # nothing was sent yet
                self._dispatcher.record(attempt.watch.failed(error))
                other = await self._dispatcher.elsewhere(route, error)
                if other is None:
                    raise
                route, lost_s = other, time.monotonic() - began - media_s
                _take_route(visit, route)

    async def _route(self, chat: ChatRequest, request: Request, visit: Visit) -> Route:
        if parse_model(chat.model).pinned:
            require(visit.key, "pin")
        subject = request.headers.get("x-session-id") or chat.user or visit.request_id
        route = await self._dispatcher.route(chat.model, subject)
        _take_route(visit, route)
        return route

    def _attempt(
        self,
        visit: Visit,
        chat: ChatRequest,
        images: list[bytes],
        grammar: str | None,
        route: Route,
        began: float,
        lost_s: float,
    ) -> Attempt:
        deadline_s = chat.sightloom.deadline_s or self._deadline_s
        asked = resolve(chat, images, route.info, visit.request_id, deadline_s, grammar, visit.traceparent)
        head = Head(f"chatcmpl-{visit.request_id}", chat.model, route.info.fingerprint, chat.include_reasoning)
        samples = Samples(route, asked, chat.stops, deadline_s, self._busy)
        shown = Voted(samples, len(asked)) if len(asked) > chat.n else samples
        watch = Watch(route, chat.stream, began, hurried=deadline_s < self._deadline_s)
        return Attempt(visit, chat, route, asked, head, shown, watch, lost_s)

    async def _answer(self, request: Request, attempt: Attempt, media_s: float, began: float) -> Response:
        """One attempt's answer; raises ApiError where it failed before its first byte."""
        if attempt.chat.stream:
            return await self._stream(request, attempt)
        gone = False
        try:
            drafts = await _unless_gone(request, _gather(attempt))
        except ClientGone:
            gone = True
            return Response(status_code=499)
        finally:
            await attempt.close(cancelled=gone)
        self._answered(attempt)
        _time(attempt.visit, drafts, media_s, began)
        return JSONResponse(attempt.head.completion(drafts, attempt.tally).model_dump())

    async def _stream(self, request: Request, attempt: Attempt) -> Response:
        try:  # what fails before the first piece still is an HTTP error
            first = await _unless_gone(request, attempt.samples.next(self._keep_alive_s))
        except ClientGone:
            await attempt.close(cancelled=True)
            return Response(status_code=499)
        except BaseException:
            await attempt.close(cancelled=False)
            raise
        return EventStream(attempt, first, self._keep_alive_s, self._answered, self._failed)

    def _answered(self, attempt: Attempt) -> None:
        outcome = attempt.watch.answered()
        self._dispatcher.record(outcome)
        attempt.note(outcome)
        self._dispatcher.shadow(attempt.route, attempt.asked[0], attempt.chat.stops, attempt.watch.answer)

    def _failed(self, attempt: Attempt, error: ApiError) -> None:
        self._dispatcher.record(attempt.watch.failed(error))
        attempt.visit.facts.failed(error)


def _take_route(visit: Visit, route: Route) -> None:
    visit.headers.update(route.headers)
    visit.facts.model, visit.facts.version, visit.facts.route = route.model, route.info.version, route.kind


async def read_body(request: Request, limit: int) -> bytes:
    """Read a JSON body, counted while reading.

    Raises:
        ApiError: 415 another content type, 413 `request_too_large`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "unsupported_media_type", "send the body as 'content-type: application/json'")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "unsupported_media_type", "send the body without content-encoding")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise ApiError(413, "request_too_large", f"the body has more than {limit} bytes")
    return bytes(body)


async def _gather(attempt: Attempt) -> list[Draft]:
    drafts = [Draft() for _ in range(attempt.chat.n)]
    while True:
        try:
            piece = await attempt.samples.next()
        except StopAsyncIteration:
            return drafts
        assert piece is not None
        attempt.add(piece)
        drafts[piece.index].add(piece)


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Await `work`, but stop when the client hangs up.

    Raises:
        ClientGone: it did.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_hung_up(request.receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _hung_up(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _time(visit: Visit, drafts: list[Draft], media_s: float, began: float) -> None:
    parts = {"media": media_s}
    timing = drafts[0].timing
    if timing is not None:
        parts |= {"queue": timing.queue_s, "first": timing.first_s}
    parts["total"] = time.monotonic() - began
    visit.headers["server-timing"] = ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in parts.items())
