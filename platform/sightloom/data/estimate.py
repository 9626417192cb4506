"""How many rows files hold before they are read: counted where a footer or a captions file says so, else from bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sightloom.data.scoring import Job
from sightloom.data.sources import folder, parquet, webdataset
from sightloom.data.sources.chunks import SourceFile

ROW_BYTES = 100_000  # of a raw record, where no tar could be looked into
FOOTERS = 512  # parquet files whose footers are read; the rest are taken to be alike
PEEKS = 4  # tars whose first records are measured
READERS = 16


@dataclass(frozen=True)
class Estimate:
    """Rows of each file by its id, and how they are known.

    `row_bytes` is what one record of the tars (of all files, where there are none) takes; `row_bytes_assumed` says that
    this is a guess; `exact` that every row was counted.
    """

    rows: Mapping[str, int]
    row_bytes: float
    row_bytes_assumed: bool
    exact: bool


def estimate_rows(files: Sequence[SourceFile], known: Mapping[str, int]) -> Estimate:
    """Count or estimate the rows of files; nothing but footers, captions and the beginnings of a few tars is read.

    Args:
        files: of any kinds.
        known: rows of the files that are scored, by id.
    """
    rows = {file.file_id: known[file.file_id] for file in files if file.file_id in known}
    listed = [file for file in files if file.kind != "webdataset" and file.file_id not in rows]
    read = listed[:: max(1, math.ceil(len(listed) / FOOTERS))]
    with ThreadPoolExecutor(READERS) as pool:
        rows |= dict(zip((file.file_id for file in read), pool.map(_counted, read), strict=True))
    alike = _bytes_a_row(read, rows) or float(ROW_BYTES)
    rows |= {file.file_id: _from_bytes(file, alike) for file in listed if file.file_id not in rows}

    tars = [file for file in files if file.kind == "webdataset"]
    row_bytes, assumed = _bytes_a_row([file for file in tars if file.file_id in rows], rows), False
    if tars and not row_bytes:
        row_bytes = _peeked(tars) or 0.0
        row_bytes, assumed = (row_bytes, False) if row_bytes else (float(ROW_BYTES), True)
    guessed = [file for file in tars if file.file_id not in rows]
    rows |= {file.file_id: _from_bytes(file, row_bytes) for file in guessed}
    if not tars:
        row_bytes = sum(file.size for file in files) / max(1, sum(rows.values()))
    return Estimate(rows, row_bytes, assumed, not guessed and len(read) == len(listed))


def rows_left(waiting: Sequence[Job], found: Estimate) -> int:
    """Return about how many rows of unfinished files are still to be scored."""
    return sum(max(0, found.rows[job.file.file_id] - len(job.done_everywhere) * job.file.chunk_rows) for job in waiting)


def _counted(file: SourceFile) -> int:
    if file.kind == "parquet":
        return sum(rows for _, _, rows in parquet.chunk_layout(file.uri, file.chunk_rows))
    return folder.count_rows(file.uri)


def _bytes_a_row(files: Sequence[SourceFile], rows: Mapping[str, int]) -> float:
    return sum(file.size for file in files) / max(1, sum(rows[file.file_id] for file in files))


def _from_bytes(file: SourceFile, row_bytes: float) -> int:
    return max(1, math.ceil(file.size / row_bytes))


def _peeked(tars: Sequence[SourceFile]) -> float | None:
    plain = [file for file in tars if file.uri.endswith(".tar")]
    chosen = plain[:: max(1, math.ceil(len(plain) / PEEKS))]
    with ThreadPoolExecutor(READERS) as pool:
        found = [size for size in pool.map(lambda file: webdataset.peek(file.uri), chosen) if size]
    return sum(found) / len(found) if found else None
