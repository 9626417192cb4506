"""Soft-capped sampling: rounds of draws without replacement, in which what was drawn becomes less likely.

Each round draws `batch` rows with probabilities of softmax(score / temperature) and lowers the scores of the drawn by
`penalty`, until `count` are drawn (the "soft cap" of the DataComp entries). The draws are Gumbel noise that is hashed
from the seed, the round and the row's uid, so neither the order of the rows nor the number of workers matters.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sightloom.data.select.config import Sample

MOST_COPIES = 32_767
Hashes = npt.NDArray[np.uint64]


def soft_cap(
    scores: npt.NDArray[np.float64], uids: tuple[Hashes, Hashes], config: Sample, seed: int
) -> npt.NDArray[np.int16]:
    """Return how often each of n rows is drawn [n]; the sum is `config.count` where n > 0.

    Args:
        scores: finite [n].
        uids: the two halves of the uids [n].
        config: count, temperature, penalty and batch.
        seed: of the draws.
    """
    copies = np.zeros(len(scores), np.int16)
    if not len(scores):
        return copies
    identity = _mix(uids[0] ^ _mix(uids[1]))
    logits = scores / config.temperature
    left, number = config.count, 0
    while left:
        size = min(left, config.batch, len(scores))
        chance = logits - copies * (config.penalty / config.temperature) + _gumbel(identity, seed, number)
        drawn = np.argpartition(-chance, size - 1)[:size]
        copies[drawn] += 1
        left, number = left - size, number + 1
    return copies


def _gumbel(identity: Hashes, seed: int, number: int) -> npt.NDArray[np.float64]:
    words = _mix(identity ^ _mix(np.array([seed & (2**64 - 1)], np.uint64) + np.uint64(number + 1)))
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(-np.log(uniform))


def _mix(words: Hashes) -> Hashes:
    """Return splitmix64's finaliser of each word."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
