"""The vLLM engine: vLLM's OpenAI server as a supervised child of this process, or at a URL (serving.md §4).

The child listens on a unix socket in a private folder and ends with this process, however that dies. When it dies by
itself, requests in flight fail with `EngineDied` and it is started again, a few times; then `check` fails.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import aiohttp

from sightloom.errors import SightloomError
from sightloom.serving.engines.base import Delta, EngineInfo, EngineLoad, EngineRequest, Pieces, Thinking
from sightloom.serving.engines.child import Child
from sightloom.serving.engines.control import refuse_control_tokens
from sightloom.serving.engines.folder import read_facts
from sightloom.serving.engines.settings import VllmSettings
from sightloom.serving.engines.split import Splitter
from sightloom.serving.engines.vllm_connection import Connection
from sightloom.serving.engines.vllm_wire import (
    Events,
    Reply,
    body_of,
    longest_prompt,
    read_vocabulary,
    refusal,
    singly,
    too_long,
)
from sightloom.serving.engines.warm_up import warm_up_request
from sightloom.serving.errors import ApiError, engine_died

_log = logging.getLogger(__name__)
FEATURES: Final = frozenset({"images", "top_k", "min_p", "penalties", "ignore_eos", "structured_output"})
UNREAD_S: Final = 1.0  # a reply that nobody reads along comes in pieces of about so long
PIECES_S: Final = 200  # pieces a second of all streams together: each costs this process about 0.1 ms
SLOWEST_S: Final = 0.1  # a reader along is shown something new at least so often
MIN_TOKEN_S: Final = 5e-4  # no model writes faster
LARGEST_PIECE: Final = 512  # tokens
WARM_UP_TOKENS: Final = 16  # on a CPU the first tokens compile what is left


class VllmEngine:
    """Serves a model folder through vLLM. It belongs to the event loop that started it.

    `startup`: seconds that the parts of the last start took, `engine` and `warmup`.
    """

    def __init__(self, folder: Path, version: str, settings: VllmSettings) -> None:
        self._folder = folder
        self._settings = settings
        facts = read_facts(folder)
        self._words = read_vocabulary(folder)
        self._info = EngineInfo(
            kind="vllm",
            version=version,
            digest=facts.digest,
            max_model_len=min(facts.max_model_len, settings.max_model_len or facts.max_model_len),
            dtype=settings.dtype,
            features=FEATURES | ({"thinking"} if self._words.marks is not None else set()),
            thinking=facts.thinking,
            temperature=facts.temperature,
            top_p=facts.top_p,
            top_k=facts.top_k,
        )
        self._connection: Connection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._alive = False
        self._warm = False
        self._failed = ""
        self.startup: dict[str, float] = {}
        self._running = self._waiting = 0
        self._kv_used: float | None = None
        self._reasons: Counter[str] = Counter()
        self._opening = 0
        self._token_s = 0.05  # seconds between tokens of one reply, smoothed
        self._crowd = 0.0  # how many replies are written at a time, smoothed
        self._heard = 0.0
        self._restarts: deque[float] = deque()
        self._doubted = asyncio.Event()

    @property
    def info(self) -> EngineInfo:
        """What it serves."""
        return self._info

    @property
    def child(self) -> Child | None:
        """The server's process; None where it is at a URL."""
        return self._connection.child if self._connection is not None else None

    async def start(self) -> None:
        """Start the server, wait for it and ask it about a warm-up picture; from then on it is watched.

        Raises:
            UserMistake: there is no vLLM here, or no server at the URL.
            SightloomError: the server did not start; its last lines are in the message.
        """
        await self._begin()
        self._keeper = asyncio.create_task(self._keep())

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        """Answer one request; see `Engine.generate`."""
        refuse_control_tokens(request.messages, self._words.control)
        if not self._alive:
            raise ApiError(503, "not_ready", "the engine is being started", retry_after_s=5)
        if self._running == 0:
            self._heard = time.monotonic()
        self._running += 1
        self._crowd += 0.2 * (self._running - self._crowd)
        try:
            async with contextlib.aclosing(self._ask(request, await self._room(request))) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self._running -= 1

    def load(self) -> EngineLoad:
        """How many requests are at the server, and how many of them it said last that it had not begun."""
        waiting = min(self._waiting, self._running)
        return EngineLoad(self._alive, self._running - waiting, waiting, self._kv_used, dict(self._reasons))

    def check(self) -> None:
        """See that it lives or is being started again."""
        if self._failed:
            raise SightloomError(self._failed)
        if self._keeper is not None and self._keeper.done() and not self._keeper.cancelled():
            raise SightloomError("nobody watches vLLM any more") from self._keeper.exception()

    async def stop(self, grace_s: float) -> None:
        """Let running requests end for `grace_s` seconds, then end the server and all that it started."""
        self._alive = False
        until = time.monotonic() + grace_s
        while self._running and time.monotonic() < until:
            await asyncio.sleep(0.05)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._connection is not None:
            await self._connection.close()

    async def _begin(self) -> None:
        connection = Connection(self._folder, self._settings, self._words, self._info.max_model_len)
        self._connection = connection
        began = time.monotonic()
        try:
            await connection.ready()
            self.startup["engine"] = time.monotonic() - began
            self._heard = time.monotonic()
            await self._warm_up(connection)
            self.startup["warmup"] = time.monotonic() - began - self.startup["engine"]
        except (ApiError, aiohttp.ClientError) as error:
            raise SightloomError(f"vLLM did not answer the warm-up picture: {error}", connection.log) from error
        finally:
            self._alive = self._warm
            if not self._warm:
                await connection.close()

    async def _warm_up(self, connection: Connection) -> None:
        """A picture, and once more inside an open think block, which shows how prompts open it."""
        asked, marks = warm_up_request(), self._words.marks
        async for _ in self._ask(asked, WARM_UP_TOKENS):
            pass
        if marks is not None:
            opened = replace(asked, thinking=Thinking(True, 8, 1))
            body = body_of(opened, self._settings.model, self._words, 2, 0, 1)
            async with await connection.chat(body | {"stream": False, "stream_options": None}) as response:
                prompt = (await response.json()).get("prompt_token_ids") or [] if response.status == 200 else []
            places = [place for place, token in enumerate(prompt) if token in (marks.open, marks.close)]
            if places and prompt[places[-1]] == marks.open:
                self._opening = len(prompt) - places[-1] - 1
        self._warm = True

    async def _room(self, request: EngineRequest) -> int:
        """The tokens that the reply may have; where that is in doubt, the prompt is read once to be measured."""
        window, asked = self._info.max_model_len, request.max_tokens
        longest = longest_prompt(request, self._words)
        if longest is not None and longest + asked <= window:
            return asked
        async with contextlib.aclosing(self._ask(request, 1)) as deltas:
            usage = (await anext(deltas)).usage
        if usage is None:
            raise engine_died()
        if usage.prompt >= window:
            raise too_long(usage.prompt, window)
        return min(asked, window - usage.prompt)

    async def _ask(self, request: EngineRequest, max_tokens: int) -> AsyncGenerator[Delta, None]:
        assert self._connection is not None
        thinking = request.thinking
        opened = self._words.marks is not None and thinking.enabled is True
        budget = thinking.effective_budget(max_tokens)
        splitter = Splitter(self._words.decode, self._words.marks, opened, budget, self._words.ends)
        reply, events = Reply(splitter, self._words.image, time.monotonic()), Events()
        body = body_of(
            request, self._settings.model, self._words, max_tokens, self._opening, self._interval(request.pieces)
        )
        try:
            response = await self._connection.chat(body, request.traceparent)
            try:
                if response.status != 200:
                    raise refusal(response.status, await response.read(), self._info.max_model_len)
                while data := await response.content.readany():
                    self._heard = time.monotonic()
                    whole = events.feed(data)
                    for part in singly(whole) if request.pieces == "token" else [whole]:
                        if (delta := reply.push(part)) is not None:
                            if delta.finish is not None:
                                self._measure(reply)  # not behind the yield: who has read the last piece comes no more
                            yield delta
                            if delta.finish is not None:
                                return
            finally:
                response.close()
        except (aiohttp.ClientError, OSError) as error:
            self._doubted.set()
            raise engine_died() from error
        self._doubted.set()
        raise engine_died()

    def _interval(self, pieces: Pieces) -> int:
        """Tokens to a piece, from how fast they come."""
        if pieces == "token":
            return 1
        shared = min(SLOWEST_S, max(self._running, self._crowd) / PIECES_S)
        seconds = max(self._settings.flush_s, shared) if pieces == "streamed" else UNREAD_S
        return max(1, min(LARGEST_PIECE, round(seconds / self._token_s)))

    def _measure(self, reply: Reply) -> None:
        if (token_s := reply.token_s) is not None:
            self._token_s += 0.2 * (max(MIN_TOKEN_S, token_s) - self._token_s)

    async def _keep(self) -> None:
        """Watch the server; start it again when it has died or hangs."""
        settings = self._settings
        while True:
            if not (reason := await self._broken()):
                continue
            self._alive = self._warm = False
            self._reasons[reason] += 1
            assert self._connection is not None
            _log.warning("the engine died; it said last:\n%s", self._connection.log)
            await self._connection.close()
            now = time.monotonic()
            self._restarts.append(now)
            while self._restarts and self._restarts[0] < now - settings.restart_window_s:
                self._restarts.popleft()
            if len(self._restarts) > settings.max_restarts:
                self._failed = f"vLLM died {len(self._restarts)} times in {settings.restart_window_s:g} s"
                return
            await asyncio.sleep(min(30.0, 2.0 ** (len(self._restarts) - 1)))
            try:
                await self._begin()
            except (SightloomError, OSError) as error:
                _log.warning("the engine did not start again: %s", error)

    async def _broken(self) -> Literal["", "start", "died", "stalled", "hangs"]:
        """Wait for the next look, and see what is wrong with the server; empty: nothing."""
        settings = self._settings
        if not self._alive:
            return "start"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.probe_every_s):
                await self._doubted.wait()
        self._doubted.clear()
        assert self._connection is not None
        if self._connection.ended:
            return "died"
        if self._running and time.monotonic() - self._heard > settings.stall_s:
            _log.warning("no token came for %.0f s", settings.stall_s)
            return "stalled"
        if not await self._connection.healthy():
            return "died" if self._connection.ended else "hangs"
        said = await self._connection.metrics()
        self._kv_used = said.get("vllm:kv_cache_usage_perc")
        self._waiting = int(said.get("vllm:num_requests_waiting", 0))
        return ""
