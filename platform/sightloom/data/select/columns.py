"""The columns of all rows, joined by position from the committed fragments, in one fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sightloom.data.ledger import FileState, Group, read_chunk
from sightloom.data.sources.chunks import SourceFile
from sightloom.errors import SightloomError


@dataclass(frozen=True)
class Scored:
    """All rows of a curation [N] with base and score columns, and what the commits say about them."""

    table: pa.Table
    chunks: tuple[str, ...]
    separations: dict[str, tuple[tuple[int, float], ...]]  # scorer's column -> (rows, auc of true against next caption)


def load(files: Sequence[SourceFile], groups: Sequence[Group], states: Sequence[dict[str, FileState]]) -> Scored:
    """Read every committed chunk of the files, by (address, chunk); SightloomError names what is missing."""
    tables: list[pa.Table] = []
    chunks: list[str] = []
    separations: dict[str, list[tuple[int, float]]] = {group.name: [] for group in groups[1:]}
    for number, file in enumerate(sorted(files, key=lambda file: (file.uri, file.file_id))):
        for group, state in zip(groups, states, strict=True):
            if file.file_id not in state or not state[file.file_id].complete:
                raise SightloomError(
                    f"'{file.uri}' is not wholly scored ({group.name})", "run the same command again to go on"
                )
        last = states[0][file.file_id].last
        for index in range((last or 0) + 1):
            chunk_id = file.chunk_id(index)
            table, _ = read_chunk(groups[0], chunk_id, index == last)
            for group in groups[1:]:
                scores, record = read_chunk(group, chunk_id, index == last)
                table = _beside(table, scores, chunk_id)
                if record.get("auc_rolled") is not None:
                    separations[group.name].append((int(record["scored"]), float(record["auc_rolled"])))
            tables.append(table.append_column("_file", pa.array([number] * table.num_rows, pa.int32())))
            chunks.append(chunk_id)
    if not tables:
        raise SightloomError("the sources hold no records", "see the status table of the fetch, or check source.uri")
    joined = pa.concat_tables(tables, promote_options="default").combine_chunks()
    return Scored(joined, tuple(chunks), {name: tuple(found) for name, found in separations.items()})


def _beside(table: pa.Table, scores: pa.Table, chunk_id: str) -> pa.Table:
    if scores.num_rows != table.num_rows:
        raise SightloomError(f"chunk {chunk_id} has {table.num_rows} rows and {scores.num_rows} scores")
    for name in scores.column_names:
        if not name.startswith("emb_"):
            table = table.append_column(name, scores.column(name))
    return table


def mean_separation(found: Sequence[tuple[int, float]]) -> float | None:
    """Return the AUC over all chunks, weighted by rows."""
    total = sum(rows for rows, _ in found)
    return sum(rows * value for rows, value in found) / total if total else None


def rows_of(table: pa.Table, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return some columns as dictionaries."""
    rows: list[dict[str, Any]] = table.select(list(names)).to_pylist()
    return rows
