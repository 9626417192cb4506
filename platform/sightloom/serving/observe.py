"""What became of requests, as the release manager counts it: one outcome a request, one row a second and version."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from sightloom.serving.assemble import Piece
from sightloom.serving.dispatch import Route
from sightloom.serving.errors import ApiError
from sightloom.serving.routes import RouteKind

MAX_LATENCIES: Final = 64  # of one row: a second's sample is enough for a percentile over minutes


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt to answer ended.

    `code`: empty, or the error's. `agrees`: of a shadow, with the live answer. `hurried`: its client set a deadline.
    """

    model: str
    version: str
    route: RouteKind
    generation: int
    stream: bool
    status: int
    code: str = ""
    empty: bool = False
    malformed: bool = False
    ttft_s: float | None = None
    tpot_s: float | None = None
    agrees: bool | None = None
    hurried: bool = False

    @property
    def failed(self) -> bool:
        """Whether the version is to blame: not for what clients did wrong, a deadline of their own included."""
        if self.code == "deadline_exceeded" and self.hurried:
            return False
        return self.status >= 500 or self.code == "engine_overloaded"

    @property
    def counts(self) -> bool:
        """Whether it says something about the version: pins and what clients did wrong do not."""
        return self.route != "pin" and (self.status < 400 or self.failed)


class Watch:
    """Watches one attempt while its pieces arrive."""

    def __init__(self, route: Route, stream: bool, began: float, hurried: bool = False) -> None:
        self._route, self._stream, self._began, self._hurried = route, stream, began, hurried
        self._first = self._last = 0.0
        self._num_tokens = 0
        self._malformed = False
        self._answers: dict[int, list[str]] = {}

    def see(self, piece: Piece) -> None:
        """Take a piece."""
        now, tokens = time.monotonic(), piece.num_reasoning_tokens + piece.num_answer_tokens
        self._first = self._first or now
        self._last = now
        self._num_tokens += tokens
        self._malformed |= piece.thinking == "malformed"
        self._answers.setdefault(piece.index, []).append(piece.answer)

    @property
    def answer(self) -> str:
        """The first sample's answer."""
        return "".join(self._answers.get(0, ()))

    def answered(self) -> Outcome:
        """The outcome of an attempt that ended well."""
        empty = any(not "".join(pieces).strip() for pieces in self._answers.values())
        return self._outcome(200, "", empty)

    def failed(self, error: ApiError) -> Outcome:
        """The outcome of one that did not."""
        return self._outcome(error.status, error.code, False)

    def _outcome(self, status: int, code: str, empty: bool) -> Outcome:
        route, tpot = self._route, None
        if self._num_tokens > 1 and self._last > self._first:
            tpot = (self._last - self._first) / (self._num_tokens - 1)
        ttft = self._first - self._began if self._first else None
        return Outcome(
            route.model, route.info.version, route.kind, route.generation, self._stream, status, code,
            empty, self._malformed, ttft, tpot, hurried=self._hurried,
        )  # fmt: skip


@dataclass(slots=True)
class Row:
    """Requests of one version and route in about a second. `shadow`: nobody saw the answers."""

    model: str
    version: int
    generation: int
    shadow: bool
    requests: int = 0
    errors: int = 0
    empty: int = 0
    malformed: int = 0
    compared: int = 0
    agreed: int = 0
    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        self.requests += 1
        self.errors += outcome.failed
        self.empty += outcome.empty
        self.malformed += outcome.malformed
        if outcome.agrees is not None:
            self.compared += 1
            self.agreed += outcome.agrees
        for values, value in ((self.ttft_s, outcome.ttft_s), (self.tpot_s, outcome.tpot_s)):
            if value is not None and len(values) < MAX_LATENCIES:
                values.append(value)


class Recorder:
    """Gathers outcomes into rows until they are taken."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, int, bool], Row] = {}

    def add(self, outcome: Outcome) -> None:
        """Count one outcome, if it counts."""
        if not outcome.counts or not outcome.version.isdigit():
            return
        shadow = outcome.route == "shadow"
        key = (outcome.model, outcome.version, outcome.generation, shadow)
        row = self._rows.setdefault(key, Row(outcome.model, int(outcome.version), outcome.generation, shadow))
        row.add(outcome)

    def take(self) -> list[Row]:
        """The rows since the last call."""
        rows, self._rows = list(self._rows.values()), {}
        return rows


def total(rows: Iterable[Row], model: str, version: int) -> Row:
    """One row of many."""
    whole = Row(model, version, 0, False)
    for row in rows:
        whole.requests += row.requests
        whole.errors += row.errors
        whole.empty += row.empty
        whole.malformed += row.malformed
        whole.compared += row.compared
        whole.agreed += row.agreed
        whole.ttft_s += row.ttft_s
        whole.tpot_s += row.tpot_s
    return whole
