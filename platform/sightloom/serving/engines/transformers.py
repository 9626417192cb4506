"""The transformers engine: the model in this process, requests gathered into micro-batches (serving.md §4).

One thread owns the model. A batch runs to its slowest row and newcomers wait for it; a cancelled row stops at its next
token but its place returns with the batch; there is no prefix cache. Where that matters, vLLM is the engine.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from sightloom.errors import SightloomError
from sightloom.model.chat import Document
from sightloom.model.generation import Constraint, GenerationRequest, Generator
from sightloom.model.load import load
from sightloom.model.thinking import THINK_CLOSE, THINK_OPEN
from sightloom.serving.engines.base import (
    Delta,
    EngineInfo,
    EngineLoad,
    EngineRequest,
    Finish,
    PromptUsage,
    Timing,
)
from sightloom.serving.engines.folder import read_facts
from sightloom.serving.engines.grammars import Grammars
from sightloom.serving.engines.prompts import PromptMaker
from sightloom.serving.engines.settings import TransformersSettings
from sightloom.serving.engines.split import Splitter, ThinkTokens
from sightloom.serving.engines.warm_up import warm_up_request
from sightloom.serving.errors import ApiError

_log = logging.getLogger(__name__)
LIMITS: Final = ("a batch runs to its slowest row", "a cancelled row keeps its place until then", "no prefix cache")


@dataclass(eq=False)
class _Job:
    """A request on its way through the model's thread."""

    request: EngineRequest
    prompt: Document
    max_tokens: int
    budget: int
    splitter: Splitter
    usage: PromptUsage
    loop: asyncio.AbstractEventLoop
    received: float
    constraint: Constraint | None
    replies: "asyncio.Queue[Delta | Exception]" = field(default_factory=asyncio.Queue)
    cancelled: bool = False
    began: float = 0.0
    first: float = 0.0
    flushed: float = 0.0

    def send(self, item: Delta | Exception) -> None:
        try:
            self.loop.call_soon_threadsafe(self.replies.put_nowait, item)
        except RuntimeError:  # the loop that asked has gone
            self.cancelled = True

    @property
    def overdue(self) -> bool:
        return time.monotonic() - self.received > self.request.deadline_s


class TransformersEngine:
    """Serves a model folder from this process. `startup`: seconds of the start's parts, `engine` and `warmup`."""

    def __init__(self, folder: Path, version: str, settings: TransformersSettings | None = None) -> None:
        self._folder = folder
        self._settings = settings or TransformersSettings()
        facts = read_facts(folder)
        self._info = EngineInfo(
            kind="transformers",
            version=version,
            digest=facts.digest,
            max_model_len=facts.max_model_len,
            dtype=self._settings.dtype,
            features=frozenset({"images", "top_k", "structured_output"}),
            thinking=facts.thinking,
            temperature=facts.temperature,
            top_p=facts.top_p,
            top_k=facts.top_k,
            limits=LIMITS,
        )
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._held: _Job | None = None
        self._preparing = 0
        self._running = 0
        self._alive = False
        self.startup: dict[str, float] = {}
        self._thread: threading.Thread | None = None
        self._marks: ThinkTokens | None = None

    @property
    def info(self) -> EngineInfo:
        """What it serves; `features` are complete after `start`."""
        return self._info

    async def start(self) -> None:
        """Load the model and answer a warm-up picture."""
        began = time.monotonic()
        await asyncio.to_thread(self._load)
        self.startup["engine"] = time.monotonic() - began
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()
        self._alive = True
        try:
            async for _ in self.generate(warm_up_request()):
                pass
        except ApiError:
            self._alive = False
            raise
        self.startup["warmup"] = time.monotonic() - began - self.startup["engine"]

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        """Answer one request; see `Engine.generate`."""
        if not self._lives:
            raise ApiError(503, "not_ready", "the engine does not run", retry_after_s=2)
        received = time.monotonic()
        self._preparing += 1
        try:
            prompt = await asyncio.to_thread(self._prompts.prompt, request)
            constraint = None
            if request.grammar is not None:
                constraint = await asyncio.to_thread(self._grammars.constraint, request.grammar)
        finally:
            self._preparing -= 1
        max_tokens = min(request.max_tokens, self._info.max_model_len - len(prompt))
        budget = request.thinking.effective_budget(max_tokens)
        opened = self._marks is not None and request.thinking.enabled is True
        usage = PromptUsage(len(prompt), self._prompts.num_image_tokens(prompt))
        splitter = Splitter(self._decode, self._marks, opened, budget, self._ends)
        loop = asyncio.get_running_loop()
        job = _Job(request, prompt, max_tokens, budget, splitter, usage, loop, received, constraint)
        self._waiting.put(job)
        try:
            while True:
                item = await job.replies.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.finish is not None:
                    return
        finally:
            job.cancelled = True

    def load(self) -> EngineLoad:
        """How many requests run and wait."""
        return EngineLoad(self._lives, self._running, self._waiting.qsize())

    def check(self) -> None:
        """Its thread must run."""
        if not self._lives:
            raise SightloomError("the engine has ended")

    @property
    def _lives(self) -> bool:
        return self._alive and self._thread is not None and self._thread.is_alive()

    async def stop(self, grace_s: float) -> None:
        """Let the running batch and what waits end for `grace_s` seconds."""
        self._alive = False
        if self._thread is not None:
            self._waiting.put(None)
            await asyncio.to_thread(self._thread.join, grace_s)

    def _load(self) -> None:
        vlm = load(str(self._folder), self._settings.dtype, self._settings.device)
        self._generator = Generator(vlm, self._settings.max_batch)
        self._decode = vlm.tokenizer.backend_tokenizer.decode  # leaves special tokens out
        self._prompts = PromptMaker(vlm.processor, self._info.max_model_len)
        ends = vlm.model.generation_config.eos_token_id
        self._ends = frozenset([ends] if isinstance(ends, int) else ends or ())
        vocabulary = vlm.tokenizer.get_vocab()
        marks = [vocabulary[mark] for mark in (THINK_OPEN, THINK_CLOSE) if mark in vocabulary]
        self._grammars = Grammars(vlm.tokenizer, vlm.model.config.get_text_config().vocab_size, marks)
        if THINK_OPEN in vocabulary and THINK_CLOSE in vocabulary:
            self._marks = ThinkTokens(vocabulary[THINK_OPEN], vocabulary[THINK_CLOSE])
            self._info = replace(self._info, features=self._info.features | {"thinking"})

    def _work(self) -> None:
        """The model's thread: gather, run, until a None comes."""
        while True:
            job, self._held = self._held or self._waiting.get(), None
            if job is None:
                return
            jobs, last = self._gather(job)
            jobs = [job for job in jobs if not job.cancelled]
            if jobs:
                self._running = len(jobs)
                try:
                    self._run(jobs)
                except Exception as error:  # noqa: BLE001  whatever a model raises, its requests are told, and it goes on
                    _log.exception("a batch of %d failed", len(jobs))
                    for job in jobs:
                        job.send(ApiError(502, "engine_error", f"the engine failed: {type(error).__name__}"))
                self._running = 0
            if last:
                return

    def _gather(self, job: _Job) -> tuple[list[_Job], bool]:
        """The jobs of the next batch, and whether the engine is to end after it."""
        settings, jobs = self._settings, [job]
        longest = len(job.prompt) + job.max_tokens
        until = time.monotonic() + settings.gather_s
        latest = until + 10 * settings.gather_s
        while len(jobs) < settings.max_batch:
            try:
                follower = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                # a prompt in the making will not wait for a whole batch
                if self._preparing and time.monotonic() < latest:
                    until = time.monotonic() + settings.gather_s
                    continue
                return jobs, False
            if follower is None:
                return jobs, True
            longest = max(longest, len(follower.prompt) + follower.max_tokens)
            if longest * (len(jobs) + 1) > settings.max_padded_tokens:
                self._held = follower
                return jobs, False
            jobs.append(follower)
        return jobs, False

    def _run(self, jobs: list[_Job]) -> None:
        began = time.monotonic()
        for job in jobs:
            job.began = began
        asked = [
            GenerationRequest(
                prompt=job.prompt,
                max_new_tokens=job.max_tokens,
                temperature=job.request.sampling.temperature,
                top_p=job.request.sampling.top_p,
                top_k=job.request.sampling.top_k,
                seed=job.request.sampling.seed,
                thinking_budget=job.budget if self._marks is not None else None,
                constraint=job.constraint,
            )
            for job in jobs
        ]

        def on_token(index: int, token: int) -> None:
            job, now = jobs[index], time.monotonic()
            job.splitter.push(token)
            each = job.first == 0.0 or job.request.pieces == "token"
            if each or now - job.flushed >= self._settings.flush_s:
                self._flush(job, now)

        def cancelled(index: int) -> bool:
            return jobs[index].cancelled or jobs[index].overdue

        results = self._generator.generate(asked, on_token, cancelled)
        for job, result in zip(jobs, results, strict=True):
            if result.finish == "cancelled":
                job.send(ApiError(504, "deadline_exceeded", f"no answer within {job.request.deadline_s:g} s"))
            else:
                self._flush(job, time.monotonic(), result.finish)

    def _flush(self, job: _Job, now: float, finish: Finish | None = None) -> None:
        """Send what has gathered; the first piece at once."""
        outcome = job.splitter.outcome if finish is None else job.splitter.end()
        piece = job.splitter.take()
        if not piece and finish is None:
            return
        usage = job.usage if job.first == 0.0 else None
        job.first = job.first or now
        job.flushed = now
        timing = None
        if finish is not None:
            timing = Timing(job.began - job.received, job.first - job.received, now - job.received)
        job.send(
            Delta(
                piece.reasoning,
                piece.answer,
                piece.num_reasoning,
                piece.num_answer,
                usage,
                finish,
                outcome,
                timing,
            )
        )
