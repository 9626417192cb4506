"""Lists of URLs: parquet, csv, tsv or jsonl, read row by row and cut into chunks."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from sightloom import storage
from sightloom.config import digest
from sightloom.data.sources.config import UrlSource
from sightloom.errors import UserMistake

NAMED = ("url", "text", "sha256")
SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson")


@dataclass(frozen=True)
class UrlList:
    """One file of URLs; its identity changes with its content, its place and how it is read."""

    uri: str
    identity: str
    chunk_rows: int
    names: tuple[tuple[str, str], ...]

    def chunks(self) -> Iterator[tuple[int, bool, list[dict[str, Any]]]]:
        """Yield (index, whether it is the last, rows as {row, url, text, sha256, rest}).

        Raises UserMistake where the file is no list or a column is missing.
        """
        rows = _rows(self.uri)
        for index in itertools.count():
            batch = list(itertools.islice(rows, self.chunk_rows))
            following = next(rows, None)
            yield index, following is None, [self._row(number, row) for number, row in enumerate(batch)]
            if following is None:
                return
            rows = itertools.chain([following], rows)

    def count(self) -> int:
        """Return how many URLs it holds: from the footer, or by its lines."""
        with _readable(self.uri), storage.open_read(self.uri) as file:
            if self.uri.endswith(".parquet"):
                return int(pq.ParquetFile(file).metadata.num_rows)
            if self.uri.endswith((".csv", ".tsv")):
                return sum(1 for _ in _table_rows(self.uri, file))
            return sum(1 for line in file if line.strip())

    def _row(self, number: int, row: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"row": number, "sha256": None}
        for name, column in self.names:
            if column not in row:
                raise UserMistake(f"'{self.uri}' has no column '{column}'", f"have: {', '.join(row)}")
            found[name] = row.pop(column)
        return {**found, "rest": row}


def url_lists(source: UrlSource) -> list[UrlList]:
    """List the files of a source; UserMistake where one is of no known kind."""
    given: dict[str, str] = {str(name): column for name, column in source.fields.items()}
    names = tuple((name, given.get(name, name)) for name in NAMED if name != "sha256" or name in given)
    found = []
    for info in storage.listing(source.uri):
        if not info.uri.endswith(SUFFIXES):
            raise UserMistake(f"'{info.uri}' is not a readable list of URLs", "give parquet, csv, tsv or jsonl")
        rows = source.fetch.chunk_rows
        identity = digest([info.uri, info.size, info.version, rows, sorted(source.fields.items())])[:16]
        found.append(UrlList(info.uri, identity, rows, names))
    return found


@contextlib.contextmanager
def _readable(uri: str) -> Iterator[None]:
    """Turn what a broken list raises into a UserMistake that names it."""
    try:
        yield
    except (pa.ArrowInvalid, csv.Error, UnicodeDecodeError) as error:
        raise UserMistake(f"'{uri}' is not a readable list of URLs: {error}", "give parquet, csv or jsonl") from error


def _rows(uri: str) -> Iterator[dict[str, Any]]:
    with _readable(uri), storage.open_read(uri) as file:
        if uri.endswith(".parquet"):
            for batch in pq.ParquetFile(file).iter_batches(batch_size=4096):
                yield from batch.to_pylist()
        elif uri.endswith((".csv", ".tsv")):
            yield from _table_rows(uri, file)
        else:
            for number, line in enumerate(io.TextIOWrapper(file, "utf-8-sig"), 1):
                if line.strip():
                    yield _object(uri, number, line)


def _table_rows(uri: str, file: BinaryIO) -> Iterator[dict[str, Any]]:
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    return csv.DictReader(text, delimiter="\t" if uri.endswith(".tsv") else ",", strict=True)


def _object(uri: str, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserMistake(f"'{uri}' line {number} is not JSON: {error}", "give one object a line") from error
    if not isinstance(row, dict):
        raise UserMistake(f"'{uri}' line {number} is not an object", "give one object a line")
    return row
