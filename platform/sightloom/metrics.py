"""Pure scores and statistics over the rows of an evaluation.

How right one answer is, is the rewards' matter (`sightloom.objectives.rewards`: ANLS, IoU, …); here are shares,
intervals and tests. Random draws come from a seed that the caller gives.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sightloom.later import Later

if TYPE_CHECKING:
    from scipy import stats
else:  # a second of every command that only reads a gate or a job
    stats = Later("scipy.stats")


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float


def accuracy(values: ArrayLike) -> float:
    """The mean of scores in [0, 1]; NaN for none."""
    scores = np.asarray(values, np.float64)
    return float(scores.mean()) if scores.size else math.nan


def recall_at_k(similarity: ArrayLike, k: int) -> float:
    """Share of rows i of a square similarity matrix whose column i is among the k most similar.

    A column that is merely as similar counts as in front, so that a constant matrix recalls nothing by luck.
    """
    scores = np.asarray(similarity, np.float64)
    own = scores.diagonal()[:, None]
    in_front = (scores >= own).sum(axis=1) - 1
    return float((in_front < k).mean()) if len(scores) else math.nan


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """A share with Wilson's score interval (1927), which stays inside [0, 1] and is honest for small n."""
    if n <= 0:
        return Interval(math.nan, math.nan, math.nan)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def bootstrap_ci(
    values: ArrayLike,
    seed: int,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    groups: Sequence[object] | None = None,
) -> Interval:
    """The mean with its percentile bootstrap interval.

    `groups`: rows that belong together (several questions on one picture) are drawn together.
    """
    scores = np.asarray(values, np.float64)
    return bootstrap_ratio(scores, np.ones_like(scores), seed, confidence, num_resamples, groups)


def bootstrap_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    seed: int,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    groups: Sequence[object] | None = None,
) -> Interval:
    """Σ numerators / Σ denominators with its percentile bootstrap interval: a mean, or F1 = 2·TP / (2·TP + FP + FN).

    NaN where there are no rows or every denominator is 0; resamples whose denominators are all 0 are left out.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if not bottom.sum():
        return Interval(math.nan, math.nan, math.nan)
    drawn = _drawn_ratios(top, bottom, seed, num_resamples, groups)
    return Interval(float(top.sum() / bottom.sum()), *_percentiles(drawn, confidence))


def paired_bootstrap(
    candidate: ArrayLike,
    baseline: ArrayLike,
    seed: int,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    groups: Sequence[object] | None = None,
) -> Interval:
    """The mean of candidate − baseline on the same rows, with its interval.

    Raises:
        ValueError: the two do not have the same rows.
    """
    left, right = np.asarray(candidate, np.float64), np.asarray(baseline, np.float64)
    if left.shape != right.shape:
        raise ValueError(f"paired scores need the same rows, got {left.shape} and {right.shape}")
    return bootstrap_ci(left - right, seed, confidence, num_resamples, groups)


def paired_bootstrap_ratios(
    candidate: tuple[ArrayLike, ArrayLike],
    baseline: tuple[ArrayLike, ArrayLike],
    seed: int,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    groups: Sequence[object] | None = None,
) -> tuple[Interval, float]:
    """The difference of two ratios (numerators, denominators) on the same rows, and a two-sided bootstrap p-value.

    Both are computed on the same resamples. The p-value is twice the smaller share of resamples on either side of 0,
    counting the sample itself (Davison and Hinkley 1997, 4.2), so it is never 0.

    Raises:
        ValueError: the two do not have the same rows.
    """
    sides = [(np.asarray(top, np.float64), np.asarray(bottom, np.float64)) for top, bottom in (candidate, baseline)]
    if len({part.shape for side in sides for part in side}) != 1:
        raise ValueError("paired ratios need the same rows")
    if not all(bottom.sum() for _, bottom in sides):
        return Interval(math.nan, math.nan, math.nan), 1.0
    left, right = (_drawn_ratios(top, bottom, seed, num_resamples, groups) for top, bottom in sides)
    values = [top.sum() / bottom.sum() for top, bottom in sides]
    drawn = (left - right)[np.isfinite(left - right)]
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p_value = min(1.0, 2 * (tail + 1) / (len(drawn) + 1))
    return Interval(float(values[0] - values[1]), *_percentiles(drawn, confidence)), p_value


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): p-values that may be read together at one error rate; order is kept."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def more_often(hits: int, of: int, base_hits: int, base_of: int) -> float:
    """One-sided p-value of Fisher's exact test: does something happen more often here than in the base?

    Args:
        hits: how often it happened among `of` here, `base_hits` among `base_of` there.
    """
    if not (0 <= hits <= of and 0 <= base_hits <= base_of):
        raise ValueError(f"{hits} of {of} and {base_hits} of {base_of} are no counts")
    return float(stats.hypergeom.sf(hits - 1, of + base_of, hits + base_hits, of))


def mcnemar(candidate: Sequence[bool], baseline: Sequence[bool]) -> float:
    """Two-sided p-value of the exact McNemar test: of the rows where the two differ, is either right more often?"""
    left, right = np.asarray(candidate, bool), np.asarray(baseline, bool)
    if left.shape != right.shape:
        raise ValueError(f"paired outcomes need the same rows, got {left.shape} and {right.shape}")
    gained, lost = int((left & ~right).sum()), int((~left & right).sum())
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def auc(scores: ArrayLike, positive: ArrayLike) -> float:
    """The chance that a positive scores above a negative, ties half; NaN if there are none of one kind."""
    values, labels = np.asarray(scores, np.float64), np.asarray(positive, bool)
    num_positive, num_negative = int(labels.sum()), int((~labels).sum())
    if not num_positive or not num_negative:
        return math.nan
    ranks = stats.rankdata(values)
    return float((ranks[labels].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def _drawn_ratios(
    top: NDArray[np.float64],
    bottom: NDArray[np.float64],
    seed: int,
    num_resamples: int,
    groups: Sequence[object] | None,
) -> NDArray[np.float64]:
    """The ratio of each resample [num_resamples]; NaN where its denominators sum to 0."""
    tops, bottoms = _grouped(top, groups), _grouped(bottom, groups)
    draws = _draws(len(tops), seed, num_resamples)
    sums = draws @ bottoms
    return np.divide(draws @ tops, sums, out=np.full(num_resamples, np.nan), where=sums != 0)


def _percentiles(drawn: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def _grouped(scores: NDArray[np.float64], groups: Sequence[object] | None) -> NDArray[np.float64]:
    """The sum of each group's scores, in the order in which the groups first occur."""
    if groups is None:
        return scores
    if len(groups) != len(scores):
        raise ValueError(f"{len(scores)} scores, but {len(groups)} groups")
    index: dict[object, int] = {}
    members = np.array([index.setdefault(group, len(index)) for group in groups], np.int64)
    return np.bincount(members, scores, len(index)).astype(np.float64)


def _draws(n: int, seed: int, num_resamples: int) -> NDArray[np.float64]:
    """How often each of n units is drawn in each resample [num_resamples, n]."""
    generator = np.random.Generator(np.random.Philox(seed))
    return generator.multinomial(n, np.full(n, 1 / n), size=num_resamples).astype(np.float64)
