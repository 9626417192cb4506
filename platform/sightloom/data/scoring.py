"""The first two stages of scoring, as plain functions of a chunk: read and measure. Nothing here knows Ray or torch.

A chunk travels as {header: JSON text, payload: an Arrow IPC stream}; `problem` in the header stops its work and is
carried to the driver.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sightloom.data.ledger import NOTHING, FileState, Group, commit
from sightloom.data.measure import measure, trusting
from sightloom.data.probe import Probe
from sightloom.data.signals.config import DecodeLimits
from sightloom.data.signals.crops import CropSpec
from sightloom.data.sources.chunks import Chunk, SourceFile, read_chunks
from sightloom.data.sources.config import KeptType
from sightloom.errors import SightloomError, UserMistake

MEASURE_CPUS = 0.75  # of a task that measures
Row = dict[str, Any]  # header: str, payload: bytes


@dataclass(frozen=True)
class ScorePlan:
    """What every stage needs to know; it travels to the workers."""

    base: Group
    clips: tuple[Group, ...]
    clip_kinds: tuple[tuple[str, ...], ...]
    crop_of: tuple[int, ...]  # for each scorer, which of `crops` it takes
    crops: tuple[CropSpec, ...]
    limits: DecodeLimits
    keep_fields: dict[str, KeptType]
    mirror: bool = False

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups, base first."""
        return (self.base, *self.clips)


@dataclass(frozen=True)
class Job:
    """One file with missing chunks, and for each group what is committed of it.

    With `only`, that one of the file's chunks is read, as if it were the file's first and last (a preview's sample).
    """

    file: SourceFile
    states: tuple[FileState, ...]
    only: int | None = None

    @property
    def done_everywhere(self) -> frozenset[int]:
        """The chunks that all groups have."""
        return frozenset.intersection(*(state.chunks for state in self.states))


def jobs(files: Sequence[SourceFile], states: Sequence[Mapping[str, FileState]]) -> list[Job]:
    """Return the files that are not complete in every group."""
    found = [Job(file, tuple(state.get(file.file_id, NOTHING) for state in states)) for file in files]
    return [job for job in found if not all(state.complete for state in job.states)]


def read(row: dict[str, Any]) -> Iterator[Row]:
    """Yield the missing chunks of the file of `row["job"]`, a pickled Job."""
    job: Job = pickle.loads(row["job"])
    header: dict[str, Any] = {"uri": job.file.uri, "version": job.file.version}
    try:
        chunks = read_chunks(job.file, job.done_everywhere) if job.only is None else _one(job.file, job.only)
        for chunk in chunks:
            missing = [number for number, state in enumerate(job.states) if chunk.index not in state.chunks]
            facts = {"chunk": job.file.chunk_id(chunk.index), "first": chunk.first, "last": chunk.last}
            yield to_row({**header, **facts, "missing": missing}, chunk.table)
    except SightloomError as error:
        yield to_row({**header, **problem_of(error)}, None)
    except OSError as error:
        yield to_row({**header, "problem": f"'{job.file.uri}' cannot be read: {error}", "hint": "", "mistake": False})


def _one(file: SourceFile, index: int) -> Iterator[Chunk]:
    """Yield one chunk of a file as its only one; nothing where the file has fewer."""
    for chunk in read_chunks(file, frozenset(range(index))):
        if chunk.index == index:
            yield dataclasses.replace(chunk, index=0, last=True)
        return


def measure_chunk(row: Row, plan: ScorePlan, careful: bool = False) -> Row:
    """Commit a chunk's base columns and pass on what the scorers need.

    Args:
        row: a chunk as `read` yields it.
        plan: what to measure.
        careful: look at each picture in a child process first; one that kills it becomes `internal_error`.
    """
    header = json.loads(row["header"])
    if "problem" in header:
        return row
    scored = [number - 1 for number in header["missing"] if number > 0]
    try:
        kinds = frozenset(kind for number in scored for kind in plan.clip_kinds[number])
        records = to_table(row["payload"])
        specs = plan.crops if scored else ()
        with Probe(plan.limits, specs) if careful else contextlib.nullcontext(trusting) as danger:
            uri, keep, mirror = header["uri"], plan.keep_fields, plan.mirror
            result = measure(records, uri, plan.limits, keep, specs, kinds, danger, mirror)
        if 0 in header["missing"]:
            source = {"uri": header["uri"], "version": header["version"], "first": header["first"]}
            facts = {"status": result.status, "src": source}
            commit(plan.base, header["chunk"], header["last"], result.table, facts)
    except SightloomError as error:
        return to_row({**header, **problem_of(error)})
    header |= {"rows": records.num_rows, "num_scored": len(result.rows)}
    if not scored:
        return to_row(header)
    columns: dict[str, pa.Array] = {
        "row": pa.array(result.rows, pa.int32()),
        "text": pa.array(result.texts, pa.large_string()),
        "kind": pa.array(result.kinds, pa.string()),
    }
    for number, crops in enumerate(result.crops):
        buffer = pa.py_buffer(np.ascontiguousarray(crops))
        size = crops[0].size if len(crops) else 1
        fixed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(crops), [None, buffer])
        columns[f"crop_{number}"] = fixed
    return to_row(header, pa.table(columns))


def problem_of(error: SightloomError) -> dict[str, Any]:
    """Return what the driver is told about an error."""
    return {"problem": error.message, "hint": error.hint, "mistake": isinstance(error, UserMistake)}


def to_row(header: dict[str, Any], table: pa.Table | None = None) -> Row:
    """Pack a header and a table into a row."""
    if table is None:
        return {"header": json.dumps(header), "payload": b""}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return {"header": json.dumps(header), "payload": sink.getvalue().to_pybytes()}


def to_table(payload: bytes) -> pa.Table:
    """Return a row's table."""
    return pa.ipc.open_stream(pa.py_buffer(payload)).read_all()
