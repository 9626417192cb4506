"""The decision as files: parts of a million rows, the kept uids in DataComp's form, a summary written last."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sightloom import storage
from sightloom.config import canonical_json
from sightloom.data.dedup.duplicates import uid_halves
from sightloom.data.ledger import parquet_bytes
from sightloom.data.segments import SEGMENT_ROWS
from sightloom.data.select.decision import Cut, Decision
from sightloom.data.select.rows import Rows


def write_decision(
    out: str, fingerprint: str, rows: Rows, decision: Decision, derived: Sequence[str], per_part: int = SEGMENT_ROWS
) -> None:
    """Write the decision part by part, the kept uids in DataComp's form, and last the summary.

    Args:
        out: the curation's folder.
        fingerprint: of the selection.
        rows: all rows [N], read once.
        decision: about the same rows.
        derived: names of the derived columns, which are stored beside the decision.
        per_part: rows of a part.
    """
    folder = storage.join(out, "select", fingerprint)
    names = ["uid", "domain", *derived]
    tables = (batch.table.select(names) for batch in rows.batches(names))
    kept: list[npt.NDArray[np.uint64]] = []
    for number, (first, part) in enumerate(_cut(tables, per_part)):
        own = slice(first, first + part.num_rows)
        columns = {
            "uid": part.column("uid"),
            "keep": pa.array(decision.keep[own]),
            "reason": _reasons(decision, own),
            "fails": pa.array(decision.fails[own].astype(np.uint64)),
            "copies": pa.array(decision.copies[own]),
            "domain": part.column("domain"),
            **{name: part.column(name) for name in derived},
        }
        data = parquet_bytes(pa.table(columns))
        storage.write(storage.join(folder, "decision.parquet", f"part-{number:05d}.parquet"), data)
        high, low = uid_halves(part.column("uid"))
        kept.append(np.stack([high, low], 1)[decision.keep[own]])
    storage.write(storage.join(folder, "subset.npy"), subset_bytes(np.concatenate(kept)))
    summary = {
        "rows_in": rows.num_rows,
        "kept": int(decision.keep.sum()),
        "dropped": decision.dropped,
        "failed": decision.failed,
        "names": list(decision.names),
        "alone": decision.alone,
        "cuts": list(decision.cuts),
    }
    storage.create(storage.join(folder, "summary.json"), canonical_json(summary))


def subset_bytes(halves: npt.NDArray[np.uint64]) -> bytes:
    """Return uids [n, 2] as DataComp's subset file: a .npy of `u8,u8`, sorted."""
    pairs = np.ascontiguousarray(halves).view([("f0", "<u8"), ("f1", "<u8")]).reshape(-1)
    buffer = io.BytesIO()
    np.save(buffer, pairs[np.lexsort((halves[:, 1], halves[:, 0]))])
    return buffer.getvalue()


def _reasons(decision: Decision, rows: slice) -> pa.Array:
    """Return the reasons of some rows as strings, null where a row stays."""
    codes = decision.codes[rows].astype(np.int32)
    names = pa.array([None, *decision.names], pa.string())
    return names.take(pa.array(codes))


def _cut(tables: Iterator[pa.Table], rows: int) -> Iterator[tuple[int, pa.Table]]:
    """Cut tables anew into parts of so many rows (the last one has fewer), each with its first row's number."""
    first, held = 0, []
    size = 0
    for table in tables:
        held.append(table)
        size += table.num_rows
        while size >= rows:
            whole = pa.concat_tables(held)
            yield first, whole.slice(0, rows)
            first, size, held = first + rows, size - rows, [whole.slice(rows)]
    if size or not first:
        yield first, pa.concat_tables(held)


def read_decision(out: str, fingerprint: str) -> Decision | None:
    """Return the decision as it was written; None where that was not done."""
    folder = storage.join(out, "select", fingerprint)
    if not storage.exists(storage.join(folder, "summary.json")):
        return None
    summary = storage.read_json(storage.join(folder, "summary.json"))
    names = summary["names"]
    codes = np.zeros(summary["rows_in"], np.uint16)
    fails = np.zeros(len(codes), np.min_scalar_type((1 << len(summary["alone"])) - 1))
    copies = np.zeros(len(codes), np.int16)
    for number, (first, last) in enumerate(parts_of(len(codes))):
        table = _read_part(storage.join(folder, "decision.parquet"), number, ["reason", "fails", "copies"])
        found = pc.index_in(table.column("reason"), value_set=pa.array(names, pa.string()))
        codes[first:last] = pc.fill_null(found, -1).to_numpy() + 1
        fails[first:last] = table.column("fails").to_numpy()
        copies[first:last] = table.column("copies").to_numpy()
    cuts = tuple(Cut(**cut) for cut in summary["cuts"])
    return Decision(codes, tuple(names), fails, copies, cuts, summary["alone"])


def read_derived(out: str, fingerprint: str, rows: int, names: Sequence[str]) -> pa.Table:
    """Return derived columns of all rows, as the decision keeps them."""
    return read_parts(storage.join(out, "select", fingerprint, "decision.parquet"), rows, list(names))


def parts_of(rows: int) -> list[tuple[int, int]]:
    """Cut N rows into parts of a million."""
    return [(first, min(rows, first + SEGMENT_ROWS)) for first in range(0, max(1, rows), SEGMENT_ROWS)]


def read_parts(folder: str, rows: int, columns: list[str] | None = None) -> pa.Table:
    """Return all parts of a folder as one table [N]."""
    return pa.concat_tables([_read_part(folder, number, columns) for number in range(len(parts_of(rows)))])


def _read_part(folder: str, number: int, columns: list[str] | None = None) -> pa.Table:
    with storage.open_read(storage.join(folder, f"part-{number:05d}.parquet")) as file:
        return pq.ParquetFile(file).read(columns=columns)
