"""A folder of images with captions.jsonl, captions.csv, or a .txt beside each image."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any

from sightloom import storage
from sightloom.data.sources.records import RawRecord, assemble, find
from sightloom.data.sources.webdataset import IMAGES
from sightloom.errors import SightloomError, UserMistake
from sightloom.storage import FileInfo

CAPTION_FILES = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")
DEFAULT_FIELDS = {"image": "file_name", "domain": "domain"}


def find_captions(uri: str) -> FileInfo:
    """Return the file that lists a folder's captions, or the folder itself where each image has its .txt.

    The folder's version is a digest of its listing, so that a changed file makes it another one.
    """
    files = storage.listing(uri)
    for name in CAPTION_FILES:
        for info in files:
            if info.uri.rsplit("/", 1)[-1] == name:
                return info
    texts = [info for info in files if info.uri.endswith(".txt")]
    images = [info for info in files if _extension(info.uri) in IMAGES]
    if not texts or not images:
        raise UserMistake(
            f"'{uri}' has neither captions.jsonl, captions.csv nor images with .txt files",
            'write captions.jsonl with a line {"file_name": …, "text": …} for each image',
        )
    facts = "\n".join(f"{info.uri} {info.size} {info.version}" for info in files)
    return FileInfo(uri.rstrip("/") + "/", sum(info.size for info in files), hashlib.sha256(facts.encode()).hexdigest())


def count_rows(uri: str) -> int:
    """Return how many records `read_folder` will yield; no picture is opened."""
    if uri.endswith("/"):
        return sum(_extension(info.uri) in IMAGES for info in storage.listing(uri))
    return sum(1 for _ in _rows(uri))


def read_folder(uri: str, fields: dict[str, str], positions: frozenset[int] | None = None) -> Iterator[RawRecord]:
    """Yield one record a caption, in the captions' order; only those at `positions` where these are given."""
    folder = uri.rsplit("/", 1)[0]
    mapped = {**DEFAULT_FIELDS, **fields}
    for pos, row in enumerate(_rows(uri)):
        if positions is not None and pos not in positions:
            continue
        if isinstance(row, str):
            yield RawRecord(pos, "", "invalid_record", row)
            continue
        name = find(row, mapped["image"])
        record = RawRecord(pos, str(name or pos))
        record.meta = {key: value for key, value in row.items() if key not in ("text", "caption", mapped["image"])}
        image = None
        if not isinstance(name, str) or not name or name.startswith("/") or ".." in name.split("/"):
            record.refuse("unsafe_member" if name else "missing_image", repr(name))
        else:
            image = _read_image(record, storage.join(folder, name))
        text = find(row, mapped["text"]) if "text" in mapped else row.get("text", row.get("caption"))
        yield assemble(record, row, mapped, image, text)


def _read_image(record: RawRecord, uri: str) -> bytes | None:
    try:
        return storage.read_bytes(uri)
    except (SightloomError, OSError) as error:
        record.refuse("missing_image", str(error).splitlines()[0])
        return None


def _rows(uri: str) -> Iterator[dict[str, Any] | str]:
    """Yield the captions' rows, or what is wrong with one."""
    if uri.endswith("/"):
        files = {info.uri.rsplit("/", 1)[-1] for info in storage.listing(uri)}
        for name in sorted(files):
            if _extension(name) in IMAGES:
                beside = name.rsplit(".", 1)[0] + ".txt"
                text = storage.read_bytes(storage.join(uri, beside)) if beside in files else None
                yield {"file_name": name, "text": text}
        return
    captions = storage.read_bytes(uri).decode("utf-8-sig", "surrogateescape")
    if uri.endswith(".csv"):
        for cells in csv.DictReader(io.StringIO(captions, newline="")):
            yield {name: cell for name, cell in cells.items() if isinstance(name, str)}
        return
    for line in captions.split("\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield f"not JSON: {error}"
            continue
        yield row if isinstance(row, dict) else "not an object"


def _extension(uri: str) -> str:
    return uri.lower().rsplit(".", 1)[-1]
