"""Fetching planned records again: neighbours in one range read, several reads at once on object stores."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from sightloom import storage
from sightloom.data.sources.chunks import SourceFile, read_positions
from sightloom.data.sources.records import RawRecord
from sightloom.data.sources.webdataset import parse_range
from sightloom.errors import SightloomError

GETS = 16
MAX_GAP = 1_000_000  # bytes between two records that one range read may cover for nothing
MAX_RANGE = 16_000_000
Place = tuple[int, int, int | None, int | None]  # number of the file, position, byte offset, byte size


@dataclass(frozen=True, slots=True)
class _Range:
    """Records of one file that one range read brings, in their order."""

    file: int
    offset: int
    size: int
    places: tuple[Place, ...]


def gather(rows: pa.Table, files: Mapping[int, SourceFile]) -> Iterator[RawRecord]:
    """Yield the records that `rows` plans (`_file, src_pos, src_offset, src_size`), in their order.

    Raises SightloomError where a source no longer has a record that was scored.
    """
    names = ("_file", "src_pos", "src_offset", "src_size")
    places: list[Place] = list(zip(*(rows.column(name).to_pylist() for name in names), strict=True))
    for in_ranges, run in itertools.groupby(places, key=lambda place: _addressable(place, files)):
        if in_ranges:
            yield from _by_range(list(run), files)
        else:
            for number, part in itertools.groupby(run, key=lambda place: place[0]):
                yield from _by_position(list(part), files[number])


def _addressable(place: Place, files: Mapping[int, SourceFile]) -> bool:
    return place[2] is not None and files[place[0]].kind == "webdataset"


def _by_range(places: Sequence[Place], files: Mapping[int, SourceFile]) -> Iterator[RawRecord]:
    ranges = list(_ranges(places))
    local = all(storage.is_local(files[part.file].uri) for part in ranges)
    if local:
        opened = {number: storage.open_read(files[number].uri) for number in {part.file for part in ranges}}
        try:
            for part in ranges:
                found = os.pread(opened[part.file].fileno(), part.size, part.offset)
                yield from _records(part, found, files[part.file])
        finally:
            for file in opened.values():
                file.close()
        return
    with ThreadPoolExecutor(GETS) as pool:
        waiting: deque[tuple[_Range, Future[bytes]]] = deque()
        upcoming = iter(ranges)
        while True:
            for part in itertools.islice(upcoming, 2 * GETS - len(waiting)):
                uri = files[part.file].uri
                waiting.append((part, pool.submit(storage.read_bytes, uri, part.offset, part.size)))
            if not waiting:
                return
            part, data = waiting.popleft()
            yield from _records(part, data.result(), files[part.file])


def _ranges(places: Sequence[Place]) -> Iterator[_Range]:
    """Join neighbours of one file while they lie in ascending order and close together."""
    group: list[Place] = []
    for place in places:
        if group and not _joins(group, place):
            yield _range(group)
            group = []
        group.append(place)
    if group:
        yield _range(group)


def _joins(group: list[Place], place: Place) -> bool:
    file, _, offset, size = place
    last_file, _, last_offset, last_size = group[-1]
    end, first = (last_offset or 0) + (last_size or 0), group[0][2] or 0
    gap = (offset or 0) - end
    return file == last_file and 0 <= gap < MAX_GAP and (offset or 0) + (size or 0) - first <= MAX_RANGE


def _range(group: list[Place]) -> _Range:
    first, last = group[0], group[-1]
    offset = first[2] or 0
    return _Range(first[0], offset, (last[2] or 0) + (last[3] or 0) - offset, tuple(group))


def _records(part: _Range, data: bytes, file: SourceFile) -> Iterator[RawRecord]:
    mapped, view = dict(file.field_map), memoryview(data)
    for _, pos, offset, size in part.places:
        start = (offset or 0) - part.offset
        content = view[start : start + (size or 0)]
        if len(content) != size:
            raise changed(file.uri, pos)
        yield parse_range(content, pos, mapped)


def _by_position(places: Sequence[Place], file: SourceFile) -> Iterator[RawRecord]:
    """Read records of a file that has no byte ranges; out of order they are held until they are wanted."""
    wanted = [(pos, offset, size) for _, pos, offset, size in places]
    found = _complete(file, sorted(wanted))
    if wanted == sorted(wanted):
        yield from found
    else:
        by_pos = {record.pos: record for record in found}
        yield from (by_pos[pos] for pos, _, _ in wanted)


def _complete(file: SourceFile, wanted: Sequence[tuple[int, int | None, int | None]]) -> Iterator[RawRecord]:
    found = read_positions(file, wanted)
    for place in wanted:
        record = next(found, None)
        if record is None or record.pos != place[0]:
            raise changed(file.uri, place[0])
        yield record


def changed(uri: str, where: int) -> SightloomError:
    """The error for a record that is not what was scored."""
    return SightloomError(f"source changed after scoring: '{uri}' at {where}", "run the same command: it scores again")
