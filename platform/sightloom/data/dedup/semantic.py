"""Pictures that say the same, by the cosine of their embeddings: k-means first, then all against all inside clusters.

The embeddings are copied once, best row first, to a file on the local disk; all that follows reads that file alone, so
that neither the arrival of rows nor their chunks matter. Two rows of different clusters are not compared. Source:
SemDeDup (Abbas et al. 2023, arXiv 2303.09540), where which row stays depends on the cluster; here it is the better one.

Shapes: N rows, D features, K clusters, M rows of one cluster, B rows of a block.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sightloom.data.embeddings import Embeddings
from sightloom.later import Later
from sightloom.storage.addresses import explained

if TYPE_CHECKING:
    import torch
else:
    torch = Later("torch")

ONE_CLUSTER = 20_000  # up to so many rows all are compared with all
CLUSTER_ROWS = 10_000
MAX_CLUSTERS = 50_000
MAX_SAMPLE = 1_000_000
SAMPLE_PER_CLUSTER = 256  # more rows a cluster move its centre hardly (as FAISS limits them)
ROUNDS = 20
ASSIGNED = 8_192  # rows whose cosines with all centres are held at once
BLOCK = 2_048
ROUNDING = 1e-6  # fp32 sums of 512 products; float16 storage alone is off by up to 5e-4
Indexes = npt.NDArray[np.int64]


def find_alike(stored: Embeddings, rows: Indexes, cosine: float) -> tuple[Indexes, Indexes]:
    """Return (rows that go, the row that stays for each), by row; a row goes at >= `cosine` to one that stays.

    Args:
        stored: embeddings of all rows.
        rows: the rows to compare, the best first; those without an embedding (all zeros) are left out.
        cosine: of the rows' embeddings.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lost: list[Indexes] = []
    for_them: list[Indexes] = []
    with tempfile.TemporaryDirectory(prefix="sightloom-semantic-") as scratch, explained(scratch):
        vectors_ND, kept = _best_first(stored, rows, Path(scratch) / "vectors")
        for members in _clusters(vectors_ND, device):
            winner = _greedy(unit(vectors_ND[members], device), cosine)
            worse = np.flatnonzero(winner >= 0)
            lost.append(kept[members[worse]])
            for_them.append(kept[members[winner[worse]]])
    gone, stays = np.concatenate([np.zeros(0, np.int64), *lost]), np.concatenate([np.zeros(0, np.int64), *for_them])
    order = np.argsort(gone)
    return gone[order], stays[order]


def _best_first(stored: Embeddings, rows: Indexes, file: Path) -> tuple[npt.NDArray[np.float16], Indexes]:
    """Copy the embeddings of some rows to a file in their order; return them and which rows have one."""
    dim = stored.dim
    if not len(rows) or not dim:
        return np.zeros((0, dim), np.float16), np.zeros(0, np.int64)
    with file.open("wb") as reserved:  # a full disk is an error here, not a signal where it is written
        os.posix_fallocate(reserved.fileno(), 0, 2 * len(rows) * dim)
    vectors_ND = np.memmap(file, np.float16, "r+", shape=(len(rows), dim))
    place = np.full(stored.num_rows, -1, np.int64)
    place[rows] = np.arange(len(rows))
    scored = np.zeros(len(rows), np.bool_)
    for start, part in stored.batches():
        own = place[start : start + len(part)]
        wanted = np.flatnonzero(own >= 0)
        vectors_ND[own[wanted]] = part[wanted]
        scored[own[wanted]] = part[wanted].any(1)
    kept = np.flatnonzero(scored)
    if len(kept) < len(rows):
        for start in range(0, len(kept), ASSIGNED):  # close the gaps: no row moves up past one that is read later
            places = kept[start : start + ASSIGNED]
            vectors_ND[start : start + len(places)] = vectors_ND[places]
    return vectors_ND[: len(kept)], rows[kept]


def unit(part_BD: npt.NDArray[np.float16], device: torch.device) -> torch.Tensor:
    """Return rows at length 1 in float32: float16 leaves it off by up to 5e-4."""
    return torch.nn.functional.normalize(torch.from_numpy(np.array(part_BD, np.float32)).to(device), dim=1)


def _clusters(vectors_ND: npt.NDArray[np.float16], device: torch.device) -> Iterator[Indexes]:
    """Yield the rows of each cluster, ascending."""
    size = len(vectors_ND)
    if size <= ONE_CLUSTER:
        yield np.arange(size)
        return
    centres_KD = cluster_centres(vectors_ND, min(MAX_CLUSTERS, -(-size // CLUSTER_ROWS)), device)
    nearest = np.empty(size, np.int32)
    for start in range(0, size, ASSIGNED):
        part_BD = unit(vectors_ND[start : start + ASSIGNED], device)
        nearest[start : start + len(part_BD)] = (part_BD @ centres_KD.T).argmax(1).cpu().numpy()
    order = np.argsort(nearest, kind="stable").astype(np.int64)
    borders = np.flatnonzero(np.diff(nearest[order])) + 1
    yield from np.split(order, borders)


def cluster_centres(vectors_ND: npt.NDArray[np.float16], count: int, device: torch.device) -> torch.Tensor:
    """Return the centres of spherical k-means on a drawn sample, float32 [K, D] of length 1; the draw is seeded."""
    draw = np.random.default_rng(0)
    drawn = draw.permutation(len(vectors_ND))[: min(MAX_SAMPLE, SAMPLE_PER_CLUSTER * count)]
    sample_SD = np.array(vectors_ND[np.sort(drawn)])
    first = np.sort(draw.permutation(len(sample_SD))[:count])
    centres_KD = unit(sample_SD[first], device)
    for _ in range(ROUNDS):
        sums_KD = torch.zeros_like(centres_KD)
        for start in range(0, len(sample_SD), ASSIGNED):
            part_BD = unit(sample_SD[start : start + ASSIGNED], device)
            sums_KD.index_add_(0, (part_BD @ centres_KD.T).argmax(1), part_BD)
        moved = sums_KD.norm(dim=1) > 0
        centres_KD[moved] = torch.nn.functional.normalize(sums_KD[moved], dim=1)
    return centres_KD


def _greedy(unit_MD: torch.Tensor, cosine: float) -> Indexes:
    """Return for each row, best first, the best row that stays and is as near as `cosine`; -1 where it stays itself."""
    least = cosine - ROUNDING
    winner = np.full(len(unit_MD), -1, np.int64)
    for start in range(0, len(unit_MD), BLOCK):
        block_BD = unit_MD[start : start + BLOCK]
        own = winner[start : start + BLOCK]  # a view
        stayed = np.flatnonzero(winner[:start] < 0)
        for at in range(0, len(stayed), BLOCK):
            part = stayed[at : at + BLOCK]
            near = (block_BD @ unit_MD[torch.from_numpy(part).to(unit_MD.device)].T >= least).cpu().numpy()
            new = np.flatnonzero(near.any(1) & (own < 0))
            own[new] = part[near[new].argmax(1)]
        near = np.tril((block_BD @ block_BD.T >= least).cpu().numpy(), -1)
        for row in np.flatnonzero(near.any(1) & (own < 0)):
            stays = np.flatnonzero(near[row] & (own < 0))
            if len(stays):
                own[row] = start + stays[0]
    return winner
