"""Cutting a row of samples into shards: equal ones, as few as both caps allow, never one over a cap."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sightloom.errors import UserMistake


def assign(
    bounds_N: npt.NDArray[np.int64],
    weights_N: npt.NDArray[np.int64],
    cap: int,
    max_samples: int,
    multiple_of: int = 1,
    series: str | None = None,
) -> npt.NDArray[np.int64]:
    """Return each sample's shard [N], ascending from 0: borders at equal weight, no shard empty.

    Args:
        bounds_N: the most bytes that each sample may take, none over `cap`.
        weights_N: positive; what shards are to have equally much of.
        cap: of the sum of a shard's bounds.
        max_samples: cap of a shard's samples.
        multiple_of: the number of shards is a multiple of it.
        series: named in the error.

    Raises:
        UserMistake: a multiple of so many shards would leave some empty.
    """
    number = len(bounds_N)
    if not number:
        return np.zeros(0, np.int64)
    middle = np.cumsum(weights_N) - weights_N / 2
    shards = max(math.ceil(int(bounds_N.sum()) / cap), math.ceil(number / max_samples))
    most, tried = number // multiple_of * multiple_of, 0
    while True:
        shards = min(math.ceil(shards / multiple_of) * multiple_of, most)
        if shards == tried or not most:
            where = "" if series is None else f" of '{series}'"
            raise UserMistake(
                f"pack.multiple_of {multiple_of}: the {number} samples{where} cannot fill so many shards",
                "make pack.multiple_of smaller, or drop pack.group_by",
            )
        tried = shards
        starts = _starts(middle, int(weights_N.sum()), shards)
        counts = np.diff(starts, append=number)
        over = max(np.add.reduceat(bounds_N, starts).max() / cap, counts.max() / max_samples)
        if over <= 1:
            return np.repeat(np.arange(shards), counts)
        # Where one stretch is far denser than the rest, steps of one would take long: half of what is missing at once.
        shards += max(1, int(shards * (over - 1) / 2))


def _starts(middle_N: npt.NDArray[np.float64], total: int, shards: int) -> npt.NDArray[np.int64]:
    """Return each shard's first sample [S]: those whose middle lies in its part of the total, and at least one."""
    wanted = np.searchsorted(middle_N, total * np.arange(shards) / shards)
    each = np.arange(shards)
    no_earlier = np.maximum.accumulate(wanted - each) + each
    return np.minimum(no_earlier, len(middle_N) - shards + each)
