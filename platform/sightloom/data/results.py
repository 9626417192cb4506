"""What became of every row: `rows_in == kept + sum(dropped) + failed` after each step."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sightloom.data.dedup.duplicates import Duplicates, counts
from sightloom.data.fetch import Inputs
from sightloom.data.measure import INTERNAL
from sightloom.data.select.columns import Scored
from sightloom.data.select.decision import Decision
from sightloom.data.shards.manifest import Manifest
from sightloom.data.sources.records import OK


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What became of every row after a step; `kept` is what still stands."""

    rows_in: int
    kept: int
    dropped: dict[str, int]
    failed: int
    seconds: dict[str, float]
    samples_per_s: float

    def to_json(self) -> dict[str, Any]:
        """Return the result as every command prints it; there are no shards yet."""
        counted = {name: getattr(self, name) for name in ("rows_in", "kept", "dropped", "failed")}
        return {"manifest": None, **counted, "shards": 0, "samples_per_s": self.samples_per_s}


@dataclass(frozen=True, kw_only=True)
class CurationResult(StepResult):
    """What became of every row, where the shards and the page are (empty: not written by this step), and under which
    licence each scorer's weights are (None: not known)."""

    manifest: str
    shards: int
    report: str
    licences: dict[str, str | None]

    def to_json(self) -> dict[str, Any]:
        """Return the result as every command prints it."""
        return super().to_json() | {"manifest": self.manifest, "shards": self.shards}


class Clock:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Give the time since the last lap to a step."""
        now = time.monotonic()
        self.seconds[name], self._last = round(now - self._last, 3), now

    def rate(self, rows: int) -> float:
        """Rows a second since the start."""
        return round(rows / max(1e-9, time.monotonic() - self._start), 2)


def of_scored(scored: Scored, inputs: Inputs, clock: Clock, duplicates: Duplicates | None = None) -> StepResult:
    """Say what became of every row before anything was selected."""
    dropped = {name: count for name, count in scored.status.items() if name not in (OK, INTERNAL)}
    dropped |= inputs.not_fetched | (counts(duplicates.reasons) if duplicates is not None else {})
    rows_in, failed = scored.num_rows + sum(inputs.not_fetched.values()), scored.status.get(INTERNAL, 0)
    return StepResult(
        rows_in=rows_in,
        kept=rows_in - sum(dropped.values()) - failed,
        dropped=dict(sorted(dropped.items())),
        failed=failed,
        seconds=clock.seconds,
        samples_per_s=clock.rate(rows_in),
    )


def of_decision(decision: Decision, inputs: Inputs, clock: Clock) -> StepResult:
    """Say what became of every row before shards were packed."""
    rows_in = len(decision.keep) + sum(inputs.not_fetched.values())
    return StepResult(
        rows_in=rows_in,
        kept=int(decision.keep.sum()),
        dropped=dict(sorted({**decision.dropped, **inputs.not_fetched}.items())),
        failed=decision.failed,
        seconds=clock.seconds,
        samples_per_s=clock.rate(rows_in),
    )


def of_manifest(manifest: Manifest, page: str, clock: Clock) -> CurationResult:
    """Say what finished shards hold."""
    totals = manifest.totals
    return CurationResult(
        manifest=manifest.uri,
        rows_in=totals.rows_in,
        kept=totals.kept,
        dropped=totals.dropped,
        failed=totals.failed,
        shards=len(manifest.shards),
        samples_per_s=clock.rate(totals.rows_in),
        report=page,
        licences={scorer["name"]: scorer["licence"] for scorer in manifest.scorers},
        seconds=clock.seconds,
    )
