"""Near copies of pictures: a sieve on the 64-bit hash, then two finer checks (data.md §10).

The 64-bit hash alone joins different receipts and drawn scenes; the 256-bit hash and the thumbnail tell them apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sightloom.data.dedup.exact import Run

BLOCKS = (11, 11, 11, 11, 10, 10)  # two equal ones of six: any hashes within 4 bits of each other share such a pair
MAX_FINE_BITS = 16
MAX_THUMB = 8
MAX_BUCKET = 1000  # rows of a larger bucket are compared with its best 1,000
CROSS_ROWS = 2_000_000
BUCKET_ROWS = 250_000  # 36 MB of hashes, and at most 64 buckets wait at once
MAX_FLATNESS = 0.98  # empty pictures all look alike to a hash; scanned pages reach 0.95 and are told apart
Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Hashes:
    """The hashes of M pictures, best first: uint64 [M], uint64 [M, 4], int16 [M, 48]."""

    coarse: npt.NDArray[np.uint64]
    fine: npt.NDArray[np.uint64]
    thumb: npt.NDArray[np.int16]

    @classmethod
    def read(cls, table: pa.Table, rows: Indexes) -> Hashes:
        """Take the hash columns of some rows."""
        taken = table.select(["phash", "phash256", "thumb"]).take(pa.array(rows))
        raw = [b"".join(taken.column(name).to_pylist()) for name in ("phash", "phash256", "thumb")]
        coarse = np.frombuffer(raw[0], ">u8").astype(np.uint64)
        fine = np.frombuffer(raw[1], ">u8").astype(np.uint64).reshape(-1, 4)
        return cls(coarse, fine, np.frombuffer(raw[2], np.uint8).astype(np.int16).reshape(-1, 48))

    @classmethod
    def read_mirrored(cls, table: pa.Table, rows: Indexes) -> Hashes:
        """Take the hashes of some rows' mirrored pictures; a thumbnail is mirrored here."""
        taken = table.select(["phash_mirror", "thumb"]).take(pa.array(rows))
        both, thumb = (b"".join(taken.column(name).to_pylist()) for name in ("phash_mirror", "thumb"))
        whole = np.frombuffer(both, ">u8").astype(np.uint64).reshape(-1, 5)
        turned = np.frombuffer(thumb, np.uint8).reshape(-1, 4, 4, 3)[:, :, ::-1]
        return cls(whole[:, 0].copy(), whole[:, 1:].copy(), turned.reshape(-1, 48).astype(np.int16))

    def near(self, one: Indexes, other: Indexes, bits: int, others: Hashes | None = None) -> npt.NDArray[np.bool_]:
        """Tell for index pairs [P] whether both checks call them copies; `other` counts in `others` if given."""
        second = others or self
        result = np.bitwise_count(self.coarse[one] ^ second.coarse[other]) <= bits
        left = np.flatnonzero(result)
        result[left] = np.bitwise_count(self.fine[one[left]] ^ second.fine[other[left]]).sum(1) <= MAX_FINE_BITS
        left = np.flatnonzero(result)
        result[left] = np.abs(self.thumb[one[left]] - second.thumb[other[left]]).max(1, initial=0) <= MAX_THUMB
        return result


def near_pairs(hashes: Hashes, bits: int, run: Run | None = None) -> tuple[Indexes, Indexes]:
    """Return all near pairs as (better, worse), ordered by the better one, then the worse.

    Args:
        hashes: of M pictures, best first.
        bits: of the 64-bit hash.
        run: runs a function of each of many buckets, where it is given; the pairs are the same.
    """
    count = 1 if run is None else max(1, -(-len(hashes.coarse) // BUCKET_ROWS))
    works = buckets(hashes, bits, count)
    found = [pairs for _, pairs in (run or in_turn)(bucket_pairs, works)]
    pairs = np.unique(np.concatenate([np.zeros((0, 2), np.int64), *found]), axis=0)
    return pairs[:, 0], pairs[:, 1]


@dataclass(frozen=True, eq=False)
class Bucket:
    """The pictures of which two blocks of the 64-bit hash fall into one range: all that share a key are in it."""

    hashes: Hashes
    rows: Indexes
    blocks: tuple[int, int]
    bits: int


def in_turn(function: Callable[[Bucket], Any], works: Iterable[Bucket]) -> Iterator[tuple[Bucket, Any]]:
    """Run a function of each bucket here."""
    return ((work, function(work)) for work in works)


def buckets(hashes: Hashes, bits: int, count: int) -> Iterator[Bucket]:
    """Yield the buckets of all pictures, `count` for each two of the six blocks."""
    for first, second in itertools.combinations(range(len(BLOCKS)), 2):
        if count == 1:
            yield Bucket(hashes, np.arange(len(hashes.coarse)), (first, second), bits)
            continue
        range_of = _keys(hashes.coarse, first, second) % np.uint64(count)
        for number in range(count):
            rows = np.flatnonzero(range_of == np.uint64(number))
            yield Bucket(
                Hashes(hashes.coarse[rows], hashes.fine[rows], hashes.thumb[rows]), rows, (first, second), bits
            )


def bucket_pairs(bucket: Bucket) -> Indexes:
    """Return the near pairs among the pictures of a bucket, as (better, worse) rows of the whole [P, 2]."""
    hashes, found = bucket.hashes, [np.zeros((0, 2), np.int64)]
    keys = _keys(hashes.coarse, *bucket.blocks)
    order = np.argsort(keys, kind="stable").astype(np.int64)
    for one, other in _candidates(keys[order], order):
        near = hashes.near(one, other, bucket.bits)
        if near.any():
            found.append(np.stack([np.minimum(one, other)[near], np.maximum(one, other)[near]], 1))
    return bucket.rows[np.concatenate(found)]


def mirrored_pairs(hashes: Hashes, mirrored: Hashes, bits: int, run: Run | None = None) -> tuple[Indexes, Indexes]:
    """Return the near pairs of pictures as they are or one of them mirrored, as `near_pairs`.

    Args:
        hashes: of M pictures, best first.
        mirrored: of the same pictures, mirrored.
        bits: of the 64-bit hash.
        run: as `near_pairs`.
    """

    def mixed(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.stack([one, other], 1).reshape(-1, *one.shape[1:])

    both = Hashes(
        mixed(hashes.coarse, mirrored.coarse), mixed(hashes.fine, mirrored.fine), mixed(hashes.thumb, mirrored.thumb)
    )
    better, worse = near_pairs(both, bits, run)
    pairs = np.stack([better // 2, worse // 2], 1)  # 2r is picture r, 2r + 1 its mirror image: the order stays
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    return pairs[:, 0], pairs[:, 1]


def first_near(hashes: Hashes, others: Hashes, bits: int) -> tuple[Indexes, Indexes]:
    """Return (rows, others): of each picture that is near to any of the others the first such one; by row."""
    nothing = len(others.coarse)
    found = np.full(len(hashes.coarse), nothing, np.int64)
    for first, second in itertools.combinations(range(len(BLOCKS)), 2):
        keys, theirs = _keys(hashes.coarse, first, second), _keys(others.coarse, first, second)
        order = np.argsort(theirs, kind="stable").astype(np.int64)
        low, high = (np.searchsorted(theirs[order], keys, side) for side in ("left", "right"))
        live, step = np.flatnonzero(high > low), 0
        while len(live):
            other = order[low[live] + step]
            near = np.flatnonzero(hashes.near(live, other, bits, others))
            found[live[near]] = np.minimum(found[live[near]], other[near])
            step += 1
            live = live[high[live] - low[live] > step]
    rows = np.flatnonzero(found < nothing)
    return rows, found[rows]


def _keys(hashes: npt.NDArray[np.uint64], first: int, second: int) -> npt.NDArray[np.uint64]:
    return _block(hashes, first) << np.uint64(16) | _block(hashes, second)


def _block(hashes: npt.NDArray[np.uint64], number: int) -> npt.NDArray[np.uint64]:
    shift = np.uint64(sum(BLOCKS[:number]))
    return (hashes >> shift) & np.uint64((1 << BLOCKS[number]) - 1)


def _candidates(keys: npt.NDArray[np.uint64], order: Indexes) -> list[tuple[Indexes, Indexes]]:
    """Return index pairs that share a key; `order` is ascending inside each run of equal keys."""
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
    lengths = np.diff(np.append(starts, len(keys)))
    batches: list[tuple[Indexes, Indexes]] = []
    left = np.repeat(np.where(lengths <= MAX_BUCKET, lengths, 0), lengths)  # rows after this one in its run
    left = left - (np.arange(len(keys)) - np.repeat(starts, lengths))
    live = np.flatnonzero(left > 1)
    step = 1
    while len(live):
        batches.append((order[live], order[live + step]))
        step += 1
        live = live[left[live] > step]
    for start, length in zip(starts, lengths, strict=True):
        if length > MAX_BUCKET:
            run = order[start : start + length]
            for best in np.array_split(run[:MAX_BUCKET], max(1, MAX_BUCKET * int(length) // CROSS_ROWS)):
                one, other = np.repeat(best, length), np.tile(run, len(best))
                batches.append((one[one < other], other[one < other]))
    return batches
