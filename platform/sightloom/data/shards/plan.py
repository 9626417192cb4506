"""The packing plan: the kept rows in order, cut into shards that hold both caps."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sightloom.data.shards.config import PackConfig
from sightloom.errors import UserMistake

BLOCK = 512
RECORD = 10_240  # a tar's size is a multiple of this
MEMBERS = 3
JSON_BOUND = 320  # uid, names of fields, numbers; addresses and scores come on top
SCORE_BOUND = 72


def plan_shards(kept: pa.Table, config: PackConfig, seed: int, num_scores: int) -> pa.Table:
    """Order the kept rows and give each its shard, place and key.

    Args:
        kept: the kept rows [N] with base columns.
        config: caps and order.
        seed: of the shuffle.
        num_scores: how many scores a sample's JSON carries.

    Returns:
        The rows in tar order with the columns `shard, pos, key, copy, bound_bytes` in front.
    """
    ordered = kept.take(pa.array(_order(kept, config, seed)))
    bounds = _bounds(ordered, num_scores)
    cap = int(config.max_mb * 1e6) - 2 * RECORD
    if len(bounds) and bounds.max() > cap:
        worst = ordered.column("source_key")[int(bounds.argmax())].as_py()
        raise UserMistake(
            f"sample '{worst}' needs up to {bounds.max() / 1e6:.1f} MB, pack.max_mb is {config.max_mb:g}",
            "raise pack.max_mb, or drop such samples by a rule on image_bytes",
        )
    shard = assign(bounds, cap, config.max_samples)
    first = np.searchsorted(shard, np.arange(shard.max() + 1 if len(shard) else 0))
    pos = np.arange(len(shard)) - first[shard] if len(shard) else shard
    copies = _copies(ordered)
    uids = [uid.hex() for uid in ordered.column("uid").to_pylist()]
    keys = [uid if copy == 0 else f"{uid}-{copy}" for uid, copy in zip(uids, copies, strict=True)]
    front = {
        "shard": pa.array(shard, pa.int32()),
        "pos": pa.array(pos, pa.int32()),
        "key": pa.array(keys, pa.string()),
        "copy": pa.array(copies, pa.int16()),
        "bound_bytes": pa.array(bounds, pa.int64()),
    }
    return pa.table({**front, **{name: ordered.column(name) for name in ordered.column_names}})


def shard_slices(planned: pa.Table) -> Iterator[pa.Table]:
    """Yield the rows of each shard of a plan, in order."""
    shard = planned.column("shard").to_numpy()
    borders = np.flatnonzero(np.diff(shard, prepend=-1, append=-1))
    for first, last in itertools.pairwise(borders):
        yield planned.slice(int(first), int(last - first))


def assign(bounds_N: npt.NDArray[np.int64], cap: int, max_samples: int) -> npt.NDArray[np.int64]:
    """Return each sample's shard [N], ascending: as few shards as both caps allow, borders at equal bytes."""
    total = int(bounds_N.sum())
    if not total:
        return np.zeros(0, np.int64)
    middle = np.cumsum(bounds_N) - bounds_N / 2
    shards = max(math.ceil(total / cap), math.ceil(len(bounds_N) / max_samples))
    while True:
        shard = np.minimum((middle * shards / total).astype(np.int64), shards - 1)
        sizes = np.bincount(shard, weights=bounds_N, minlength=shards)
        numbers = np.bincount(shard, minlength=shards)
        if sizes.max() <= cap and numbers.max() <= max_samples:
            return np.unique(shard, return_inverse=True)[1].astype(np.int64)
        shards += 1


def _order(kept: pa.Table, config: PackConfig, seed: int) -> pa.Array:
    addressable = kept.column("src_offset").null_count == 0
    if config.order == "source" or (config.order == "auto" and not addressable):
        return pc.sort_indices(kept, [("src", "ascending"), ("src_pos", "ascending"), ("uid", "ascending")])
    key = seed.to_bytes(8, "big", signed=True)
    draws = [hashlib.blake2b(uid, digest_size=8, key=key).digest() for uid in kept.column("uid").to_pylist()]
    drawn = kept.select(["src", "src_pos"]).append_column("draw", pa.array(draws, pa.binary(8)))
    return pc.sort_indices(drawn, [("draw", "ascending"), ("src", "ascending"), ("src_pos", "ascending")])


def _copies(ordered: pa.Table) -> list[int]:
    """Number equal uids 0, 1, … by (source, position), whatever the order."""
    by_source = pc.sort_indices(ordered, [("src", "ascending"), ("src_pos", "ascending")]).to_pylist()
    uids = ordered.column("uid").to_pylist()
    seen: Counter[bytes] = Counter()
    copies = [0] * len(uids)
    for row in by_source:
        copies[row] = seen[uids[row]]
        seen[uids[row]] += 1
    return copies


def _bounds(ordered: pa.Table, num_scores: int) -> npt.NDArray[np.int64]:
    """Return an upper bound of each sample's bytes in the tar."""
    payload = ordered.column("payload_bytes").to_numpy(zero_copy_only=False)
    extra = JSON_BOUND + SCORE_BOUND * num_scores
    words = [
        len(json.dumps([src, key, domain], ensure_ascii=False).encode("utf-8", "replace"))
        for src, key, domain in zip(
            *(ordered.column(name).to_pylist() for name in ("src", "source_key", "domain")), strict=True
        )
    ]
    return np.asarray(payload + extra + np.asarray(words, np.int64) + MEMBERS * (2 * BLOCK - 1), np.int64)
