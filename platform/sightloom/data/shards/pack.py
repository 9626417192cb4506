"""Building one shard: fetch the planned records again, prove the pictures, write tar, index and table, then commit."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sightloom import storage
from sightloom.config import canonical_json
from sightloom.data.decode import EXTENSIONS, image_format
from sightloom.data.ledger import parquet_bytes
from sightloom.data.shards.gather import changed, gather
from sightloom.data.shards.manifest import Shard
from sightloom.data.shards.tarfiles import TarWriter
from sightloom.data.sources.chunks import SourceFile
from sightloom.data.sources.records import RawRecord

TABLE_COLUMNS = ("kind", "domain", "task", "width", "height", "text_chars", "src", "source_key", "sha256", "turns",
                 "answer_kind", "reasoning_chars")  # fmt: skip


@dataclass(frozen=True)
class ShardJob:
    """One shard to build: its planned rows, the files they come from, and where it goes."""

    name: str
    rows: pa.Table
    files: Mapping[int, SourceFile]
    scores: tuple[str, ...]
    folder: str
    commit_uri: str


def build(job: ShardJob) -> dict[str, Any]:
    """Build, publish and commit a shard; return its manifest entry.

    Raises SightloomError when a source changed after it was scored, or the disk is full.
    """
    kinds, domains = Counter[str](), Counter[str]()
    places: list[tuple[int, int]] = []
    extensions: list[str | None] = []
    uri = storage.join(job.folder, job.name)
    with storage.building(uri + ".tar") as tar:
        with TarWriter(tar) as writer:
            for row, record in zip(job.rows.to_pylist(), gather(job.rows, job.files), strict=True):
                members = _members(row, record, job.scores)
                places.append(writer.add(row["key"], members))
                extensions.append(members[0][0] if record.image is not None else None)
                kinds[row["kind"]] += 1
                domains[row["domain"]] += 1
        index, table = writer.index(), parquet_bytes(_table(job, places, extensions))
        size = tar.stat().st_size
    storage.write(uri + ".tar.idx", index)
    storage.write(uri + ".parquet", table)
    entry = Shard(
        name=f"{job.name}.tar",
        samples=job.rows.num_rows,
        bytes=size,
        sha256=writer.digest.hexdigest(),
        index_sha256=hashlib.sha256(index).hexdigest(),
        table=f"{job.name}.parquet",
        table_sha256=hashlib.sha256(table).hexdigest(),
        domains=dict(sorted(domains.items())),
        kinds=dict(sorted(kinds.items())),
    )
    storage.create(job.commit_uri, canonical_json(entry))
    return entry.model_dump()


def _members(row: dict[str, Any], record: RawRecord, scores: Sequence[str]) -> list[tuple[str, bytes]]:
    image = record.image
    if (None if image is None else hashlib.sha256(image).hexdigest()) != row["sha256"]:
        raise changed(row["src"], row["src_pos"])
    own = {
        "src": row["src"],
        "source_key": row["source_key"],
        "width": row["width"],
        "height": row["height"],
        "domain": row["domain"],
        "copy": row["copy"],
        "scores": {name: _short(row[name]) for name in scores if row[name] is not None},
    }
    meta = {f"source_{name}" if name in ("uid", "sightloom") else name: value for name, value in record.meta.items()}
    members: list[tuple[str, bytes]] = []
    if image is not None:
        members.append((EXTENSIONS[str(image_format(image))], image))
    if row["kind"] == "pair":
        members.append(("txt", record.text.encode("utf-8")))
    members.append(("json", canonical_json({**meta, "uid": row["uid"].hex(), "sightloom": own})))
    return members


def _short(value: Any) -> Any:
    """Write a float32 with the digits that it has."""
    return float(str(np.float32(value))) if isinstance(value, float) and np.isfinite(value) else None


def _table(job: ShardJob, places: Sequence[tuple[int, int]], extensions: Sequence[str | None]) -> pa.Table:
    columns: dict[str, Any] = {
        "key": job.rows.column("key"),
        "uid": job.rows.column("uid"),
        "offset": pa.array([offset for offset, _ in places], pa.int64()),
        "size": pa.array([size for _, size in places], pa.int64()),
        "image_ext": pa.array(extensions, pa.string()),
    }
    return pa.table(columns | {name: job.rows.column(name) for name in (*TABLE_COLUMNS, *job.scores)})
