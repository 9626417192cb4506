"""Pure scores and statistics over the rows of an evaluation.

How right one answer is, is the rewards' matter (`sightloom.objectives.rewards`: ANLS, IoU, …); here are shares,
intervals and tests. Random draws come from a seed that the caller gives.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


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
    if not scores.size:
        return Interval(math.nan, math.nan, math.nan)
    sums, counts = _grouped(scores, groups)
    draws = _draws(len(sums), seed, num_resamples)
    means = (draws @ sums) / (draws @ counts)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(scores.mean()), float(low), float(high))


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


def _grouped(
    scores: NDArray[np.float64], groups: Sequence[object] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if groups is None:
        return scores, np.ones_like(scores)
    if len(groups) != len(scores):
        raise ValueError(f"{len(scores)} scores, but {len(groups)} groups")
    index: dict[object, int] = {}
    members = np.array([index.setdefault(group, len(index)) for group in groups])
    sums = np.bincount(members, scores, len(index)).astype(np.float64)
    return sums, np.bincount(members, minlength=len(index)).astype(np.float64)


def _draws(n: int, seed: int, num_resamples: int) -> NDArray[np.float64]:
    """How often each of n units is drawn in each resample [num_resamples, n]."""
    generator = np.random.Generator(np.random.Philox(seed))
    return generator.multinomial(n, np.full(n, 1 / n), size=num_resamples).astype(np.float64)
