"""Chunks: consecutive records of one file, the unit of work, of commit and of retry."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import pyarrow as pa

from sightloom import storage
from sightloom.config import digest
from sightloom.data.sources import folder, parquet, webdataset
from sightloom.data.sources.config import Source
from sightloom.data.sources.records import RawRecord, canonical_meta, writable
from sightloom.errors import UserMistake
from sightloom.storage import FileInfo

SCHEMA = pa.schema(
    [
        ("pos", pa.int64()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("detail", pa.string()),
        ("kind", pa.string()),
        ("image", pa.large_binary()),
        ("text", pa.large_string()),
        ("meta", pa.large_binary()),
        ("domain", pa.string()),
        ("uid", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("task", pa.string()),
        ("turns", pa.int32()),
        ("answer_kind", pa.string()),
        ("reasoning_chars", pa.int32()),
    ]
)
assert [column.name for column in SCHEMA] == [column.name for column in fields(RawRecord)]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source; `file_id` changes with its content, its place and how it is read."""

    kind: str
    uri: str
    size: int
    version: str
    field_map: tuple[tuple[str, str], ...]
    chunk_rows: int
    file_id: str

    def chunk_id(self, index: int) -> str:
        """The name of the file's k-th chunk."""
        return f"{self.file_id}-{index:05d}"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive records of a file, as a table of `SCHEMA`; `first` is the position of the first one."""

    index: int
    first: int
    last: bool
    table: pa.Table


def list_files(source: Source, chunk_rows: int, field_map: dict[str, str] | None = None) -> list[SourceFile]:
    """List the files of a source, sorted by address; UserMistake where there is none."""
    kind, mapped = source.kind, tuple(sorted((source.fields if field_map is None else field_map).items()))
    if kind == "folder":
        infos = [folder.find_captions(source.uri)]
    else:
        infos = _matching(source.uri, (".tar", ".tar.gz", ".tar.zst") if kind == "webdataset" else (".parquet",))
    ordered = sorted(infos, key=lambda info: info.uri)
    return [source_file(kind, info, mapped, chunk_rows) for info in ordered]


def source_file(kind: str, info: FileInfo, mapped: tuple[tuple[str, str], ...], chunk_rows: int) -> SourceFile:
    """Name one file by what decides its chunks."""
    identity = [kind, mapped, chunk_rows, info.uri, info.size, info.version]
    return SourceFile(kind, info.uri, info.size, info.version, mapped, chunk_rows, digest(identity)[:16])


def _matching(uri: str, suffixes: tuple[str, ...]) -> list[FileInfo]:
    """List a pattern's files; of a plain folder only those of the wanted type."""
    infos = storage.listing(uri)
    chosen = [info for info in infos if info.uri.endswith(suffixes)]
    if not chosen:
        raise UserMistake(
            f"no {suffixes[0]} files at '{uri}' ({len(infos)} other files)", "check source.uri and source.kind"
        )
    return chosen


def read_chunks(file: SourceFile, committed: frozenset[int]) -> Iterator[Chunk]:
    """Yield the chunks of a file that are not committed, in order.

    Raises UserMistake where the file cannot be read as its kind at all.
    """
    if file.kind == "parquet":
        yield from _parquet_chunks(file, committed)
        return
    records = _read(file)
    for index in itertools.count():
        batch = list(itertools.islice(records, file.chunk_rows))
        following = next(records, None)
        if index not in committed:
            yield Chunk(index, index * file.chunk_rows, following is None, to_table(batch))
        if following is None:
            return
        records = itertools.chain([following], records)


def read_positions(file: SourceFile, wanted: Sequence[tuple[int, int | None, int | None]]) -> Iterator[RawRecord]:
    """Yield chosen records again, each given as (position, byte offset, byte size); in ascending position."""
    mapped = dict(file.field_map)
    ordered = sorted(wanted)
    if file.kind == "webdataset" and all(offset is not None for _, offset, _ in ordered):
        for pos, offset, size in ordered:
            yield webdataset.read_range(file.uri, int(offset or 0), int(size or 0), pos, mapped)
        return
    positions = frozenset(pos for pos, _, _ in ordered)
    if file.kind == "parquet":
        layout = parquet.chunk_layout(file.uri, file.chunk_rows)
        chunks = [
            number
            for number, (_, first, rows) in enumerate(layout)
            if any(pos in positions for pos in range(first, first + rows))
        ]
        for batch in parquet.read_rows(file.uri, mapped, file.chunk_rows, chunks):
            yield from (record for record in batch if record.pos in positions)
    elif file.kind == "folder":
        yield from folder.read_folder(file.uri, mapped, positions)
    else:
        yield from (record for record in _read(file) if record.pos in positions)


def _read(file: SourceFile) -> Iterator[RawRecord]:
    mapped = dict(file.field_map)
    return (webdataset.read_tar if file.kind == "webdataset" else folder.read_folder)(file.uri, mapped)


def _parquet_chunks(file: SourceFile, committed: frozenset[int]) -> Iterator[Chunk]:
    layout = parquet.chunk_layout(file.uri, file.chunk_rows)
    missing = [number for number in range(len(layout)) if number not in committed]
    batches = parquet.read_rows(file.uri, dict(file.field_map), file.chunk_rows, missing)
    for number, batch in zip(missing, batches, strict=True):
        yield Chunk(number, layout[number][1], number == len(layout) - 1, to_table(batch))


def to_table(records: list[RawRecord]) -> pa.Table:
    """Put records into a table of `SCHEMA`; `meta` as canonical JSON."""
    columns = []
    for column in SCHEMA:
        values = [canonical_meta(r) if column.name == "meta" else getattr(r, column.name) for r in records]
        try:
            columns.append(pa.array(values, column.type))
        except UnicodeEncodeError:  # names in tars may be any bytes
            columns.append(pa.array([writable(value) for value in values], column.type))
    return pa.Table.from_arrays(columns, schema=SCHEMA)
