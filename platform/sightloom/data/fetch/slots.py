"""Who may ask a host now: at most so many requests at once, over all tasks of a run.

A task leases a host's places for a moment and uses them for many URLs, so that places cost messages now and then, not
with every URL. What is wanted and given back for all hosts goes in one message.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

LEASE_S = 1.0  # after so long a place goes back when its request ends, so that other tasks come to their turn
IDLE_S = 0.1  # a place that nobody here wants is kept so long
GATHER_S = 0.005  # wishes of so long go in one message
POLL_S = 0.05  # who was refused asks again after so long
ASKING_S = 5.0  # who has not asked for so long has given up its turn


class HostSlots(Protocol):
    """Keeps the places of all hosts for a whole run."""

    async def exchange(self, task: str, wanted: dict[str, int], returned: dict[str, int]) -> dict[str, int]:
        """Take back a task's places, then give it what it wants as far as there is; both are host -> how many."""


class Places:
    """The places of all hosts; those that their holder lost come back after a while."""

    def __init__(self, per_host: int, patience_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: how many a host has, after how long one counts as lost, and what tells the seconds."""
        self._per_host, self._patience_s, self._clock = per_host, patience_s, clock
        self._held: dict[str, list[tuple[float, str]]] = {}  # (when it counts as lost, holder), oldest first
        self._asking: dict[str, dict[str, float]] = {}  # who was refused -> when it last asked, in the order of turns

    async def exchange(self, task: str, wanted: dict[str, int], returned: dict[str, int]) -> dict[str, int]:
        """Take back, then give: first who has asked longest; who asks together shares."""
        for host, count in returned.items():
            for place in [place for place in self._held.get(host, ()) if place[1] == task][:count]:
                self._held[host].remove(place)
            if not self._held.get(host):
                self._held.pop(host, None)
        return {host: given for host, count in wanted.items() if (given := self._give(host, task, count))}

    def _give(self, host: str, task: str, count: int) -> int:
        now = self._clock()
        held = [place for place in self._held.get(host, ()) if place[0] > now]
        asking = {other: asked for other, asked in self._asking.get(host, {}).items() if asked > now - ASKING_S}
        asking[task] = now
        before = list(asking).index(task)
        given = max(0, min(count, self._per_host - len(held) - before, max(1, self._per_host // len(asking))))
        held += [(now + self._patience_s, task)] * given
        if given:
            del asking[task]
        self._held[host], self._asking[host] = held, asking
        for found in (self._held, self._asking):
            if not found[host]:
                del found[host]
        return given


class RemotePlaces:
    """Places that another process keeps, as an actor; this goes along to the tasks."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def exchange(self, task: str, wanted: dict[str, int], returned: dict[str, int]) -> dict[str, int]:
        """Ask the actor."""
        return dict(await self._actor.exchange.remote(task, wanted, returned))


class Leases:
    """One task's places: leased from all those of the run, used by turns, and given back."""

    def __init__(self, slots: HostSlots) -> None:
        self._slots, self._task = slots, uuid.uuid4().hex
        self._waiting: defaultdict[str, deque[asyncio.Future[None]]] = defaultdict(deque)
        self._used: defaultdict[str, deque[float]] = defaultdict(deque)  # when each lease ends
        self._idle: dict[str, deque[tuple[float, float]]] = {}  # (when it goes back, when its lease ends)
        self._returned: Counter[str] = Counter()
        self._stirred, self._closing = asyncio.Event(), False

    async def __aenter__(self) -> Leases:
        self._dealer = asyncio.create_task(self._deal())
        self._dealer.add_done_callback(self._fail)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._stirred.set()
        await self._dealer

    async def acquire(self, host: str) -> None:
        """Wait for a place; what the keeper of the places raised is raised."""
        if self._dealer.done():
            self._dealer.result()
        now = time.monotonic()
        idle = self._idle.get(host)
        while idle:
            _, end = idle.pop()
            if not idle:
                del self._idle[host]
            if end > now:
                self._used[host].append(end)
                return
            self._returned[host] += 1
        turn = asyncio.get_running_loop().create_future()
        self._waiting[host].append(turn)
        self._stirred.set()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.release(host)
            raise

    def release(self, host: str) -> None:
        """Give the place to who waits here, or back."""
        used = self._used[host]
        end = used.popleft()
        if not used:
            del self._used[host]
        now = time.monotonic()
        if end <= now:
            self._returned[host] += 1
            self._stirred.set()
        else:
            self._hand_out(host, end, now)

    def _hand_out(self, host: str, end: float, now: float) -> None:
        waiting = self._waiting[host]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                self._used[host].append(end)
                turn.set_result(None)
                break
        else:
            self._idle.setdefault(host, deque()).append((min(end, now + IDLE_S), end))
            self._stirred.set()
        if not waiting:
            del self._waiting[host]

    async def _deal(self) -> None:
        """Exchange places with the keeper whenever there is something to say, until the end."""
        while not self._closing:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stirred.wait(), self._rest())
            await asyncio.sleep(GATHER_S)
            self._stirred.clear()
            await self._exchange()
        for places in (self._used, self._idle):
            self._returned.update({host: len(found) for host, found in places.items()})
        self._waiting.clear()
        await self._exchange()

    def _fail(self, dealer: asyncio.Task[None]) -> None:
        """Let all who wait raise what the keeper of the places raised."""
        if not dealer.cancelled() and (error := dealer.exception()) is not None:
            for turn in [turn for turns in self._waiting.values() for turn in turns if not turn.done()]:
                turn.set_exception(error)

    def _rest(self) -> float | None:
        """Return for how many seconds nothing is to be said; None = until something happens."""
        if self._waiting:
            return POLL_S
        if not self._idle:
            return None
        return max(0.0, min(found[0][0] for found in self._idle.values()) - time.monotonic())

    async def _exchange(self) -> None:
        now = time.monotonic()
        for host, idle in list(self._idle.items()):
            while idle and idle[0][0] <= now:
                idle.popleft()
                self._returned[host] += 1
            if not idle:
                del self._idle[host]
        wanted = {host: len(turns) for host, turns in self._waiting.items()}
        if not wanted and not self._returned:
            return
        returned, self._returned = dict(self._returned), Counter()
        given = await self._slots.exchange(self._task, wanted, returned)
        now = time.monotonic()
        for host, count in given.items():
            for _ in range(count):
                self._hand_out(host, now + LEASE_S, now)
