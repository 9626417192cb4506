"""Metrics over judged rows. Each is a ratio of sums, so that a mean and an F1 share their intervals and their tests."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from sightloom.evaluation.intervals import Difference, grouped_interval, unchanged
from sightloom.evaluation.result import Measure, Row, Statistics
from sightloom.metrics import bootstrap_ratio, mcnemar, paired_bootstrap_ratios

Metric = Literal[
    "accuracy", "relaxed_accuracy", "score", "anls", "iou", "point_in_box", "f1", "yes_rate", "cider", "clip_score",
    "well_formed", "answered", "budget_kept",
]  # fmt: skip
METRICS: Final[tuple[Metric, ...]] = get_args(Metric)

Part = tuple[float, float]


def _of_kind(kind: str, value: Callable[[Row], float]) -> Callable[[Row], Part | None]:
    return lambda row: (value(row), 1.0) if row.kind == kind else None


def _of_answers(value: Callable[[Row], float]) -> Callable[[Row], Part | None]:
    return lambda row: None if row.kind == "caption" else (value(row), 1.0)


def _of_captions(name: str) -> Callable[[Row], Part | None]:
    return lambda row: (row.scores[name], 1.0) if name in row.scores else None


def _f1(row: Row) -> Part | None:
    """F1 of `yes` (POPE): what is neither a right yes nor a right no counts as the other answer."""
    if row.kind != "yes_no":
        return None
    if row.expected == "yes":
        return (2.0, 2.0) if row.right else (0.0, 1.0)
    return (0.0, 0.0) if row.right else (0.0, 1.0)


def _said_yes(row: Row) -> float:
    return float((row.expected == "yes") == row.right)


_PARTS: Final[Mapping[str, Callable[[Row], Part | None]]] = {
    "accuracy": _of_answers(lambda row: float(row.right)),
    "relaxed_accuracy": _of_answers(lambda row: row.scores["relaxed"]),
    "score": _of_answers(lambda row: row.scores["reward"]),
    "anls": _of_kind("text", lambda row: row.scores["reward"]),
    "iou": _of_kind("box", lambda row: row.scores["reward"]),
    "point_in_box": _of_kind("point", lambda row: float(row.right)),
    "f1": _f1,
    "yes_rate": _of_kind("yes_no", _said_yes),
    "cider": _of_captions("cider"),
    "clip_score": _of_captions("clip_score"),
    "well_formed": lambda row: (float(row.well_formed), 1.0),
    "answered": lambda row: (float(row.error is None and bool(row.prediction)), 1.0),
    "budget_kept": lambda row: (float(row.error is None and row.thinking != "truncated"), 1.0),
}
_SHARES: Final = frozenset(METRICS) - {"f1", "cider", "clip_score"}  # means of values in [0, 1]
_RIGHT_OR_WRONG: Final = _SHARES - {"score", "anls", "iou"}
_ABOUT_FORMAT: Final = ("well_formed", "answered", "budget_kept")


def imported_means(rows: Sequence[Row], statistics: Statistics) -> dict[str, Measure]:
    """The mean of each score that another tool gave to its rows, on that tool's own scale."""
    found = {}
    for name in dict.fromkeys(name for row in rows for name in row.scores):
        values = [row.scores[name] for row in rows if name in row.scores]
        drawn = bootstrap_ratio(
            values, [1.0] * len(values), statistics.seed, statistics.confidence, statistics.resamples
        )
        found[name] = Measure(name, drawn.value, len(values), (drawn.low, drawn.high))
    return found


@dataclass(frozen=True, slots=True)
class Compared:
    """Candidate − baseline with one-sided bounds; a two-sided p-value by McNemar's exact test, or the bootstrap's.

    McNemar's takes each row for a draw of its own; where questions share pictures the bootstrap over pictures is asked.
    """

    difference: Difference
    p_value: float


def counted(metric: str, rows: Sequence[Row]) -> list[Row]:
    """The rows that a metric is about."""
    return [row for row in rows if _PARTS[metric](row) is not None]


def measure(metric: str, rows: Sequence[Row], statistics: Statistics) -> Measure | None:
    """A metric's value with its two-sided interval; None where no row is of its kind."""
    chosen = counted(metric, rows)
    if not chosen:
        return None
    tops, bottoms = _columns(metric, chosen)
    groups = [row.group for row in chosen]
    value = sum(tops) / sum(bottoms) if sum(bottoms) else 0.0
    if metric in _SHARES:
        ci = grouped_interval(tops, groups, statistics.confidence, statistics.resamples, statistics.seed)
    elif not sum(bottoms):
        ci = (0.0, 1.0)  # no yes was asked for or said
    else:
        drawn = bootstrap_ratio(tops, bottoms, statistics.seed, statistics.confidence, statistics.resamples, groups)
        ci = (drawn.low, drawn.high)
    return Measure(metric, value, len(chosen), ci)


def measures(rows: Sequence[Row], statistics: Statistics) -> dict[str, Measure]:
    """Every metric that some row is of a kind for, but those about format."""
    found = {name: measure(name, rows, statistics) for name in METRICS if name not in _ABOUT_FORMAT}
    return {name: value for name, value in found.items() if value is not None}


def compare(
    metric: str, rows: Sequence[Row], before: Mapping[str, Row], confidence: float, statistics: Statistics
) -> Compared | None:
    """A metric's difference on the same examples; None where no row is of its kind.

    Args:
        metric: its name.
        rows: the candidate's.
        before: the baseline's, by id.
        confidence: of each one-sided bound.
        statistics: resamples and seed.
    """
    chosen = counted(metric, rows)
    if not chosen:
        return None
    groups = [row.group for row in chosen]
    candidate, baseline = _columns(metric, chosen), _columns(metric, [before[row.id] for row in chosen])
    if candidate == baseline:
        return Compared(unchanged(len(set(groups)), confidence), 1.0)
    # Two one-sided bounds at `confidence` are the ends of one two-sided interval at 2·confidence − 1.
    drawn, p_value = paired_bootstrap_ratios(
        candidate, baseline, statistics.seed, 2 * confidence - 1, statistics.resamples, groups
    )
    if metric in _RIGHT_OR_WRONG and len(set(groups)) == len(groups):
        p_value = mcnemar([top == 1 for top in candidate[0]], [top == 1 for top in baseline[0]])
    return Compared(Difference(drawn.value, drawn.low, drawn.high), p_value)


def _columns(metric: str, rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    parts = [_PARTS[metric](row) for row in rows]
    return [part[0] for part in parts if part], [part[1] for part in parts if part]
