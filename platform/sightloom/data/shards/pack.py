"""Building one shard: fetch the planned records again, prove the pictures, write tar, index and table, then commit."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
from blake3 import blake3

from sightloom import storage
from sightloom.config import canonical_json
from sightloom.data.decode import EXTENSIONS, image_format
from sightloom.data.ledger import parquet_bytes
from sightloom.data.shards.config import Encoding
from sightloom.data.shards.encode import encode
from sightloom.data.shards.gather import changed, gather
from sightloom.data.shards.manifest import BuiltShard, Shard
from sightloom.data.shards.tarfiles import TarWriter
from sightloom.data.signals.config import DecodeLimits
from sightloom.data.sources.chunks import SourceFile
from sightloom.data.sources.records import RawRecord

TABLE_COLUMNS = ("kind", "domain", "task", "width", "height", "text_chars", "src", "source_key", "sha256", "turns",
                 "answer_kind", "reasoning_chars")  # fmt: skip
MEMBER_COLUMNS = ("key", "uid", "copy", "kind", "domain", "width", "height", "src", "src_pos", "source_key", "sha256",
                  "blake3")  # fmt: skip


@dataclass(frozen=True)
class ShardJob:
    """One shard to build: its planned rows, the files they come from, where it goes, and how its pictures are written.

    `encoding` None: every picture keeps its own bytes.
    """

    name: str
    rows: pa.Table
    files: Mapping[int, SourceFile]
    scores: tuple[str, ...]
    folder: str
    commit_uri: str
    encoding: Encoding | None = None
    limits: DecodeLimits = field(default_factory=DecodeLimits)


@dataclass(slots=True)
class _Written:
    """What the table says of the samples in the tar, in its order [N]."""

    offset: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    image_ext: list[str | None] = field(default_factory=list)
    width: list[int | None] = field(default_factory=list)
    height: list[int | None] = field(default_factory=list)
    sha256: list[str | None] = field(default_factory=list)


def build(job: ShardJob) -> dict[str, Any]:
    """Build, publish and commit a shard; return what was committed, a `BuiltShard`.

    Raises SightloomError when a source changed after it was scored, or the disk is full.
    """
    written = _Written()
    uri = storage.join(job.folder, job.name)
    with storage.building(uri + ".tar") as tar:
        with TarWriter(tar) as writer:
            for row, record in zip(_planned(job), gather(job.rows, job.files), strict=True):
                members = _members(row, record, job, written)
                offset, size = writer.add(row["key"], members)
                written.offset.append(offset)
                written.size.append(size)
        index, table = writer.index(), parquet_bytes(_table(job, written))
        num_bytes = tar.stat().st_size
    storage.write(uri + ".tar.idx", index)
    storage.write(uri + ".parquet", table)
    shard = Shard(
        name=f"{job.name}.tar",
        samples=job.rows.num_rows,
        bytes=num_bytes,
        sha256=writer.digest.hexdigest(),
        index_sha256=hashlib.sha256(index).hexdigest(),
        table=f"{job.name}.parquet",
        table_sha256=hashlib.sha256(table).hexdigest(),
        domains=_counts(job.rows.column("domain").to_pylist()),
        kinds=_counts(job.rows.column("kind").to_pylist()),
    )
    built = BuiltShard(shard=shard, images=_counts([name or "" for name in written.image_ext]))
    storage.create(job.commit_uri, canonical_json(built))
    return built.model_dump(mode="json")


def _planned(job: ShardJob) -> list[dict[str, Any]]:
    """Return what a sample's members say of each row, as plain values."""
    return cast(list[dict[str, Any]], job.rows.select([*MEMBER_COLUMNS, *job.scores]).to_pylist())


def _counts(values: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _members(row: dict[str, Any], record: RawRecord, job: ShardJob, written: _Written) -> list[tuple[str, bytes]]:
    """Return a sample's members, and say in `written` which picture it has."""
    image, source_sha256 = record.image, row["sha256"]
    if (None if image is None else blake3(image).digest()) != row["blake3"]:
        raise changed(row["src"], row["src_pos"])
    own = {
        "src": row["src"],
        "source_key": row["source_key"],
        "width": row["width"],
        "height": row["height"],
        "domain": row["domain"],
        "copy": row["copy"],
        "scores": {name: _short(row[name]) for name in job.scores if row[name] is not None},
    }
    sha256 = source_sha256
    if image is not None and job.encoding is not None:
        encoded = encode(image, job.encoding, job.limits)
        if encoded is not None:
            image, sha256 = encoded.data, hashlib.sha256(encoded.data).hexdigest()
            own |= {"width": encoded.width, "height": encoded.height, "source_sha256": source_sha256}
    meta = {f"source_{name}" if name in ("uid", "sightloom") else name: value for name, value in record.meta.items()}
    extension = None if image is None else EXTENSIONS[str(image_format(image))]
    members: list[tuple[str, bytes]] = [] if image is None else [(str(extension), image)]
    if row["kind"] == "pair":
        members.append(("txt", record.text.encode("utf-8")))
    members.append(("json", canonical_json({**meta, "uid": row["uid"].hex(), "sightloom": own})))
    written.image_ext.append(extension)
    written.width.append(own["width"])
    written.height.append(own["height"])
    written.sha256.append(sha256)
    return members


def _short(value: Any) -> Any:
    """Write a float32 with the digits that it has."""
    return float(str(np.float32(value))) if isinstance(value, float) and np.isfinite(value) else None


def _table(job: ShardJob, written: _Written) -> pa.Table:
    rows = job.rows
    columns: dict[str, Any] = {
        "key": rows.column("key"),
        "uid": rows.column("uid"),
        "offset": pa.array(written.offset, pa.int64()),
        "size": pa.array(written.size, pa.int64()),
        "image_ext": pa.array(written.image_ext, pa.string()),
        **{name: rows.column(name) for name in TABLE_COLUMNS},
        "width": pa.array(written.width, pa.int32()),
        "height": pa.array(written.height, pa.int32()),
        "sha256": pa.array(written.sha256, pa.string()),
        "has_preference": pa.array([kind == "preference" for kind in rows.column("kind").to_pylist()], pa.bool_()),
    }
    return pa.table(columns | {name: rows.column(name) for name in job.scores})
