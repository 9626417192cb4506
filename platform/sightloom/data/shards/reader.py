"""Reading shards back: their tables, one sample by one range read, and what a sample means.

A sample is `<uid>.<image ext>`, `<uid>.txt` (pairs) and `<uid>.json`, adjacent in the tar; `offset` and `size` of the
shard table cover all of it with its headers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sightloom import storage
from sightloom.data.shards.manifest import Manifest
from sightloom.errors import SightloomError, UserMistake
from sightloom.records import Conversation, Kind, Pair

IMAGE_EXTENSIONS = ("jpg", "png", "webp", "gif", "bmp", "tif")
BLOCK = 512


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a shard: the image's own bytes and the dialogue (a pair answers the caption prompt)."""

    uid: str
    kind: Kind
    conversation: Conversation
    image: bytes | None
    text: str | None
    meta: dict[str, Any]


def read_table(manifest: Manifest, columns: Sequence[str] | None = None) -> pa.Table:
    """Read all shard tables as one, in shard and tar order, with the shard's number as int32 column `shard`.

    Raises UserMistake naming missing columns and the ones there are.
    """
    tables = []
    for number in range(len(manifest.shards)):
        with storage.open_read(manifest.table_uri(number)) as file:
            parquet = pq.ParquetFile(file)
            missing = sorted(set(columns or ()) - set(parquet.schema_arrow.names) - {"shard"})
            if missing:
                raise UserMistake(
                    f"the shards of '{manifest.uri}' have no column {', '.join(repr(name) for name in missing)}",
                    f"have: {', '.join(parquet.schema_arrow.names)}",
                )
            table = parquet.read(columns=None if columns is None else [name for name in columns if name != "shard"])
        tables.append(table.append_column("shard", pa.array([number] * table.num_rows, pa.int32())))
    if not tables:
        raise UserMistake(f"'{manifest.uri}' lists no shards", "nothing was kept; see the report's funnel")
    return pa.concat_tables(tables, promote_options="default")


class SampleReader:
    """Fetches samples by (shard, offset, size); open files are kept, and are not carried to other processes."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._descriptors: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"manifest": self.manifest, "_descriptors": {}}

    def fetch(self, shard: int, offset: int, size: int) -> dict[str, bytes]:
        """Return the members of one sample by extension, such as `png`, `txt` and `json`."""
        uri = self.manifest.tar_uri(shard)
        if storage.is_local(uri):
            if shard not in self._descriptors:
                with storage.open_read(uri) as file:
                    self._descriptors[shard] = os.dup(file.fileno())
            data = os.pread(self._descriptors[shard], size, offset)
        else:
            data = storage.read_bytes(uri, offset, size)
        if len(data) != size:
            raise SightloomError(f"'{uri}' ends inside the sample at byte {offset}", "run `sightloom verify` on it")
        return split_members(data, uri, offset)

    def read(self, shard: int, offset: int, size: int) -> Sample:
        """Return one sample, parsed."""
        return parse_sample(self.fetch(shard, offset, size))

    def close(self) -> None:
        """Close all files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


def split_members(data: bytes, origin: str, offset: int) -> dict[str, bytes]:
    """Split the bytes of one sample (our own USTAR, so fixed fields) into its members by extension."""
    members: dict[str, bytes] = {}
    position = 0
    while position + BLOCK <= len(data):
        header = data[position : position + BLOCK]
        if header[257:262] != b"ustar":
            raise SightloomError(f"no tar header at byte {offset + position} of '{origin}'", "run `sightloom verify`")
        name = header[:100].rstrip(b"\0").decode("ascii")
        length = int(header[124:135], 8)
        members[name.split(".", 1)[1]] = data[position + BLOCK : position + BLOCK + length]
        position += BLOCK + (length + BLOCK - 1) // BLOCK * BLOCK
    return members


def parse_sample(members: dict[str, bytes]) -> Sample:
    """Read a sample's members: a pair (with `txt`) or a record in its `json`."""
    meta = json.loads(members["json"])
    image = next((members[extension] for extension in IMAGE_EXTENSIONS if extension in members), None)
    uid = str(meta["uid"])
    if "txt" in members:
        text = members["txt"].decode("utf-8")
        conversation = Pair(text, str(meta["sightloom"]["domain"])).as_conversation(uid)
        return Sample(uid, "pair", conversation, image, text, meta)
    conversation = Conversation.from_json(
        {name: value for name, value in meta.items() if name not in ("uid", "sightloom")}
    )
    return Sample(uid, conversation.kind, conversation, image, None, meta)
