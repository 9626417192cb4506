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
PEEK_BYTES = 4 << 20
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
                cut = _split(error.member)[0] if isinstance(error, BrokenTar) and error.member else ""
                last = _split(group[0].name)[0] if group else ""
                complete = group and (str(error).startswith("empty header") or cut not in ("", last))
                if complete:
                    yield parse_group(pos, group, fields, addressable)
                key = cut if complete or not group else last
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


def peek(uri: str) -> float | None:
    """Return the bytes that a record takes at the beginning of a plain tar; None where that shows no whole record."""
    data = storage.read_bytes(uri, 0, PEEK_BYTES)
    starts: list[int] = []
    key: str | None = None
    end: int | None = None
    try:
        for member in read_members(io.BytesIO(data), lambda name, size: False):
            if _split(member.name)[0] != key:
                key = _split(member.name)[0]
                starts.append(member.offset)
            end = member.end
    except BrokenTar:  # it goes on after these bytes, perhaps in the middle of the last record
        if len(starts) > 1:
            return (starts[-1] - starts[0]) / (len(starts) - 1)
        return float(end) if end else None
    return len(data) / len(starts) if starts else None


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
    images: dict[str, bytes] = {}
    for member in group:
        if not member.regular or not _is_safe(member.name):
            record.refuse("unsafe_member", repr(member.name))
            continue
        whole = _split(member.name)[1].lower()
        extension = whole.rsplit(".", 1)[-1]
        if member.data is None:
            if member.size > MAX_MEMBER and (extension in IMAGES or extension in TEXTS):
                record.refuse("large_member", f"{member.name!r} has {member.size} bytes")
            continue
        if extension in IMAGES:
            images.setdefault(whole, member.data)
        elif whole == extension or extension not in values:  # `a.txt` says more about `a` than `a.draft.txt`
            values[extension] = member.data
    image = _one_image(record, images)
    if "json" in values:
        values["json"] = _parse_json(record, values["json"])
        record.meta = _without_ours(values["json"])
    mapped = {**DEFAULT_FIELDS, **fields}
    if "messages" in record.meta and "record" not in fields:
        mapped["record"] = "json"
    text = find(values, mapped["text"]) if "text" in mapped else values.get("txt", record.meta.get("caption"))
    return assemble(record, values, mapped, image, text)


def _one_image(record: RawRecord, images: dict[str, bytes]) -> bytes | None:
    """Return the picture that is named by its key alone, or the only one; several with dotted names are ambiguous."""
    plain = next((data for extension, data in images.items() if "." not in extension), None)
    if plain is None and len(images) > 1:
        record.refuse("multi_image", f"key {record.key!r} (a name up to its first dot) holds {', '.join(images)}")
        return None
    return plain if plain is not None else next(iter(images.values()), None)


def _parse_json(record: RawRecord, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        record.refuse("invalid_record", f"json: not JSON: {error}")
        return {}
    return value if isinstance(value, dict) else {"json": value}


def _without_ours(meta: dict[str, Any]) -> dict[str, Any]:
    """Leave out what packing adds, where the sample was packed by us: it is made anew. Others' `uid` is theirs."""
    own = meta.get("sightloom")
    packed = isinstance(own, dict) and {"src", "source_key", "scores"} <= own.keys()
    return {name: value for name, value in meta.items() if not packed or name not in ("uid", "sightloom")}


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
