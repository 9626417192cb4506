"""WebDataset tars: adjacent members that share the name up to its first dot are one record."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import pyarrow as pa

from sightloom import storage
from sightloom.data.sources.records import RawRecord, assemble, find
from sightloom.data.sources.tarstream import BrokenTar, Member, members_of, read_members

IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})
TEXTS = frozenset({"txt", "json"})
MAX_MEMBER = 64_000_000
DEFAULT_FIELDS = {"domain": "json.domain"}
_NAME = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]*)$")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@contextlib.contextmanager
def open_tar(uri: str) -> Iterator[BinaryIO]:
    """Open a plain or compressed tar as a stream."""
    compression = next((name for suffix, name in COMPRESSIONS.items() if uri.endswith(suffix)), None)
    with storage.open_read(uri) as raw:
        if compression is None:
            yield raw
        else:
            yield cast(BinaryIO, pa.CompressedInputStream(raw, compression))


def read_tar(uri: str, fields: dict[str, str]) -> Iterator[RawRecord]:
    """Yield the records of one tar in order; a broken tar ends in a record with the status `tar_truncated`."""
    addressable = not any(uri.endswith(suffix) for suffix in COMPRESSIONS)
    pos = 0
    incomplete: set[str] = set()
    group: list[Member] = []
    with open_tar(uri) as stream:
        members = read_members(stream, _wanted)
        while True:
            try:
                member = next(members, None)
            except (BrokenTar, OSError, EOFError) as error:
                complete = group and str(error).startswith("empty header")
                if complete:
                    yield parse_group(pos, group, fields, addressable)
                key = _split(group[0].name)[0] if group and not complete else ""
                yield RawRecord(pos + bool(complete), key, "tar_truncated", str(error))
                return
            if member is not None and member.folder:
                continue
            if group and (member is None or _starts_new(group, member)):
                record = parse_group(pos, group, fields, addressable)
                if record.status in ("missing_image", "missing_text"):
                    if record.key in incomplete:
                        record.status, record.detail = "split_key", "its members are not adjacent"
                    incomplete.add(record.key)
                yield record
                pos += 1
                group = []
            if member is None:
                return
            group.append(member)


def read_range(uri: str, offset: int, size: int, pos: int, fields: dict[str, str]) -> RawRecord:
    """Return the one record whose members fill a byte range."""
    return parse_range(storage.read_bytes(uri, offset, size), pos, fields)


def parse_range(data: bytes | memoryview, pos: int, fields: dict[str, str]) -> RawRecord:
    """Return the one record whose members fill `data`."""
    members = members_of(memoryview(data), _wanted) or list(read_members(io.BytesIO(data), _wanted, True))
    return parse_group(pos, members, fields, addressable=True)


def parse_group(pos: int, group: list[Member], fields: dict[str, str], addressable: bool) -> RawRecord:
    """Make a record of adjacent members."""
    key, _ = _split(group[0].name)
    record = RawRecord(pos, key)
    if addressable:
        record.offset, record.size = group[0].offset, group[-1].end - group[0].offset
    values: dict[str, Any] = {}
    image: bytes | None = None
    for member in group:
        if not member.regular or not _is_safe(member.name):
            record.refuse("unsafe_member", repr(member.name))
            continue
        extension = _split(member.name)[1].lower().rsplit(".", 1)[-1]
        if member.data is None:
            if member.size > MAX_MEMBER and (extension in IMAGES or extension in TEXTS):
                record.refuse("large_member", f"{member.name!r} has {member.size} bytes")
            continue
        if extension in IMAGES:
            image = member.data if image is None else image
        else:
            values[extension] = member.data
    if "json" in values:
        values["json"] = _parse_json(record, values["json"])
        record.meta = dict(values["json"])
        record.meta.pop("sightloom", None)
        record.meta.pop("uid", None)
    mapped = {**DEFAULT_FIELDS, **fields}
    if "messages" in record.meta and "record" not in fields:
        mapped["record"] = "json"
    text = find(values, mapped["text"]) if "text" in mapped else values.get("txt", record.meta.get("caption"))
    return assemble(record, values, mapped, image, text)


def _parse_json(record: RawRecord, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        record.refuse("invalid_record", f"json: not JSON: {error}")
        return {}
    return value if isinstance(value, dict) else {"json": value}


def _starts_new(group: list[Member], member: Member) -> bool:
    """Tell whether a member belongs to the next record: another key, or a repeated extension."""
    key, extension = _split(member.name)
    return key != _split(group[0].name)[0] or any(extension == _split(other.name)[1] for other in group)


def _split(name: str) -> tuple[str, str]:
    match = _NAME.match(name)
    return (match[1], match[2]) if match else (name, "")


def _is_safe(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/") and "\0" not in name


def _wanted(name: str, size: int) -> bool:
    extension = name.lower().rsplit(".", 1)[-1]
    return size <= MAX_MEMBER and (extension in IMAGES or extension in TEXTS) and _is_safe(name)
