"""Which rows are copies of which: exact and perceptual, by priority, so that neither arrival nor retries matter.

In order of priority a row goes if it matches one that stays (no chains). Pictures are compared among pairs only:
several questions share a picture on purpose. Records are duplicates only of equal records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sightloom.data.dedup.config import DedupConfig
from sightloom.data.dedup.perceptual import MAX_FLATNESS, Hashes, near_pairs
from sightloom.errors import UserMistake

Mask = npt.NDArray[np.bool_]
Indexes = npt.NDArray[np.int64]
SCHEMA = pa.schema([("row", pa.int64()), ("method", pa.string()), ("reason", pa.string()), ("of", pa.binary(16))])
OVERLAP = ["text", "sha256", "flatness", "phash", "phash256", "thumb"]  # what evaluation sets are compared by
METHODS = {"dup_pair": "exact", "dup_image": "exact", "dup_near": "perceptual", "dup_semantic": "semantic"}


@dataclass(frozen=True)
class Duplicates:
    """The losers: row, ascending, the reason, and the row that stays in its place (-1: one of an evaluation set)."""

    rows: Indexes
    reasons: tuple[str, ...]
    winners: Indexes

    def joined(self, rows: Indexes, reasons: tuple[str, ...], winners: Indexes) -> Duplicates:
        """Return these losers and others together."""
        every = np.concatenate([self.rows, rows])
        order = np.argsort(every)
        names = (*self.reasons, *reasons)
        return Duplicates(every[order], tuple(names[place] for place in order),
                          np.concatenate([self.winners, winners])[order])  # fmt: skip

    def coded(self, first: int, last: int) -> tuple[Indexes, tuple[str, ...], Indexes]:
        """Return the losers among the rows `first` to `last`: rows, the reasons there are, and each row's number."""
        low, high = np.searchsorted(self.rows, [first, last])
        encoded = pa.array(self.reasons[low:high], pa.string()).dictionary_encode()
        return self.rows[low:high], tuple(encoded.dictionary.to_pylist()), encoded.indices.to_numpy().astype(np.int64)

    def table(self, uids: pa.Array) -> pa.Table:
        """Return the losers as the table that is stored, by row."""
        methods = [METHODS.get(reason, "overlap") for reason in self.reasons]
        columns = [self.rows, methods, list(self.reasons), uids.take(pa.array(self.winners, mask=self.winners < 0))]
        return pa.Table.from_arrays([pa.array(c) for c in columns], schema=SCHEMA)


def find_duplicates(table: pa.Table, config: DedupConfig, among: Mask | None = None) -> Duplicates:
    """Find the exact and near duplicates among rows [N] with status ok, and true in `among` [N] if it is given."""
    ok = mask_of(pc.equal(table.column("status"), "ok"))
    ok = ok if among is None else ok & among
    pairs = mask_of(pc.equal(table.column("kind"), "pair"))
    rank = priorities(table, config.prefer)
    winner_of = np.full(table.num_rows, -1, np.int64)
    reason_of = np.full(table.num_rows, "", dtype=object)
    alive = ok.copy()
    if config.exact:
        _exact(_codes(table, "uid"), alive, rank, "dup_pair", winner_of, reason_of)
        alive &= winner_of < 0
        _exact(_codes(table, "sha256"), alive & pairs, rank, "dup_image", winner_of, reason_of)
        alive &= winner_of < 0
    if config.perceptual is not None:
        chosen = np.flatnonzero(alive & pairs & (numbers(table, "flatness") <= MAX_FLATNESS))
        _near(table, chosen, rank, config.perceptual.bits, winner_of, reason_of)
    rows = np.flatnonzero(winner_of >= 0)
    return Duplicates(rows, tuple(str(reason_of[row]) for row in rows), winner_of[rows])


def columns_needed(config: DedupConfig) -> tuple[str, ...]:
    """Return the columns that `find_duplicates` reads."""
    names = ["uid", "status", "kind", "src", "src_pos", "width", "height"]
    names += ["sha256"] if config.exact else []
    names += ["flatness", "phash", "phash256", "thumb"] if config.perceptual is not None else []
    names += OVERLAP if config.decontaminate else []
    names += [config.prefer] if config.prefer is not None else []
    return tuple(dict.fromkeys(names))


def priorities(table: pa.Table, prefer: str | None) -> Indexes:
    """Return each row's place [N] in the order of preference: `prefer`, area, uid, source, position."""
    if prefer is not None and prefer not in table.column_names:
        scores = [name for name in table.column_names if name.startswith("clip_")]
        raise UserMistake(f"dedup.prefer names no column '{prefer}'", f"scores: {', '.join(scores) or 'none'}")
    size = table.num_rows
    score = np.zeros(size) if prefer is None else numbers(table, prefer)
    area = numbers(table, "width") * numbers(table, "height")
    high, low = uid_halves(table.column("uid"))
    source = _codes(table, "src")
    position = numbers(table, "src_pos")
    order = np.lexsort((position, source, low, high, -area, -score))
    rank = np.empty(size, np.int64)
    rank[order] = np.arange(size)
    return rank


def mask_of(values: pa.ChunkedArray | pa.Array) -> Mask:
    """Return a boolean column [N] as numpy, nulls as false, also where there are no rows."""
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), dtype=np.bool_)


def numbers(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    """Return a column as float64 [N], nulls and NaN as minus infinity."""
    values = pc.fill_null(pc.cast(table.column(name), pa.float64()), -np.inf).to_numpy(zero_copy_only=False)
    return np.where(np.isnan(values), -np.inf, values)


def uid_halves(uids: pa.ChunkedArray | pa.Array) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return the uids [N] as two big-endian 64-bit halves, so that numbers sort as the bytes do."""
    whole = uids.combine_chunks() if isinstance(uids, pa.ChunkedArray) else uids
    raw = np.frombuffer(whole.buffers()[1], dtype=">u8", count=2 * (whole.offset + len(whole)))[2 * whole.offset :]
    return raw[0::2].astype(np.uint64), raw[1::2].astype(np.uint64)


def _codes(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    """Number the distinct values of a column in sorted order; null is -1."""
    column = table.column(name).combine_chunks()
    distinct = pc.unique(column).drop_null()
    distinct = distinct.take(pc.array_sort_indices(distinct))
    return pc.fill_null(pc.index_in(column, value_set=distinct), -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _exact(
    codes: npt.NDArray[np.int64], among: Mask, rank: Indexes, reason: str, winner_of: Indexes, reason_of: object
) -> None:
    """Let only the best row of each code stay."""
    rows = np.flatnonzero(among & (codes >= 0))
    rows = rows[np.lexsort((rank[rows], codes[rows]))]
    if not len(rows):
        return
    first = np.concatenate([[True], codes[rows][1:] != codes[rows][:-1]])
    best = rows[np.maximum.accumulate(np.where(first, np.arange(len(rows)), 0))]
    losers = rows[~first]
    winner_of[losers] = best[~first]
    reason_of[losers] = reason  # type: ignore[index]


def _near(table: pa.Table, rows: Indexes, rank: Indexes, bits: int, winner_of: Indexes, reason_of: object) -> None:
    """Let a picture go that is near to a better one that stays."""
    rows = rows[np.argsort(rank[rows])]
    hashes = Hashes.read(table, rows)
    better, worse = near_pairs(hashes, bits)
    for one, other in zip(better, worse, strict=True):
        winner, loser = rows[one], rows[other]
        if winner_of[winner] < 0 and winner_of[loser] < 0:
            winner_of[loser] = winner
            reason_of[loser] = "dup_near"  # type: ignore[index]


def counts(reasons: Sequence[str]) -> dict[str, int]:
    """Count the reasons, by name."""
    return {reason: list(reasons).count(reason) for reason in sorted(set(reasons))}
