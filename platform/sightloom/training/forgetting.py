"""What a stage learns and what it forgets: accuracy by domain, before and after, how far a loss is ruled out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sightloom.evaluation.intervals import Difference, unchanged
from sightloom.evaluation.result import Row, by_domain
from sightloom.metrics import paired_bootstrap

CONFIDENCE: Final = 0.95  # of each one-sided bound
_RESAMPLES: Final = 10_000
_SEED: Final = 17


@dataclass(frozen=True, slots=True)
class Trained:
    """A stage as a row of the matrix: what it trained on, and each domain's accuracy after and before (where known)."""

    name: str
    trained_on: tuple[str, ...]
    accuracy: Mapping[str, float]
    change: Mapping[str, float]


def differences(rows: Sequence[Row], start: Sequence[Row]) -> dict[str, Difference]:
    """Accuracy less that of the start on the same questions, by metric, with one-sided 95 % bounds.

    The paired bootstrap over groups; only questions that both were asked count.
    """
    before = {row.id: row for row in start}
    shared = [row for row in rows if row.id in before]
    parts = {"all": shared, **by_domain(shared)} if shared else {}
    return {f"eval/{name}/accuracy": _difference(part, before) for name, part in parts.items()}


def _difference(rows: Sequence[Row], before: Mapping[str, Row]) -> Difference:
    now, then = ([float(row.right) for row in side] for side in (rows, [before[row.id] for row in rows]))
    groups = [row.group for row in rows]
    if now == then:
        return unchanged(len(set(groups)), CONFIDENCE)
    # Two one-sided bounds at a confidence are the ends of one two-sided interval at twice it less one.
    interval = paired_bootstrap(now, then, _SEED, 2 * CONFIDENCE - 1, _RESAMPLES, groups)
    return Difference(interval.value, interval.low, interval.high)


def trained(
    name: str,
    trained_on: Sequence[str],
    metrics: Mapping[str, float],
    init: Mapping[str, float],
    domains: Sequence[str],
) -> Trained:
    """A row of the matrix out of a stage's metrics."""
    after = {d: metrics[key] for d in domains if (key := f"eval/{d}/accuracy") in metrics}
    change = {d: after[d] - init[key] for d in after if (key := f"eval/{d}/accuracy") in init}
    return Trained(name, tuple(trained_on), after, change)


def measured_domains(metrics: Mapping[str, float]) -> list[str]:
    """The domains that have an accuracy among metrics."""
    names = [key.split("/")[1] for key in metrics if key.startswith("eval/") and key.endswith("/accuracy")]
    return sorted(name for name in names if name not in ("all", "steps", "format"))
