"""The columns of all rows, read by position from the segments, in one fixed order: by (address, file, record).

Only the columns that a step names are read, one segment after another, so that memory follows the columns and not the
corpus. The order does not depend on which chunk was committed or compacted first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sightloom import storage
from sightloom.data.ledger import FileState, Group
from sightloom.data.segments import Place, Segment, read_segments
from sightloom.data.sources.chunks import SourceFile
from sightloom.errors import SightloomError

FILE = "_file"  # the number of a row's file among the curation's files, by (address, file id)
HELD = 4  # segments of which the columns at hand are kept, where files lie in several
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring rows of one segment that are neighbours in the curation's order too."""

    segment: int
    first: int
    start: int
    rows: int


@dataclass(frozen=True)
class Scored:
    """All rows of a curation [N] with base and score columns, and what the commits say about them."""

    num_rows: int
    chunks: tuple[str, ...]
    separations: dict[str, tuple[tuple[int, float], ...]]  # scorer's column -> (rows, auc of true against next caption)
    status: dict[str, int]
    runs: tuple[_Run, ...]
    segments: tuple[tuple[Segment, ...], ...]  # for each group
    rows_per_file: tuple[int, ...]
    groups: tuple[Group, ...]

    def batches(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Yield some columns of all rows, table by table in order; SightloomError names missing columns."""
        names = list(dict.fromkeys(names))
        of_group = self._groups_of([name for name in names if name != FILE])
        numbers = np.repeat(np.arange(len(self.rows_per_file), dtype=np.int32), self.rows_per_file)
        held: dict[int, pa.Table] = {}
        for run in self.runs:
            if run.segment not in held:
                if len(held) == HELD:
                    held.pop(next(iter(held)))
                held[run.segment] = self._segment(run.segment, of_group)
            part = held[run.segment].slice(run.first, run.rows)
            if FILE in names:
                part = part.append_column(FILE, pa.array(numbers[run.start : run.start + run.rows]))
            yield part.select(names)

    def read(self, names: Sequence[str], keep: Mask | None = None) -> pa.Table:
        """Return some columns, of all rows or of those where `keep` [N] is true."""
        parts, start = [], 0
        for part in self.batches(names):
            chosen = part if keep is None else part.filter(pa.array(keep[start : start + part.num_rows]))
            parts.append(chosen)
            start += part.num_rows
        return pa.concat_tables(parts)

    def parts(self, rows: int) -> Iterator[tuple[int, Scored]]:
        """Yield (first row, some neighbouring rows), about `rows` each, in order: light enough to travel to a task.

        They have no `FILE` and know nothing of chunks.
        """
        taken: list[_Run] = []
        for number, run in enumerate(self.runs):
            taken.append(run)
            held = run.start + run.rows - taken[0].start
            if held >= rows or number + 1 == len(self.runs):
                used = sorted({one.segment for one in taken})
                runs = tuple(_Run(used.index(r.segment), r.first, r.start - taken[0].start, r.rows) for r in taken)
                segments = tuple(tuple(replace(own[n], places=()) for n in used) for own in self.segments)
                yield taken[0].start, Scored(held, (), {}, {}, runs, segments, (), self.groups)
                taken = []

    def take(self, rows: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
        """Return some columns of a few rows, in the order of `rows`."""
        keep = np.zeros(self.num_rows, np.bool_)
        keep[list(rows)] = True
        found = self.read(names, keep).to_pylist()
        place = {row: index for index, row in enumerate(np.flatnonzero(keep).tolist())}
        return [found[place[row]] for row in rows]

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns that are stored."""
        return tuple(name for group in self.segments for name in _schema(group[0]).names)

    def _groups_of(self, names: Sequence[str]) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        places = {name: number for number, group in enumerate(self.segments) for name in _schema(group[0]).names}
        missing = [name for name in names if name not in places]
        if missing:
            raise SightloomError(
                f"the scores have no column {', '.join(map(repr, missing))}", f"have: {', '.join(sorted(places))}"
            )
        for name in names:
            found.setdefault(places[name], []).append(name)
        return found

    def _segment(self, number: int, of_group: dict[int, list[str]]) -> pa.Table:
        """Read one segment's columns of all groups side by side."""
        rows = self.segments[0][number].rows
        columns: dict[str, Any] = {}
        for group, names in of_group.items():
            segment = self.segments[group][number]
            with storage.open_read(segment.uri) as file:
                table = pq.ParquetFile(file).read(columns=names)
            if table.num_rows != rows:
                raise SightloomError(f"'{segment.uri}' has {table.num_rows} rows, its base segment has {rows}")
            columns |= {name: table.column(name) for name in names}
        return pa.table(columns or {"": pa.nulls(rows)})


def _schema(segment: Segment) -> pa.Schema:
    with storage.open_read(segment.uri) as file:
        return pq.read_schema(file)


def open_scores(files: Sequence[SourceFile], groups: Sequence[Group], states: Sequence[dict[str, FileState]]) -> Scored:
    """Find the rows of some files in the segments; SightloomError names the first file that is not wholly there."""
    segments = [read_segments(group) for group in groups]
    common = min(len(found) for found in segments)
    found: dict[str, tuple[int, Place]] = {
        place.chunk: (segment.number, place) for segment in segments[0][:common] for place in segment.places
    }
    chunks: list[str] = []
    runs: list[_Run] = []
    status: Counter[str] = Counter()
    per_file: list[int] = []
    row = 0
    ordered = sorted(files, key=lambda file: (file.uri, file.file_id))
    for file in ordered:
        for group, state in zip(groups, states, strict=True):
            if file.file_id not in state or not state[file.file_id].complete:
                raise SightloomError(f"'{file.uri}' is not wholly scored ({group.name})", "run `sightloom score` first")
    for file in ordered:
        start = row
        for index in range((states[0][file.file_id].last or 0) + 1):
            chunk_id = file.chunk_id(index)
            if chunk_id not in found:
                raise SightloomError(f"'{file.uri}' is scored, not compacted", "run `sightloom score` first")
            number, place = found[chunk_id]
            before = runs[-1] if runs else None
            if before is not None and before.segment == number and before.first + before.rows == place.first:
                runs[-1] = _Run(number, before.first, before.start, before.rows + place.rows)
            else:
                runs.append(_Run(number, place.first, row, place.rows))
            status.update(place.facts["status"])
            chunks.append(chunk_id)
            row += place.rows
        per_file.append(row - start)
    if not chunks:
        raise SightloomError("the sources hold no records", "see the status table of the fetch, or check source.uri")
    wanted = frozenset(chunks)
    separations = {
        group.name: tuple(_separations(own, wanted)) for group, own in zip(groups[1:], segments[1:], strict=True)
    }
    parts = tuple(tuple(own) for own in segments)
    return Scored(row, tuple(chunks), separations, dict(status), tuple(runs), parts, tuple(per_file), tuple(groups))


def _separations(segments: Sequence[Segment], wanted: frozenset[str]) -> list[tuple[int, float]]:
    return [
        (int(place.facts["scored"]), float(place.facts["auc_rolled"]))
        for segment in segments
        for place in segment.places
        if place.chunk in wanted and place.facts.get("auc_rolled") is not None
    ]


def mean_separation(found: Sequence[tuple[int, float]]) -> float | None:
    """Return the AUC over all chunks, weighted by rows."""
    total = sum(rows for rows, _ in found)
    return sum(rows * value for rows, value in found) / total if total else None
