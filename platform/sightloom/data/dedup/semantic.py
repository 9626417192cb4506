"""Pictures that say the same: stored embeddings in clusters, and cosines inside each (data.md §10).

Spherical k-means on a sample finds the clusters; in each of them, in order of priority, a row goes if its cosine with a
row that stays reaches the threshold (no chains). O(n·k·D) for the assignment and O(n·10^4·D) for the cosines.

Shapes: n rows in order of priority, k clusters, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

SAMPLE = 1_000_000
ROUNDS = 20
ONE_CLUSTER = 20_000  # rows up to which all are compared with all
PER_CLUSTER = 10_000
MOST_CLUSTERS = 50_000
BLOCK = 100_000  # rows read at once
COMPARED = 2_048  # rows compared at once
Indexes = npt.NDArray[np.int64]
Read = Callable[[Indexes], npt.NDArray[np.float16]]  # numbers [m] among the n rows -> normalised float16 [m, D]


def number_of_clusters(rows: int) -> int:
    """Return k for n rows."""
    return 1 if rows <= ONE_CLUSTER else min(MOST_CLUSTERS, math.ceil(rows / PER_CLUSTER))


def semantic_pairs(read: Read, rows: int, cosine: float, clusters: int | None = None) -> tuple[Indexes, Indexes]:
    """Return which of n rows go and for which better row each, as (winners, losers), losers ascending.

    Args:
        read: gives the embeddings of some rows; a row of zeros is near to nothing.
        rows: n, best first.
        cosine: from which on two rows say the same.
        clusters: k, if not by `number_of_clusters`.
    """
    k = number_of_clusters(rows) if clusters is None else min(clusters, max(1, rows))
    cluster = np.zeros(rows, np.int64) if k == 1 else assign(read, rows, fit_centres(read, rows, k))
    order = np.argsort(cluster, kind="stable").astype(np.int64)
    winners, losers = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for members in np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1):
        one, other = _within(read, members, cosine)
        winners.append(one)
        losers.append(other)
    lost, won = np.concatenate(losers), np.concatenate(winners)
    by_row = np.argsort(lost)
    return won[by_row], lost[by_row]


def fit_centres(read: Read, rows: int, k: int) -> torch.Tensor:
    """Return the centres of k clusters, float32 [k, D], from evenly spaced rows (the same for any order of arrival)."""
    taken = np.unique(np.linspace(0, rows - 1, min(rows, SAMPLE)).astype(np.int64))
    sample = torch.from_numpy(read(taken))
    centres = sample[torch.linspace(0, len(sample) - 1, k).long()].float()
    for _ in range(ROUNDS):
        nearest = torch.cat([_nearest(block, centres) for block in sample.split(BLOCK)])
        sums = torch.zeros_like(centres)
        for block, own in zip(sample.split(BLOCK), nearest.split(BLOCK), strict=True):
            sums.index_add_(0, own, block.float())
        length = sums.norm(dim=1, keepdim=True)
        centres = torch.where(length > 0, sums / length.clamp_min(1e-12), centres)  # an empty cluster stays
    return centres


def assign(read: Read, rows: int, centres: torch.Tensor) -> Indexes:
    """Return each row's cluster [n], block by block."""
    found = np.zeros(rows, np.int64)
    for start in range(0, rows, BLOCK):
        own = np.arange(start, min(rows, start + BLOCK))
        found[own] = _nearest(torch.from_numpy(read(own)), centres).numpy()
    return found


def nearest_cosine(block: npt.NDArray[np.float16], others: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """Return the highest cosine of each row [n, D] with any of the others [m, D]; minus infinity where m = 0."""
    best = torch.full((len(block),), -torch.inf)
    mine = torch.from_numpy(block).float()
    for part in torch.from_numpy(others).split(COMPARED):
        best = torch.maximum(best, (mine @ part.float().T).amax(1))
    return best.numpy()


def _nearest(block: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    own = max(1, 50_000_000 // len(centres))  # cosines held at once
    return torch.cat([(part.float() @ centres.T).argmax(1) for part in block.split(own)])


def _within(read: Read, members: Indexes, cosine: float) -> tuple[Indexes, Indexes]:
    """Compare the members of one cluster, best first, with those that stay."""
    stay = np.zeros(0, np.int64)
    staying: list[torch.Tensor] = []
    winners: list[int] = []
    losers: list[int] = []
    for rows in np.array_split(members, max(1, math.ceil(len(members) / COMPARED))):
        block = torch.from_numpy(read(rows)).float()
        best, place = torch.full((len(rows),), -torch.inf), torch.zeros(len(rows), dtype=torch.long)
        first = 0
        for part in staying:
            value, where = (block @ part.T).max(1)
            place = torch.where(value > best, where + first, place)
            best, first = torch.maximum(best, value), first + len(part)
        gone = (best >= cosine).numpy()
        winner_of = np.where(gone, stay[place.numpy()] if len(stay) else -1, -1)
        near = torch.tril(block @ block.T >= cosine, diagonal=-1).numpy()
        for row in np.flatnonzero(near.any(1) & ~gone):
            better = np.flatnonzero(near[row] & ~gone)
            if len(better):
                gone[row], winner_of[row] = True, rows[better[0]]
        winners += winner_of[gone].tolist()
        losers += rows[gone].tolist()
        stay = np.concatenate([stay, rows[~gone]])
        staying.append(block[torch.from_numpy(~gone)])
        staying = [part for part in staying if len(part)]
    return np.array(winners, np.int64), np.array(losers, np.int64)
