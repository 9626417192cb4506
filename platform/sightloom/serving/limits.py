"""Quotas of a key and admission of the endpoint (serving.md §6)."""

import time
from collections import deque
from collections.abc import Callable
from math import ceil
from typing import Any, Final

from sightloom.serving.auth import KeyEntry
from sightloom.serving.errors import ApiError

_MINUTE_S: Final = 60.0
MAX_QUEUED: Final = 64  # requests that wait for a version's replicas; more are refused with 429
SHORTEST_WAIT_S: Final = 1
LONGEST_WAIT_S: Final = 30


class Bucket:
    """A token bucket that refills evenly over a minute; it may be overdrawn and then has to recover first."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at = clock()

    @property
    def level(self) -> float:
        """What is left now."""
        now = self._clock()
        self._level = min(self.limit, self._level + (now - self._at) * self.limit / _MINUTE_S)
        self._at = now
        return self._level

    def take(self, amount: float) -> None:
        """Take `amount`, below zero if need be."""
        self._level = self.level - amount

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` is there; 0 when it is."""
        return max(0.0, (amount - self.level) * _MINUTE_S / self.limit)


class Pace:
    """How fast requests end, over the last minute or so: what a refused client is told to wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=256)

    def ended(self) -> None:
        """A request has ended."""
        self._ends.append(self._clock())

    def wait_s(self, queued: int) -> int:
        """Whole seconds until `queued` requests have ended at this pace: 1 to 30."""
        recent = [at for at in self._ends if at > self._clock() - _MINUTE_S]
        if not recent:
            return SHORTEST_WAIT_S
        rate = len(recent) / max(1.0, self._clock() - recent[0])
        return max(SHORTEST_WAIT_S, min(LONGEST_WAIT_S, ceil(queued / rate)))


class Quota:
    """One key's requests, tokens and concurrent requests in this process.

    With several router replicas each has its own, so the bound is approximate. Tokens are reserved once a request's
    bound is known and settled with its true usage; a key that overdrew waits until the bucket has recovered.
    """

    def __init__(self, entry: KeyEntry, clock: Callable[[], float] = time.monotonic) -> None:
        self.entry = entry
        self._requests = None if entry.rpm is None else Bucket(entry.rpm, clock)
        self._tokens = None if entry.tpm is None else Bucket(entry.tpm, clock)
        self._running = 0

    def enter(self) -> None:
        """Begin a request.

        Raises:
            ApiError: 429 `rate_limit_exceeded` or `too_many_concurrent`.
        """
        limit = self.entry.max_concurrent
        if limit is not None and self._running >= limit:
            raise ApiError(429, "too_many_concurrent", f"the key has {limit} requests running", retry_after_s=1)
        for bucket, what, amount in ((self._requests, "requests", 1.0), (self._tokens, "tokens", 1.0)):
            if bucket is not None and (wait_s := bucket.wait_s(amount)) > 0:
                message = f"the key's {what} per minute ({bucket.limit}) are used up"
                raise ApiError(429, "rate_limit_exceeded", message, retry_after_s=int(wait_s) + 1)
        if self._requests is not None:
            self._requests.take(1)
        self._running += 1

    def reserve(self, num_tokens: int) -> int:
        """Take the most that a request may use; returns what was taken, never more than a minute's.

        Raises:
            ApiError: 429 `rate_limit_exceeded`.
        """
        if self._tokens is None:
            return 0
        amount = min(num_tokens, self._tokens.limit)
        if (wait_s := self._tokens.wait_s(amount)) > 0:
            message = f"the request may use {num_tokens} tokens; {int(self._tokens.level)} of the key's are left"
            raise ApiError(429, "rate_limit_exceeded", message, retry_after_s=int(wait_s) + 1)
        self._tokens.take(amount)
        return amount

    def leave(self, num_tokens: int, reserved: int = 0) -> None:
        """End a request that used `num_tokens`, of which some were reserved."""
        self._running -= 1
        if self._tokens is not None:
            self._tokens.take(num_tokens - reserved)

    def state(self) -> dict[str, Any]:
        """What runs and what is left; None: no bound."""
        return {
            "running": self._running,
            "requests_left": None if self._requests is None else int(self._requests.level),
            "tokens_left": None if self._tokens is None else int(self._tokens.level),
        }

    def headers(self) -> dict[str, str]:
        """What is left, for the client."""
        found: dict[str, str] = {}
        for bucket, name in ((self._requests, "requests"), (self._tokens, "tokens")):
            if bucket is not None:
                found[f"x-ratelimit-limit-{name}"] = str(bucket.limit)
                found[f"x-ratelimit-remaining-{name}"] = str(max(0, int(bucket.level)))
                found[f"x-ratelimit-reset-{name}"] = f"{bucket.wait_s(bucket.limit):.0f}s"
        return found


class Limits:
    """Who may enter: at most `max_in_flight` requests altogether, and each key within its quota."""

    def __init__(self, max_in_flight: int) -> None:
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self.pace = Pace()
        self._quotas: dict[str, Quota] = {}

    def enter(self, entry: KeyEntry) -> Quota:
        """Admit a request; the caller ends it with `leave`.

        Raises:
            ApiError: 429 with `retry-after`.
        """
        quota = self._quotas.get(entry.id)
        if quota is None or quota.entry != entry:
            quota = self._quotas[entry.id] = Quota(entry)
        if self._in_flight >= self._max_in_flight:
            wait_s = self.pace.wait_s(self._in_flight)
            raise ApiError(
                429, "engine_overloaded", "the endpoint has no room for another request", retry_after_s=wait_s
            )
        quota.enter()
        self._in_flight += 1
        return quota

    def state(self) -> dict[str, Any]:
        """How full it is: requests altogether and of each key that has called."""
        return {"in_flight": self._in_flight, "keys": {key: quota.state() for key, quota in self._quotas.items()}}

    def headers(self, entry: KeyEntry) -> dict[str, str]:
        """What is left to a key, also where it was refused."""
        quota = self._quotas.get(entry.id)
        return quota.headers() if quota is not None else {}

    def leave(self, quota: Quota, num_tokens: int, reserved: int = 0) -> None:
        """End an admitted request."""
        self._in_flight -= 1
        self.pace.ended()
        quota.leave(num_tokens, reserved)
