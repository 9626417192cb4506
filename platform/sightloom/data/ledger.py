"""The commit ledger of scoring: what no commit names does not exist.

A chunk's fragment is written under a name of its own, then a create-only commit names it. Of two writers one wins and
the other finds `Already`; a fragment without a commit is never read.
"""

from __future__ import annotations

import io
import json
import re
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sightloom import storage
from sightloom.config import canonical_json, digest
from sightloom.errors import SightloomError, UserMistake

_COMMIT = re.compile(r"([0-9a-f]{16})-(\d{5,})(\.last)?\.json$")


@dataclass(frozen=True, slots=True)
class Group:
    """One group of columns: its folder is named by what decides their content."""

    name: str
    fingerprint: str
    folder: str

    @classmethod
    def make(cls, out: str, name: str, config: dict[str, Any], more: str = "") -> Group:
        """Name a group below OUT/scores by its configuration.

        Args:
            out: the curation's folder.
            name: of the group.
            config: what decides its columns.
            more: ends the folder's name where it holds more than the columns (`-emb`); no part of the fingerprint.
        """
        fingerprint = digest({"group": name, **config})[:12]
        return cls(name, fingerprint, storage.join(out, "scores", f"{name}-{fingerprint}{more}"))

    def describe(self, config: dict[str, Any], columns: dict[str, str]) -> None:
        """Write group.json once."""
        content = {"group": self.name, "config": config, "columns": columns}
        storage.create(storage.join(self.folder, "group.json"), canonical_json(content))


@dataclass(frozen=True, slots=True)
class FileState:
    """The committed chunks of one file in one group."""

    chunks: frozenset[int]
    last: int | None

    @property
    def complete(self) -> bool:
        """Whether the last chunk and all before it are there."""
        return self.last is not None and len(self.chunks) == self.last + 1


NOTHING = FileState(frozenset(), None)


def committed(group: Group) -> dict[str, FileState]:
    """Return the state of every file that has commits in a group."""
    return committed_in(storage.join(group.folder, "commit"))


def committed_in(folder: str) -> dict[str, FileState]:
    """Return the state of every file that has commits in a folder: `<file id>-<k>.json`, the last `….last.json`."""
    chunks: dict[str, set[int]] = {}
    last: dict[str, int] = {}
    for name in storage.names(folder):
        match = _COMMIT.search(name)
        if match:
            chunks.setdefault(match[1], set()).add(int(match[2]))
            if match[3]:
                last[match[1]] = int(match[2])
    return {file_id: FileState(frozenset(found), last.get(file_id)) for file_id, found in chunks.items()}


def commit(
    group: Group,
    chunk_id: str,
    is_last: bool,
    table: pa.Table,
    facts: dict[str, Any],
    embeddings: npt.NDArray[np.float16] | None = None,
) -> bool:
    """Write a fragment, and embeddings if there are any, and name them by a commit.

    Args:
        group: where.
        chunk_id: `<file id>-<k>`.
        is_last: whether it is its file's last chunk.
        table: one row a record, in source order.
        facts: what else the commit says (status counts, source).
        embeddings: of the fragment's rows, float16 [rows, D].

    Returns:
        False when another writer had committed the chunk before; what is there counts.
    """
    attempt = uuid.uuid4().hex[:8]
    fragment = f"data/{chunk_id}-{attempt}.parquet"
    data = parquet_bytes(table)
    storage.write(storage.join(group.folder, fragment), data)
    if embeddings is not None:
        facts = {**facts, "embeddings": f"emb/{chunk_id}-{attempt}.npy"}
        sink = io.BytesIO()
        np.save(sink, embeddings)
        storage.write(storage.join(group.folder, facts["embeddings"]), sink.getvalue())
    record = {
        "chunk": chunk_id,
        "group": group.name,
        "fragment": fragment,
        "bytes": len(data),
        "rows": table.num_rows,
        "last": is_last,
        "attempt": attempt,
        **facts,
    }
    path = commit_uri(group, chunk_id, is_last)
    if storage.create(path, canonical_json(record)):
        return True
    winner: dict[str, Any] = storage.read_json(path)
    return winner["attempt"] == attempt  # only the first answer was lost


def read_chunk(group: Group, chunk_id: str, is_last: bool) -> tuple[pa.Table, dict[str, Any]]:
    """Return a committed chunk's fragment and its commit; SightloomError if the fragment is gone or cut."""
    record = read_commit(group, chunk_id, is_last)
    return read_fragment(group, record), record


def commit_uri(group: Group, chunk_id: str, is_last: bool) -> str:
    """Return the address of a chunk's commit."""
    return storage.join(group.folder, "commit", chunk_id + (".last.json" if is_last else ".json"))


def read_commit(group: Group, chunk_id: str, is_last: bool) -> dict[str, Any]:
    """Return what a chunk's commit says."""
    record: dict[str, Any] = json.loads(storage.read_bytes(commit_uri(group, chunk_id, is_last)))
    return record


def read_fragment(group: Group, record: dict[str, Any], columns: list[str] | None = None) -> pa.Table:
    """Return the fragment that a commit names, or some of its columns; SightloomError if it is gone or cut."""
    uri = storage.join(group.folder, record["fragment"])
    try:
        data = storage.read_bytes(uri)
    except UserMistake:
        data = b""
    if len(data) != record["bytes"]:
        path = commit_uri(group, record["chunk"], record["last"])
        raise SightloomError(f"'{uri}' has {len(data)} bytes, its commit says {record['bytes']}", f"delete '{path}'")
    return pq.read_table(io.BytesIO(data), columns=columns)


def parquet_bytes(table: pa.Table) -> bytes:
    """Return a table as parquet; equal tables give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", store_schema=True)
    return sink.getvalue()
