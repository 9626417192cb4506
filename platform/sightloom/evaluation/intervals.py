"""Uncertainty over pictures: questions on one picture are drawn together, and an interval never has no width."""

from collections.abc import Sequence
from dataclasses import dataclass

from sightloom.metrics import bootstrap_ci, wilson


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of candidate − baseline over the same examples, with one-sided bounds at the confidence asked for."""

    value: float
    lower: float
    upper: float


def grouped_interval(
    values: Sequence[float], groups: Sequence[str], confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """A two-sided interval for the mean of values in [0, 1].

    Wilson's where each example is a group of its own, or where all values are equal (a bootstrap of equal values has no
    width; the number of groups is then taken for n); else the percentile bootstrap over groups.
    """
    num_groups = len(set(groups))
    if num_groups == len(values) or min(values) == max(values):
        interval = wilson(sum(values) / len(values) * num_groups, num_groups, confidence)
    else:
        interval = bootstrap_ci(values, seed, confidence, resamples, groups)
    return interval.low, interval.high


def unchanged(num_groups: int, confidence: float) -> Difference:
    """The difference where no example differs at all, for which a bootstrap has no width.

    The bounds are those of the share of examples that could differ: with n groups and none seen, at most
    1 − (1 − confidence)^(1/n) of them do (the rule of three).
    """
    bound = 1 - (1 - confidence) ** (1 / num_groups)
    return Difference(0.0, -bound, bound)
