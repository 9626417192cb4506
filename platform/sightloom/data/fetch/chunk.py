"""Fetching one chunk of URLs: its pictures into a tar, a status row for each URL, then the commit."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import json
import tempfile
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sightloom import storage
from sightloom.config import canonical_json
from sightloom.data.decode import EXTENSIONS, image_format
from sightloom.data.fetch.client import OK, Client, Outcome
from sightloom.data.fetch.resize import resize
from sightloom.data.fetch.robots import Robots
from sightloom.data.fetch.slots import LEASE_S, HostSlots, Leases, Places
from sightloom.data.ledger import parquet_bytes
from sightloom.data.shards.tarfiles import header
from sightloom.data.sources.config import FetchConfig
from sightloom.data.sources.parquet import plain_json
from sightloom.storage.addresses import explained

TAR_BLOCK = 512
IN_MEMORY = 256_000_000  # bytes of fetched pictures that one task holds; more go to its disk


@dataclass(frozen=True)
class FetchJob:
    """URLs of one chunk: rows with row, url, text, sha256 and the other columns (`rest`).

    `replaced` counts the statuses of these rows in the generation before.
    """

    chunk: str
    last: bool
    rows: list[dict[str, Any]]
    config: FetchConfig
    folder: str
    robots: str
    replaced: dict[str, int]
    slots: HostSlots | None = None


def commit_path(folder: str, chunk: str, last: bool) -> str:
    """Return the address of a fetched chunk's commit."""
    return storage.join(folder, "commit", chunk + (".last.json" if last else ".json"))


def fetch_chunk(job: FetchJob) -> dict[str, int]:
    """Fetch one chunk's URLs; write its tar and its status table, then commit. Returns rows by status."""
    attempt = uuid.uuid4().hex[:8]
    name = f"{job.chunk}-{attempt}"
    with tempfile.TemporaryDirectory(prefix="sightloom-fetch-") as scratch, explained(scratch):
        found = asyncio.run(_fetch_all(job, Path(scratch)))
        tar = Path(scratch) / "chunk.tar"
        content = _write_tar(tar, job, found)
        table = parquet_bytes(_table(job, found))
        tar_uri = storage.join(job.folder, "tar", f"{name}.tar")
        table_uri = storage.join(job.folder, "status", f"{name}.parquet")
        storage.put_file(tar, tar_uri)
        size = tar.stat().st_size
    storage.write(table_uri, table)
    status = dict(sorted(Counter(fetched.outcome.status for fetched in found).items()))
    facts = {"status": status, "replaced": job.replaced, "tar": tar_uri, "bytes": size, "sha256": content}
    commit = {"chunk": job.chunk, "last": job.last, "attempt": attempt, "table": table_uri, **facts}
    if not storage.create(commit_path(job.folder, job.chunk, job.last), canonical_json(commit)):
        winner = storage.read_json(commit_path(job.folder, job.chunk, job.last))
        if winner["attempt"] != attempt:  # another run was first: what it fetched counts
            storage.delete(tar_uri)
            storage.delete(table_uri)
    return status


@dataclass(frozen=True, slots=True)
class _Fetched:
    """One URL's outcome; its picture is in memory or in a file."""

    outcome: Outcome
    size: int
    extension: str
    file: Path | None

    def data(self) -> bytes:
        return self.file.read_bytes() if self.file is not None else self.outcome.data or b""


async def _fetch_all(job: FetchJob, scratch: Path) -> list[_Fetched]:
    robots = Robots(job.robots, datetime.datetime.now(datetime.UTC).date()) if job.config.robots else None
    gate = asyncio.Semaphore(job.config.at_once)
    held = 0
    slots = job.slots or Places(job.config.per_host, LEASE_S + 2 * job.config.total_s)
    async with Leases(slots) as leases, Client(job.config, leases, robots) as client:

        async def one(row: dict[str, Any]) -> _Fetched:
            nonlocal held
            async with gate:
                outcome = await client.fetch(row["url"], row.get("sha256"))
                if outcome.data is None:
                    return _Fetched(outcome, 0, "", None)
                data = outcome.data
                if job.config.resize is not None:
                    data = await asyncio.to_thread(resize, data, job.config.resize)
                extension = EXTENSIONS[str(image_format(data))]
                held += len(data)
                if held <= IN_MEMORY:
                    return _Fetched(Outcome(OK, data=data), len(data), extension, None)
                file = scratch / f"{row['row']}"
                await asyncio.to_thread(file.write_bytes, data)
                return _Fetched(Outcome(OK), len(data), extension, file)

        return list(await asyncio.gather(*(one(row) for row in job.rows)))


def _write_tar(path: Path, job: FetchJob, found: list[_Fetched]) -> str:
    """Write what was fetched, in the list's order; return the tar's SHA-256."""
    hasher = hashlib.sha256()
    with open(path, "wb") as file:

        def put(data: bytes) -> None:
            file.write(data)
            hasher.update(data)

        for row, fetched in zip(job.rows, found, strict=True):
            if fetched.outcome.status != OK:
                continue
            meta = {**json.loads(plain_json(row["rest"])), "url": row["url"]}
            text = row["text"] if row["text"] is not None else ""
            members = [(fetched.extension, fetched.data()), ("txt", str(text).encode()), ("json", canonical_json(meta))]
            for extension, data in members:
                put(header(f"{row['row']:06d}.{extension}", len(data)) + data + bytes(-len(data) % TAR_BLOCK))
        put(bytes(2 * TAR_BLOCK))
    return hasher.hexdigest()


def _table(job: FetchJob, found: list[_Fetched]) -> pa.Table:
    """Return a row for every URL: its place in the chunk, what became of it, and why."""
    return pa.table(
        {
            "row": pa.array([row["row"] for row in job.rows], pa.int32()),
            "url": pa.array([row["url"] if isinstance(row["url"], str) else None for row in job.rows], pa.string()),
            "status": pa.array([fetched.outcome.status for fetched in found], pa.string()),
            "detail": pa.array([fetched.outcome.detail[:300] for fetched in found], pa.string()),
            "bytes": pa.array([fetched.size for fetched in found], pa.int64()),
        }
    )
