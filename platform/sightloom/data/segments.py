"""Segments: committed fragments compacted to about a million rows, so that later steps open few files.

Segments are numbered, create-only and never changed; segment n is made only after 0 .. n-1 were read. The base group
says which chunks a segment holds; segment n of every other group holds the same rows in the same order.
"""

from __future__ import annotations

import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sightloom import storage
from sightloom.config import canonical_json
from sightloom.data.ledger import FileState, Group, read_commit, read_fragment
from sightloom.errors import SightloomError
from sightloom.storage.addresses import explained

SEGMENT_ROWS = 1_000_000
ROW_GROUP = 65_536
READERS = 8
_NAME = re.compile(r"^(\d{5,})\.json$")
_OWN = frozenset({"group", "fragment", "bytes", "attempt", "src"})  # of a commit, no longer of interest


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk lies in its segment, and what its commit said (`last`, status counts, a scorer's separation)."""

    chunk: str
    first: int
    rows: int
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Segment:
    """One compacted table of a group."""

    number: int
    uri: str
    rows: int
    bytes: int
    places: tuple[Place, ...]


def read_segments(group: Group) -> list[Segment]:
    """Return the segments of a group, 0 and up without a gap."""
    folder = storage.join(group.folder, "segments")
    numbers = sorted(int(match[1]) for name in storage.names(folder) if (match := _NAME.match(name)))
    whole = [number for place, number in enumerate(numbers) if place == number]
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda number: _read(group, number), whole))


def rows_scored(group: Group) -> dict[str, int]:
    """Return the rows of each file that the segments of a group hold, by file id."""
    rows: dict[str, int] = {}
    for segment in read_segments(group):
        for place in segment.places:
            file_id = place.chunk.rpartition("-")[0]
            rows[file_id] = rows.get(file_id, 0) + place.rows
    return rows


def _read(group: Group, number: int) -> Segment:
    record = storage.read_json(_uri(group, number))
    places, first = [], 0
    for facts in record["chunks"]:
        places.append(Place(facts["chunk"], first, facts["rows"], facts))
        first += facts["rows"]
    return Segment(number, storage.join(group.folder, record["fragment"]), first, record["bytes"], tuple(places))


def _uri(group: Group, number: int) -> str:
    return storage.join(group.folder, "segments", f"{number:05d}.json")


@dataclass(frozen=True)
class Compaction:
    """One segment to be made: its chunks in order, each with whether it is its file's last."""

    group: Group
    number: int
    chunks: tuple[tuple[str, bool], ...]


def next_compactions(
    groups: Sequence[Group], states: Sequence[Mapping[str, FileState]], order: Sequence[str], at_least: int
) -> list[Compaction]:
    """Say which segments are to be made next: the other groups' missing ones, then the base group's.

    Args:
        groups: all groups, base first.
        states: what each has committed.
        order: ids of the files whose chunks may be compacted now, in the order that the rows get.
        at_least: rows that must wait before a new base segment is made (0 = whatever there is).
    """
    base, *others = groups
    existing = read_segments(base)
    found = [
        work for group, state in zip(others, states[1:], strict=True) for work in _followers(group, state, existing)
    ]
    known = {place.chunk for segment in existing for place in segment.places}
    waiting = []
    for file_id in order:
        state = states[0].get(file_id)
        if state is not None and state.complete:
            names = ((f"{file_id}-{index:05d}", index == state.last) for index in range((state.last or 0) + 1))
            waiting += [(name, last) for name, last in names if name not in known]
    with ThreadPoolExecutor(READERS) as pool:
        rows = list(pool.map(lambda chunk: int(read_commit(base, *chunk)["rows"]), waiting))
    if not waiting or sum(rows) < at_least:
        return found
    part: list[tuple[str, bool]] = []
    parts, held = [part], 0
    for chunk, count in zip(waiting, rows, strict=True):
        if part and held + count > SEGMENT_ROWS:
            part, held = [], 0
            parts.append(part)
        part.append(chunk)
        held += count
    whole = [part for part in parts if part]
    found += [Compaction(base, len(existing) + place, tuple(part)) for place, part in enumerate(whole)]
    return found


def _followers(group: Group, state: Mapping[str, FileState], base: Sequence[Segment]) -> Iterator[Compaction]:
    """Yield the segments of the base group that another group could follow and does not yet."""
    for segment in base[len(read_segments(group)) :]:
        chunks = []
        for place in segment.places:
            file_id, _, index = place.chunk.rpartition("-")
            if int(index) not in state.get(file_id, _NOTHING).chunks:
                return
            chunks.append((place.chunk, bool(place.facts["last"])))
        yield Compaction(group, segment.number, tuple(chunks))


_NOTHING = FileState(frozenset(), None)


def write_segment(work: Compaction) -> dict[str, Any]:
    """Write the rows of one segment under a name of their own; return what is to be published by `publish`."""
    group, attempt = work.group, uuid.uuid4().hex[:8]
    fragment = f"segments/{work.number:05d}-{attempt}.parquet"
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="sightloom-segment-") as scratch, explained(scratch):
        path = Path(scratch) / "segment.parquet"
        writer: pq.ParquetWriter | None = None
        pending: list[pa.Table] = []
        for record, table in _fragments(work):
            records.append(record)
            pending.append(table)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd", store_schema=True)
            if sum(part.num_rows for part in pending) >= ROW_GROUP:
                writer.write_table(pa.concat_tables(pending), row_group_size=2 * ROW_GROUP)
                pending = []
        if writer is None:
            raise SightloomError(f"segment {work.number} of '{group.folder}' has no chunks")
        if pending:
            writer.write_table(pa.concat_tables(pending), row_group_size=2 * ROW_GROUP)
        writer.close()
        size = path.stat().st_size
        storage.put_file(path, storage.join(group.folder, fragment))
    chunks = [{name: value for name, value in record.items() if name not in _OWN} for record in records]
    return {"segment": work.number, "group": group.name, "fragment": fragment, "bytes": size, "chunks": chunks}


def publish(group: Group, content: dict[str, Any]) -> bool:
    """Name a written segment; False if another writer's has its number: that one counts, and what comes next is open.

    Of one group the segments must be published in ascending order, and none after a False.
    """
    uri = _uri(group, content["segment"])
    if storage.create(uri, canonical_json(content)) or storage.read_json(uri)["fragment"] == content["fragment"]:
        return True
    storage.delete(storage.join(group.folder, content["fragment"]))
    return False


def _fragments(work: Compaction) -> Iterator[tuple[dict[str, Any], pa.Table]]:
    """Read the fragments in order, a few at once."""

    def one(chunk: tuple[str, bool]) -> tuple[dict[str, Any], pa.Table]:
        record = read_commit(work.group, *chunk)
        return record, read_fragment(work.group, record)

    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(work.chunks), 4 * READERS):
            yield from pool.map(one, work.chunks[start : start + 4 * READERS])
