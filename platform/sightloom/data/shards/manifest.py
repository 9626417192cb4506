"""The manifest: what a set of shards holds, where it came from, and the checksums that prove it."""

from __future__ import annotations

from typing import Any

import pydantic

from sightloom import storage
from sightloom.config import Frozen, digest, validate
from sightloom.errors import UserMistake

FORMAT = "sightloom.shards/1"


class Shard(Frozen):
    """One tar with its index and table; all three lie beside the manifest."""

    name: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str
    table: str
    table_sha256: str
    domains: dict[str, int]
    kinds: dict[str, int]


class BuiltShard(Frozen):
    """What a shard's commit holds: its line in the manifest, and its samples by image extension (none: "")."""

    shard: Shard
    images: dict[str, int]


class File(Frozen):
    """A file beside the shards, for other readers; `name` is its path below the manifest's folder."""

    name: str
    sha256: str


class Totals(Frozen):
    """What became of every row that went in: rows_in == kept + sum(dropped) + failed."""

    rows_in: int
    kept: int
    dropped: dict[str, int]
    failed: int
    samples: int
    bytes: int
    domains: dict[str, int]


class Manifest(Frozen):
    """The last file to be written: shards without it are not finished. It holds no clock times."""

    format: str
    name: str
    code: dict[str, str | None]
    recipe: dict[str, Any]
    shards: tuple[Shard, ...]
    totals: Totals
    columns: dict[str, dict[str, str]]
    decontaminated: tuple[dict[str, Any], ...] = ()
    scorers: tuple[dict[str, Any], ...] = ()
    sources: tuple[dict[str, Any], ...] = ()
    fingerprints: dict[str, Any]
    files: tuple[File, ...] = ()
    digest: str = ""
    uri: str = pydantic.Field(default="", exclude=True)

    @property
    def folder(self) -> str:
        """The address of the folder that holds manifest and shards."""
        return self.uri.rsplit("/", 1)[0]

    def tar_uri(self, shard: int) -> str:
        """The address of a shard's tar."""
        return storage.join(self.folder, self.shards[shard].name)

    def table_uri(self, shard: int) -> str:
        """The address of a shard's table."""
        return storage.join(self.folder, self.shards[shard].table)

    def content_digest(self) -> str:
        """SHA-256 of the canonical JSON of all but `digest` itself."""
        return digest(self.model_dump(mode="json", exclude={"digest"}))


def read_manifest(uri: str) -> Manifest:
    """Read a manifest by its address or its folder's; UserMistake if it is missing, damaged or of another format."""
    address = uri if uri.endswith(".json") else storage.join(uri, "manifest.json")
    data = storage.read_json(address)
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise UserMistake(
            f"'{address}' is not a shard manifest (format {found!r}, expected '{FORMAT}')",
            "give the manifest.json that `sightloom curate` printed",
        )
    manifest = validate(Manifest, {**data, "uri": address}, address)
    if manifest.content_digest() != manifest.digest:
        raise UserMistake(
            f"'{address}' does not match its own digest: it was edited or damaged", "curate again, with --replace"
        )
    return manifest
