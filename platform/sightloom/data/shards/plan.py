"""The packing plan: the kept rows in order, in series, cut into shards that hold both caps."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sightloom.data.shards.config import PackConfig
from sightloom.data.shards.cutting import assign
from sightloom.data.shards.series import series_of
from sightloom.data.shards.sizes import RECORD, upper_bounds, usual_sizes, words_of
from sightloom.errors import UserMistake


def plan_shards(kept: pa.Table, config: PackConfig, seed: int, num_scores: int) -> pa.Table:
    """Order the kept rows and give each its series, shard, place and key.

    Args:
        kept: the kept rows [N] with base columns, and the column `config.group_by` if one is named.
        config: caps, order and series.
        seed: of the shuffle.
        num_scores: how many scores a sample's JSON carries.

    Returns:
        The rows in tar order with the columns `shard, pos, key, copy, bound_bytes, series` in front; `shard` counts
        over all series, `series` is null where there is only one.

    Raises:
        UserMistake: a sample is over the cap by itself, a value of `group_by` names no series of its own, or a series
            has fewer samples than the shards that it must have.
    """
    ordered = kept.take(pa.array(_order(kept, config, seed)))
    series = series_of(ordered, config.group_by)
    if config.group_by is not None:
        in_series = pc.sort_indices(pa.table({"s": series, "n": np.arange(len(series))}),
                                    [("s", "ascending"), ("n", "ascending")])  # fmt: skip
        ordered, series = ordered.take(in_series), series.take(in_series)
    words = words_of(ordered)
    bounds, sizes = upper_bounds(ordered, num_scores, words), usual_sizes(ordered, num_scores, words)
    cap = int(config.max_mb * 1e6) - 2 * RECORD
    if len(bounds) and bounds.max() > cap:
        worst = int(bounds.argmax())
        raise UserMistake(
            f"sample '{ordered.column('source_key')[worst].as_py()}' of '{ordered.column('src')[worst].as_py()}' needs "
            f"up to {bounds[worst] / 1e6:.3g} MB, pack.max_mb is {config.max_mb:g}",
            "raise pack.max_mb, or drop such samples by a rule on image_bytes",
        )
    shard = np.zeros(len(bounds), np.int64)
    made = 0
    for first, last in _runs(series):
        rows = slice(first, last)
        weights = sizes[rows] if config.equal == "bytes" else np.ones(last - first, np.int64)
        cut = assign(bounds[rows], weights, cap, config.max_samples, config.multiple_of, series[first].as_py())
        shard[rows] = made + cut
        made += int(cut[-1]) + 1
    copies = _copies(ordered)
    uids = [uid.hex() for uid in ordered.column("uid").to_pylist()]
    keys = [uid if copy == 0 else f"{uid}-{copy}" for uid, copy in zip(uids, copies, strict=True)]
    front = {
        "shard": pa.array(shard, pa.int32()),
        "pos": pa.array(np.arange(len(shard)) - np.searchsorted(shard, shard), pa.int32()),
        "key": pa.array(keys, pa.string()),
        "copy": pa.array(copies, pa.int16()),
        "bound_bytes": pa.array(bounds, pa.int64()),
        "series": series,
    }
    return pa.table({**front, **{name: ordered.column(name) for name in ordered.column_names}})


def shard_slices(planned: pa.Table, name: str) -> Iterator[tuple[str, pa.Table]]:
    """Yield each shard of a plan, in order: its name (`<name>[-<series>]-000000`) and its rows."""
    shard = planned.column("shard").to_numpy()
    borders = np.flatnonzero(np.diff(shard, prepend=-1, append=-1))
    numbers = Counter[str]()
    for first, last in itertools.pairwise(borders):
        series = planned.column("series")[int(first)].as_py()
        prefix = name if series is None else f"{name}-{series}"
        yield f"{prefix}-{numbers[prefix]:06d}", planned.slice(int(first), int(last - first))
        numbers[prefix] += 1


def _runs(series: pa.Array) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of each run of one series."""
    if len(series):
        ends = pc.run_end_encode(series).run_ends.to_pylist()
        yield from itertools.pairwise([0, *ends])


def _order(kept: pa.Table, config: PackConfig, seed: int) -> pa.Array:
    addressable = kept.column("src_offset").null_count == 0
    if config.order == "source" or (config.order == "auto" and not addressable):
        return pc.sort_indices(kept, [("src", "ascending"), ("src_pos", "ascending"), ("uid", "ascending")])
    key = seed.to_bytes(8, "big", signed=True)
    draws = [hashlib.blake2b(uid, digest_size=8, key=key).digest() for uid in kept.column("uid").to_pylist()]
    drawn = kept.select(["src", "src_pos"]).append_column("draw", pa.array(draws, pa.binary(8)))
    return pc.sort_indices(drawn, [("draw", "ascending"), ("src", "ascending"), ("src_pos", "ascending")])


def _copies(ordered: pa.Table) -> npt.NDArray[np.int64]:
    """Number equal uids 0, 1, … by (source, position), whatever the order."""
    by_source = pc.sort_indices(ordered, [("src", "ascending"), ("src_pos", "ascending")]).to_pylist()
    uids = ordered.column("uid").to_pylist()
    seen: Counter[bytes] = Counter()
    copies = np.zeros(len(uids), np.int64)
    for row in by_source:
        copies[row] = seen[uids[row]]
        seen[uids[row]] += 1
    return copies
