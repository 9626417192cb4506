"""Parquet with the images' bytes in a column: binary, or Hugging Face's struct<bytes, path>."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sightloom import storage
from sightloom.config import canonical_json
from sightloom.data.sources.records import RawRecord, assemble, find
from sightloom.errors import UserMistake

DEFAULT_FIELDS = {"image": "image", "domain": "domain", "record": "record", "id": "id"}
TEXT_COLUMNS = ("text", "caption")


def chunk_layout(uri: str, chunk_rows: int) -> list[tuple[int, int, int]]:
    """Return (row group, first row, rows) of each chunk of a file; a chunk stays in its row group."""
    with storage.open_read(uri) as file:
        metadata = _open(uri, file).metadata
        layout: list[tuple[int, int, int]] = []
        first = 0
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            for start in range(0, rows, chunk_rows):
                layout.append((group, first + start, min(chunk_rows, rows - start)))
            first += rows
    return layout or [(0, 0, 0)]


def read_rows(uri: str, fields: dict[str, str], chunk_rows: int, chunks: Sequence[int]) -> Iterator[list[RawRecord]]:
    """Yield the records of the wanted chunks (ascending), one list a chunk.

    Raises UserMistake where a mapped column is missing; no image column means rows `missing_image`.
    """
    layout = chunk_layout(uri, chunk_rows)
    with storage.open_read(uri) as file:
        parquet = _open(uri, file)
        mapped = _fields(uri, fields, parquet.schema_arrow)
        for group in sorted({layout[chunk][0] for chunk in chunks}):
            numbers = [number for number, place in enumerate(layout) if place[0] == group]
            if not parquet.metadata.num_row_groups:
                yield []
                continue
            batches = _rebatch(parquet.iter_batches(batch_size=chunk_rows, row_groups=[group]), chunk_rows)
            for number, batch in zip(numbers, batches, strict=True):
                if number in chunks:
                    yield _records(batch, layout[number][1], mapped)


def _open(uri: str, file: Any) -> Any:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserMistake(f"'{uri}' is not a readable parquet file: {error}", "check or remove the file") from error


def _rebatch(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Cut batches to exactly `rows` rows; the reader may return shorter ones inside a row group."""
    pending: list[pa.RecordBatch] = []
    for batch in batches:
        pending.append(batch)
        if sum(part.num_rows for part in pending) >= rows:
            table = pa.Table.from_batches(pending)
            yield table.slice(0, rows)
            rest = table.slice(rows)
            pending = rest.to_batches() if rest.num_rows else []
    if pending:
        yield pa.Table.from_batches(pending)


def _fields(uri: str, fields: dict[str, str], schema: pa.Schema) -> dict[str, str]:
    """Complete the field map with the columns that are there under their usual names."""
    for name, path in fields.items():
        if path.partition(".")[0] not in schema.names and path not in schema.names:
            raise UserMistake(f"'{uri}' has no column '{path}' (fields.{name})", f"have: {', '.join(schema.names)}")
    usual = {name: column for name, column in DEFAULT_FIELDS.items() if column in schema.names}
    text = next((column for column in TEXT_COLUMNS if column in schema.names), None)
    return {**usual, **({"text": text} if text else {}), **fields}


def _records(table: pa.Table, first: int, mapped: dict[str, str]) -> list[RawRecord]:
    taken = {mapped[name] for name in ("image", "text", "record") if name in mapped}
    plain = [name for name, kind in zip(table.column_names, table.schema.types, strict=True) if _is_plain(kind)]
    records = []
    for index, row in enumerate(table.to_pylist()):
        image = find(row, mapped.get("image"))
        pos = first + index
        record = RawRecord(pos, str(find(row, mapped.get("id")) or pos))
        if isinstance(image, list):
            if len(image) > 1:
                record.refuse("multi_image", f"{len(image)} pictures in column '{mapped['image']}'")
            image = image[0] if len(image) == 1 else None
        if isinstance(image, dict):
            image = image.get("bytes")
        record.meta = {name: _jsonable(row[name]) for name in plain if name not in taken and row[name] is not None}
        records.append(assemble(record, row, mapped, image, find(row, mapped.get("text"))))
    return records


def _is_plain(kind: pa.DataType) -> bool:
    """Tell whether a column can stand in JSON: no bytes anywhere in it."""
    if pa.types.is_struct(kind):
        return all(_is_plain(kind.field(index).type) for index in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_plain(kind.value_type)
    return not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _jsonable(value: Any) -> Any:
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal):
        return str(value)
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {name: _jsonable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_jsonable(inner) for inner in value]
    return value


def plain_json(value: Any) -> bytes:
    """Return canonical JSON of a value read from Arrow."""
    return canonical_json(_jsonable(value))
