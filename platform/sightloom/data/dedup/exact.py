"""Equal rows by one key: the best of each value stays. Here, or for tables too large for one process in buckets.

In buckets: a task reads the columns of some million rows and writes them sorted by bucket, a record batch each; then a
task for each bucket reads its batch of every file: all rows of a key are there, in order, and the same rows go as in
one process.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sightloom import storage
from sightloom.data.dedup.duplicates import Indexes, Mask, codes_of, priorities
from sightloom.data.select.columns import Scored

SLICE_ROWS = 2_000_000  # of one file; a task holds about a gigabyte
BUCKET_ROWS = 2_000_000
READERS = 8
RANKED = ("uid", "width", "height", "src", "src_pos")  # and the preferred score: what `priorities` reads
Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[tuple[Any, Any]]]


@dataclass(frozen=True)
class Slice:
    """Rows `first` and on, of which those of a packed mask are spread over buckets."""

    scored: Scored
    first: int
    among: bytes
    key: str
    prefer: str | None
    buckets: int
    uri: str


@dataclass(frozen=True)
class Bucket:
    """One bucket: its batch of every slice, in order."""

    number: int
    prefer: str | None
    uris: tuple[str, ...]


def equal_rows(codes: Indexes, among: Mask, rank: Indexes) -> tuple[Indexes, Indexes]:
    """Return (rows that go, the best row of the same code for each); -1 is no code."""
    rows = np.flatnonzero(among & (codes >= 0))
    rows = rows[np.lexsort((rank[rows], codes[rows]))]
    if not len(rows):
        return rows, rows
    first = np.concatenate([[True], codes[rows][1:] != codes[rows][:-1]])
    best = rows[np.maximum.accumulate(np.where(first, np.arange(len(rows)), 0))]
    return rows[~first], best[~first]


def equal_rows_in_buckets(
    scored: Scored, key: str, among: Mask, prefer: str | None, run: Run, folder: str
) -> tuple[Indexes, Indexes]:
    """Return what `equal_rows` does, by tasks.

    Args:
        scored: the rows [N].
        key: the column whose equal values make copies; null is none.
        among: the rows [N] that are compared.
        prefer: the score of which the highest stays.
        run: runs a function of many pieces of work, as Ray tasks.
        folder: for the files in between, seen by all nodes; they are deleted.
    """
    count = max(1, -(-int(among.sum()) // BUCKET_ROWS))
    slices = []
    for number, (first, part) in enumerate(scored.parts(SLICE_ROWS)):
        mask = np.packbits(among[first : first + part.num_rows]).tobytes()
        uri = storage.join(folder, f"{key}-{number:05d}.arrow")
        slices.append(Slice(part, first, mask, key, prefer, count, uri))
    try:
        for _ in run(spread, slices):
            pass
        uris = tuple(one.uri for one in slices)
        buckets = (Bucket(number, prefer, uris) for number in range(count))
        found = [pair for _, pair in run(equal_rows_of, buckets)]
    finally:
        for one in slices:
            storage.delete(one.uri)
    lost = np.concatenate([np.zeros((2, 0), np.int64), *found], axis=1)
    lost = lost[:, np.argsort(lost[0], kind="stable")]
    return lost[0], lost[1]


def spread(work: Slice) -> None:
    """Write the rows of a slice, a record batch for each bucket."""
    among = np.unpackbits(np.frombuffer(work.among, np.uint8), count=work.scored.num_rows).astype(np.bool_)
    names = (work.key, *RANKED, *(() if work.prefer is None else (work.prefer,)))
    table = work.scored.read(names, among)
    table = table.append_column("row", pa.array(np.flatnonzero(among) + work.first, pa.int64()))
    table = table.filter(pc.is_valid(table.column(work.key)))
    columns = {"key": pc.cast(table.column(work.key), pa.binary()), "row": table.column("row")}
    table = pa.table(columns | {name: table.column(name) for name in names[1:]}).combine_chunks()
    keys = table.column("key").to_pylist()
    bucket = np.fromiter((zlib.crc32(key) % work.buckets for key in keys), np.int64, len(keys))
    table = table.take(pa.array(np.argsort(bucket, kind="stable")))
    ends = np.cumsum(np.bincount(bucket, minlength=work.buckets))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for number, end in enumerate(ends.tolist()):
            start = int(ends[number - 1]) if number else 0
            rows = table.slice(start, end - start).combine_chunks()
            writer.write_batch(pa.record_batch([_whole(rows, name) for name in rows.column_names], schema=table.schema))
    storage.write(work.uri, sink.getvalue().to_pybytes())


def equal_rows_of(bucket: Bucket) -> Indexes:
    """Return the rows of a bucket that go and the rows that stay for them, int64 [2, L]."""
    with ThreadPoolExecutor(READERS) as pool:
        batches = list(pool.map(lambda uri: _batch(uri, bucket.number), bucket.uris))
    table = pa.Table.from_batches(batches)
    codes = codes_of(table, "key")
    lost, best = equal_rows(codes, np.ones(len(codes), np.bool_), priorities(table, bucket.prefer))
    rows = table.column("row").to_numpy()
    return np.stack([rows[lost], rows[best]])


def _batch(uri: str, number: int) -> pa.RecordBatch:
    with storage.open_read(uri) as file, pa.ipc.open_file(pa.PythonFile(file, "r")) as reader:
        return reader.get_batch(number)


def _whole(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def masks_of(scored: Scored, tests: Sequence[tuple[str, str]]) -> list[Mask]:
    """Return for each (column, value) which rows [N] have that value; the columns are read batch by batch."""
    found = [np.zeros(scored.num_rows, np.bool_) for _ in tests]
    start = 0
    for part in scored.batches([name for name, _ in tests]):
        for mask, (name, value) in zip(found, tests, strict=True):
            same = pc.fill_null(pc.equal(part.column(name), value), False)
            mask[start : start + part.num_rows] = same.to_numpy(zero_copy_only=False)
        start += part.num_rows
    return found
