"""Verifying shards: every checksum, count and key of a manifest, computed again from the files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sightloom import storage
from sightloom.data.shards.manifest import Manifest, Shard
from sightloom.data.shards.reader import SampleReader, read_table
from sightloom.errors import SightloomError
from sightloom.progress import Progress


@dataclass(frozen=True)
class Verification:
    """What was looked at, and everything that was wrong."""

    manifest: str
    shards: int
    samples: int
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return it as plain data."""
        return {
            "manifest": self.manifest,
            "shards": self.shards,
            "samples": self.samples,
            "problems": list(self.problems),
        }


def verify(manifest: Manifest, deep: bool, progress: Progress) -> Verification:
    """Check all files of a manifest; `deep` also reads every sample and hashes every picture."""
    problems: list[str] = []
    with progress.step("verify", total=len(manifest.shards), unit="shards") as step:
        for number, shard in enumerate(manifest.shards):
            problems += _check_files(manifest, number, shard)
            step.advance()
        for file in manifest.files:
            problems += _check_file(storage.join(manifest.folder, file.name), file.sha256)
    if not problems and manifest.shards:
        problems += _check_rows(manifest, deep)
    totals = manifest.totals
    if totals.rows_in != totals.kept + sum(totals.dropped.values()) + totals.failed:
        problems.append("the totals do not add up: rows_in is not kept + dropped + failed")
    if sum(shard.samples for shard in manifest.shards) != totals.samples:
        problems.append(f"the shards hold another number of samples than the totals say ({totals.samples})")
    if sum(shard.bytes for shard in manifest.shards) != totals.bytes:
        problems.append(f"the shards hold another number of bytes than the totals say ({totals.bytes})")
    return Verification(manifest.uri, len(manifest.shards), totals.samples, tuple(problems))


def _check_files(manifest: Manifest, number: int, shard: Shard) -> Iterator[str]:
    expected = (
        (manifest.tar_uri(number), shard.sha256),
        (manifest.tar_uri(number) + ".idx", shard.index_sha256),
        (manifest.table_uri(number), shard.table_sha256),
    )
    for uri, digest in expected:
        yield from _check_file(uri, digest)


def _check_file(uri: str, digest: str) -> Iterator[str]:
    try:
        if storage.sha256_file(uri) != digest:
            yield f"'{uri}' is not what was written: its SHA-256 differs"
    except SightloomError as error:
        yield error.message


def _check_rows(manifest: Manifest, deep: bool) -> list[str]:
    table = read_table(manifest, ["key", "uid", "offset", "size", "image_ext", "kind", "sha256"])
    problems = []
    keys = table.column("key").to_pylist()
    if len(set(keys)) != len(keys):
        problems.append("keys are not unique over all shards")
    for number, shard in enumerate(manifest.shards):
        rows = table.filter(pc.equal(table.column("shard"), number))
        index = np.frombuffer(storage.read_bytes(manifest.tar_uri(number) + ".idx"), "<u8")
        offsets = rows.column("offset").to_numpy()
        if rows.num_rows != shard.samples or not np.array_equal(index[:-1], offsets):
            problems.append(f"'{shard.table}' and the index of '{shard.name}' do not name the same samples")
    if deep and not problems:
        problems += _check_samples(manifest, table)
    return problems


def _check_samples(manifest: Manifest, table: pa.Table) -> Iterator[str]:
    reader = SampleReader(manifest)
    for row in table.to_pylist():
        try:
            members = reader.fetch(row["shard"], row["offset"], row["size"])
        except SightloomError as error:
            yield error.message
            continue
        wanted = {row["image_ext"], "txt" if row["kind"] == "pair" else None, "json"} - {None}
        if set(members) != wanted:
            yield f"the members of '{row['key']}' are {sorted(members)}, the table says {sorted(wanted)}"
            continue
        if row["image_ext"] and hashlib.sha256(members[row["image_ext"]]).hexdigest() != row["sha256"]:
            yield f"the picture of '{row['key']}' is not the one in the table"
        if json.loads(members["json"])["uid"] != row["uid"].hex():
            yield f"the record of '{row['key']}' is another's"
    reader.close()
