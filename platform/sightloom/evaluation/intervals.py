"""Uncertainty over groups: examples that share a picture are drawn together, or intervals come out too narrow.

Shapes: N examples, G groups, R resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of candidate − baseline over the same examples, with one-sided bounds at the confidence asked for."""

    value: float
    lower: float
    upper: float


def wilson(successes: float, n: int, confidence: float) -> tuple[float, float]:
    """The Wilson score interval of a share, two-sided (Wilson 1927); `n` ≥ 1."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def grouped_interval(
    values_N: Sequence[float], groups_N: Sequence[str], confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """A two-sided interval for the mean of values in [0, 1].

    Wilson's where each example is a group of its own, or where all values are equal (a bootstrap of equal values has no
    width; the number of groups is then taken for n); else the percentile bootstrap over groups.
    """
    num_groups = len(set(groups_N))
    mean = sum(values_N) / len(values_N)
    if num_groups == len(values_N) or min(values_N) == max(values_N):
        return wilson(mean * num_groups, num_groups, confidence)
    means_R = _resampled_means(np.asarray(values_N, np.float64), groups_N, resamples, seed)
    tail = (1 - confidence) / 2
    return float(np.quantile(means_R, tail)), float(np.quantile(means_R, 1 - tail))


def paired_difference(
    candidate_N: Sequence[float],
    baseline_N: Sequence[float],
    groups_N: Sequence[str],
    confidence: float,
    resamples: int,
    seed: int,
) -> Difference:
    """The paired bootstrap over groups of the mean difference, with one-sided bounds.

    Where no example differs the bootstrap has no width. The bounds are then those of the share of examples that differ
    at all: with n groups and none seen, at most 1 − (1 − confidence)^(1/n) of them do (the rule of three).
    """
    differences = np.asarray(candidate_N, np.float64) - np.asarray(baseline_N, np.float64)
    if not differences.any():
        bound = 1 - (1 - confidence) ** (1 / len(set(groups_N)))
        return Difference(0.0, -bound, bound)
    means_R = _resampled_means(differences, groups_N, resamples, seed)
    return Difference(
        float(differences.mean()),
        float(np.quantile(means_R, 1 - confidence)),
        float(np.quantile(means_R, confidence)),
    )


def _resampled_means(values_N: Floats, groups_N: Sequence[str], resamples: int, seed: int) -> npt.NDArray[np.float64]:
    names, index_N = np.unique(np.asarray(groups_N), return_inverse=True)
    num_groups = len(names)
    sums_G = np.bincount(index_N, weights=values_N, minlength=num_groups)
    counts_G = np.bincount(index_N, minlength=num_groups).astype(np.float64)
    draws_RG = np.random.default_rng(seed).multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=resamples)
    means_R: Floats = (draws_RG @ sums_G) / (draws_RG @ counts_G)
    return means_R
