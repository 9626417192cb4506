"""Shadowed requests: a challenger answers what the champion has answered, unseen (serving.md §9)."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Final

from sightloom.serving.assemble import Assembler
from sightloom.serving.dispatch import Route
from sightloom.serving.engines.base import Delta, EngineRequest
from sightloom.serving.errors import ApiError
from sightloom.serving.meters import Meters
from sightloom.serving.observe import Outcome
from sightloom.serving.routes import ModelRoutes, Shadow, shadow_of

MAX_AT_ONCE: Final = 4  # what comes beyond is not shadowed: live requests go first
_WORDS: Final = {True: "agrees", False: "differs", None: "failed"}


class Shadows:
    """Sends shadowed requests in the background.

    Args:
        ask: asks an app.
        record: takes the outcomes.
        meters: take what became of them: agrees, differs, failed, dropped.
    """

    def __init__(
        self,
        ask: Callable[[str, EngineRequest], AsyncGenerator[Delta, None]],
        record: Callable[[Outcome], None],
        meters: Meters,
    ) -> None:
        self._ask = ask
        self._take = record
        self._meters = meters
        self._running: set[asyncio.Task[None]] = set()

    def send(
        self, routes: ModelRoutes, route: Route, request: EngineRequest, stops: tuple[str, ...], answer: str
    ) -> bool:
        """Shadow a request that was answered, if its subject is chosen and there is room; says whether it was."""
        shadow = shadow_of(routes, route.subject)
        if shadow is None:
            return False
        if len(self._running) >= MAX_AT_ONCE:
            self._count(route.model, shadow.version, "dropped")
            return False
        task = asyncio.create_task(self._run(shadow, route, request, Assembler(0, stops), answer))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return True

    async def _run(
        self, shadow: Shadow, route: Route, request: EngineRequest, assembler: Assembler, answer: str
    ) -> None:
        began, first, last, tokens = time.monotonic(), 0.0, 0.0, 0
        text, malformed = "", False
        outcome = Outcome(route.model, shadow.version, "shadow", route.generation, False, 200)
        source = self._ask(shadow.app, replace(request, request_id=f"{request.request_id}-shadow"))
        try:
            async with asyncio.timeout(request.deadline_s), contextlib.aclosing(source):
                async for delta in source:
                    last = time.monotonic()
                    first = first or last
                    tokens += delta.num_reasoning_tokens + delta.num_answer_tokens
                    piece = assembler.push(delta)  # cut at the same strings as the live answer
                    text += piece.answer
                    malformed |= piece.thinking == "malformed"
                    if piece.finish is not None:
                        break
        except TimeoutError:
            self._record(replace(outcome, status=504, code="deadline_exceeded"))
            return
        except ApiError as error:
            if error.code == "engine_overloaded":  # a full queue drops shadows; it says nothing about the version
                self._count(route.model, shadow.version, "dropped")
            else:
                self._record(replace(outcome, status=error.status, code=error.code))
            return
        self._record(
            replace(
                outcome,
                empty=not text.strip(),
                malformed=malformed,
                ttft_s=first - began if first else None,
                tpot_s=(last - first) / (tokens - 1) if tokens > 1 and last > first else None,
                agrees=_plain(text) == _plain(answer),
            )
        )

    def _record(self, outcome: Outcome) -> None:
        self._take(outcome)
        self._count(outcome.model, outcome.version, _WORDS[outcome.agrees])

    def _count(self, model: str, version: str, outcome: str) -> None:
        self._meters.add("shadow_total", 1, model=model, version=version, route="shadow", outcome=outcome)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
