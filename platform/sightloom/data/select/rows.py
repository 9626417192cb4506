"""The rows that a selection reads, table by table, as often as it needs: memory follows one table, not the corpus.

Derived columns and `text_count` are computed as they are read. An expression that looks at all rows (`z`, `quantile`)
is computed once over its own columns, and its values are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sightloom.data.dedup.duplicates import mask_of
from sightloom.data.select.expressions import Expression
from sightloom.data.sources.records import OK

COUNTED = "text_count"  # computed where it is asked for, never stored
MOST = 131_072  # rows worked on at once
Mask = npt.NDArray[np.bool_]
Read = Callable[[Sequence[str]], Iterator[pa.Table]]


@dataclass(frozen=True)
class Batch:
    """Some columns of the rows `start …` [n]; `ok` [n] tells the usable ones, `usable` is how many came before."""

    start: int
    table: pa.Table
    ok: Mask
    usable: int

    def usable_table(self) -> pa.Table:
        """Return the usable rows."""
        return self.table if self.ok.all() else self.table.filter(pa.array(self.ok))


class Rows:
    """All rows [N] of a curation, read again for each question.

    Args:
        read: yields tables of the named stored columns, in order.
        num_rows: N.
        derive: expressions by the name of the column that they give, in the order in which they may use each other.
    """

    def __init__(self, read: Read, num_rows: int, derive: dict[str, Expression]) -> None:
        self.num_rows = num_rows
        self._read = read
        self._derive = derive
        self._whole: dict[str, pa.Array] = {}
        self._texts: dict[bool, tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]] | None = None

    @classmethod
    def of(cls, table: pa.Table, derive: dict[str, Expression], batch: int = 1_000_000) -> Rows:
        """Return the rows of a table at hand, `batch` at a time."""

        def read(names: Sequence[str]) -> Iterator[pa.Table]:
            for start in range(0, max(1, table.num_rows), batch):
                yield table.select(list(names)).slice(start, batch)

        return cls(read, table.num_rows, derive)

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Yield `names` and `status` of all rows, derived columns null where a row is not usable."""
        derived = self._needed(names)
        stored = {"status", *names} | {name for one in derived for name in self._derive[one].columns}
        stored -= set(self._derive)
        if COUNTED in stored:
            stored = (stored - {COUNTED}) | {"text_hash", "kind"}
        start = usable = 0
        for table in _small(self._read(sorted(stored))):
            ok = mask_of(pc.equal(table.column("status"), OK))
            if COUNTED in names or any(COUNTED in self._derive[one].columns for one in derived):
                table = table.append_column(COUNTED, self._counts(table, ok))
            for name in derived:
                batch = Batch(start, table, ok, usable)
                values = self.values(f"derive {name}", self._derive[name], batch, batch.usable_table())
                table = table.append_column(name, _spread(values, ok))
            yield Batch(start, table, ok, usable)
            start += table.num_rows
            usable += int(ok.sum())

    def values(self, key: str, expression: Expression, batch: Batch, usable: pa.Table) -> pa.Array:
        """Return an expression's value for each usable row of a batch; `key` names what is kept of it."""
        if not expression.whole:
            return expression(usable)
        if key not in self._whole:
            parts = [part.usable_table().select(list(expression.columns)) for part in self.batches(expression.columns)]
            self._whole[key] = expression(pa.concat_tables(parts, promote_options="permissive"))
        return self._whole[key].slice(batch.usable, usable.num_rows)

    def _needed(self, names: Sequence[str]) -> list[str]:
        """Return the derived columns that `names` need, in order."""
        needed = set(names)
        for name in reversed(self._derive):
            if name in needed:
                needed |= set(self._derive[name].columns)
        return [name for name in self._derive if name in needed]

    def _counts(self, table: pa.Table, ok: Mask) -> pa.Array:
        """Return how many usable rows of the same sort (pairs, dialogues) have an equal text."""
        if self._texts is None:
            found: dict[bool, list[npt.NDArray[np.uint64]]] = {True: [], False: []}
            for part in self._read(["kind", "status", "text_hash"]):
                usable = mask_of(pc.equal(part.column("status"), OK))
                pairs, hashes = _pairs(part), _hashes(part)
                for sort, own in found.items():
                    own.append(hashes[usable & (pairs == sort)])
            self._texts = {sort: np.unique(np.concatenate(own), return_counts=True) for sort, own in found.items()}
        counts = np.zeros(table.num_rows, np.int32)
        pairs, hashes = _pairs(table), _hashes(table)
        for sort, (known, number) in self._texts.items():
            rows = np.flatnonzero(ok & (pairs == sort))
            counts[rows] = number[np.searchsorted(known, hashes[rows])] if len(rows) else 0
        return pa.array(counts, pa.int32(), mask=~ok)


def _small(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same rows in tables of at most `MOST`; an empty table is one, for its columns."""
    for table in tables:
        for start in range(0, max(1, table.num_rows), MOST):
            yield table.slice(start, MOST)


def _pairs(table: pa.Table) -> Mask:
    return mask_of(pc.equal(table.column("kind"), "pair"))


def _hashes(table: pa.Table) -> npt.NDArray[np.uint64]:
    values = pc.fill_null(table.column("text_hash"), pa.scalar(0, pa.uint64()))
    return np.asarray(values.to_numpy(zero_copy_only=False), np.uint64)


def _spread(values: pa.Array, ok: Mask) -> pa.Array:
    """Put the values of usable rows in their places, null elsewhere."""
    if ok.all():
        return values
    place = np.cumsum(ok) - 1
    return values.take(pa.array(np.where(ok, place, 0), mask=~ok))
