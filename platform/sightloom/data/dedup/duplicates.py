"""The losers among all rows: what stays in their place and why they go; and reading columns as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sightloom.errors import UserMistake

Mask = npt.NDArray[np.bool_]
Indexes = npt.NDArray[np.int64]
SCHEMA = pa.schema([("row", pa.int64()), ("method", pa.string()), ("reason", pa.string()), ("of", pa.binary(16))])


METHODS = {"dup_pair": "exact", "dup_image": "exact", "dup_near": "perceptual", "dup_semantic": "semantic"}
OUTSIDE = -1  # as a winner: what the row matches is in no row of this corpus
OVERLAP = "eval_overlap_"  # begins the reason of a row that an evaluation set holds


@dataclass(frozen=True)
class Duplicates:
    """The losers: row, the reason, and the row that stays in its place.

    A row that an evaluation set holds has no such row (`OUTSIDE`); `outside` says by which method it was found, and the
    uid that it matches there.
    """

    rows: Indexes
    reasons: tuple[str, ...]
    winners: Indexes
    outside: Mapping[int, tuple[str, bytes]] = field(default_factory=dict)

    def coded(self, first: int, last: int) -> tuple[Indexes, tuple[str, ...], Indexes]:
        """Return the losers among the rows `first` to `last`: rows, the reasons there are, and each row's number."""
        low, high = np.searchsorted(self.rows, [first, last])
        encoded = pa.array(self.reasons[low:high], pa.string()).dictionary_encode()
        return self.rows[low:high], tuple(encoded.dictionary.to_pylist()), encoded.indices.to_numpy().astype(np.int64)

    def table(self, uids: pa.Array) -> pa.Table:
        """Return the losers as the table that is stored, by row."""
        inside = uids.take(pa.array(np.maximum(self.winners, 0))).to_pylist()
        facts = [
            self.outside[row] if row in self.outside else (METHODS[reason], uid)
            for row, reason, uid in zip(self.rows.tolist(), self.reasons, inside, strict=True)
        ]
        columns = [self.rows, [method for method, _ in facts], list(self.reasons), [uid for _, uid in facts]]
        arrays = [pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)]
        return pa.Table.from_arrays(arrays, schema=SCHEMA)


class Losers:
    """What is found so far about rows [N]: who still stands, and of the others who stays for them and why."""

    def __init__(self, alive: Mask) -> None:
        self.alive = alive
        self._winner = np.full(len(alive), OUTSIDE, np.int64)
        self._reason = np.zeros(len(alive), np.int16)
        self._names = [""]
        self._outside: dict[int, tuple[str, bytes]] = {}

    def drop(self, rows: Indexes, winners: Indexes, reason: str) -> None:
        """Let rows go, each for a row that stays."""
        self._mark(rows, reason)
        self._winner[rows] = winners

    def drop_overlaps(self, found: Mapping[int, tuple[str, bytes]], name: str) -> None:
        """Let rows go that an evaluation set holds: row -> (method, the uid there)."""
        self._mark(np.fromiter(found, np.int64, len(found)), OVERLAP + name)
        self._outside |= found

    def _mark(self, rows: Indexes, reason: str) -> None:
        if len(rows):
            self.alive[rows] = False
            self._names += [reason] if reason not in self._names else []
            self._reason[rows] = self._names.index(reason)

    def found(self) -> Duplicates:
        """Return the losers, by row."""
        rows = np.flatnonzero(self._reason)
        reasons = tuple(self._names[code] for code in self._reason[rows])
        return Duplicates(rows, reasons, self._winner[rows], self._outside)


def priorities(table: pa.Table, prefer: str | None) -> Indexes:
    """Return each row's place [N] in the order of preference: `prefer`, area, uid, source, position."""
    if prefer is not None and prefer not in table.column_names:
        scores = [name for name in table.column_names if name.startswith("clip_")]
        raise UserMistake(f"dedup.prefer names no column '{prefer}'", f"scores: {', '.join(scores) or 'none'}")
    size = table.num_rows
    score = np.zeros(size) if prefer is None else numbers(table, prefer)
    area = numbers(table, "width") * numbers(table, "height")
    high, low = uid_halves(table.column("uid"))
    source = codes_of(table, "src")
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


def codes_of(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    """Number the distinct values of a column in sorted order; null is -1."""
    column = table.column(name).combine_chunks()
    distinct = pc.unique(column).drop_null()
    distinct = distinct.take(pc.array_sort_indices(distinct))
    return pc.fill_null(pc.index_in(column, value_set=distinct), -1).to_numpy(zero_copy_only=False).astype(np.int64)


def counts(reasons: Sequence[str]) -> dict[str, int]:
    """Count the reasons, by name."""
    return {reason: list(reasons).count(reason) for reason in sorted(set(reasons))}
