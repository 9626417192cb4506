"""Listings of files: globs, number ranges, folders, single files."""

import glob
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sightloom.errors import UserMistake
from sightloom.storage.addresses import explained, is_local, local_path, remote
from sightloom.storage.retries import steady

_HEX = "0123456789abcdef"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of a listing; `version` is the ETag of an object or the mtime in ns of a local file."""

    uri: str
    size: int
    version: str


def listing(pattern: str) -> list[FileInfo]:
    """Files that match a glob or {000..012} range, one file's address, or all files directly in a folder; sorted.

    Raises:
        UserMistake: nothing is there.
    """
    found: dict[str, FileInfo] = {}
    for expanded in _expand(pattern):
        for info in _list_local(expanded) if is_local(expanded) else _list_remote(expanded):
            found[info.uri] = info
    if not found:
        raise UserMistake(f"no files at '{pattern}'", "check the path; globs and {000..012} ranges are understood")
    return [found[uri] for uri in sorted(found)]


def _expand(pattern: str) -> list[str]:
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last, width = int(match[1]), int(match[2]), len(match[1])
    if last < first or last - first > 1_000_000:
        raise UserMistake(f"the range {match[0]} in '{pattern}' is empty or too long")
    numbers = (f"{number:0{width}d}" for number in range(first, last + 1))
    return [rest for number in numbers for rest in _expand(pattern[: match.start()] + number + pattern[match.end() :])]


def _list_local(pattern: str) -> list[FileInfo]:
    path = local_path(pattern)
    if path.is_dir():
        candidates = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    elif path.exists():
        candidates = [path]
    else:
        candidates = [Path(name) for name in glob.glob(str(path), recursive=True)]
    stats = [(child, child.stat()) for child in candidates if child.is_file()]
    return [FileInfo(str(child), stat.st_size, str(stat.st_mtime_ns)) for child, stat in stats]


def _list_remote(pattern: str) -> list[FileInfo]:
    fs, path = remote(pattern)
    protocol = pattern.split("://", 1)[0]
    fs.invalidate_cache()
    with explained(pattern):
        if any(mark in path for mark in "*?["):
            details = steady(fs.glob, path, detail=True).values()
        else:
            try:
                details = steady(fs.ls, path, detail=True)
            except FileNotFoundError:
                return []
        return [
            FileInfo(f"{protocol}://{item['name']}", int(item["size"]), str(item.get("ETag", item.get("mtime", ""))))
            for item in details
            if item["type"] == "file"
        ]


def names(folder: str) -> list[str]:
    """Names of the files directly in a folder, in no order, none where there is no folder; files are not looked at.

    On S3 the names are listed in 16 ranges at once, by their first hex digit; all must begin with one.
    """
    if is_local(folder):
        path = local_path(folder)
        if not path.is_dir():
            return []
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_file() and not entry.name.startswith(".")]
    fs, place = remote(folder)
    fs.invalidate_cache()
    with explained(folder):
        if folder.startswith("s3://"):
            with ThreadPoolExecutor(len(_HEX)) as pool:
                ranges = list(pool.map(lambda digit: steady(fs.find, place, prefix=digit), _HEX))
        else:
            try:
                ranges = [steady(fs.ls, place, detail=False)]
            except FileNotFoundError:
                return []
    return [str(name).rsplit("/", 1)[-1] for found in ranges for name in found]


def folders(folder: str) -> list[str]:
    """Names of the folders directly in a folder, in no order; none where there is nothing."""
    if is_local(folder):
        path = local_path(folder)
        if not path.is_dir():
            return []
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    fs, place = remote(folder)
    fs.invalidate_cache()
    try:
        with explained(folder):
            found = steady(fs.ls, place, detail=True)
    except UserMistake:
        return []
    return [str(item["name"]).rstrip("/").rsplit("/", 1)[-1] for item in found if item["type"] == "directory"]


def walk(folder: str) -> Iterator[tuple[FileInfo, float]]:
    """Yield all files below a folder with their age's anchor, the time of change in seconds; hidden ones too."""
    if is_local(folder):
        for place, _, found in os.walk(local_path(folder)):
            for name in sorted(found):
                stat = os.stat(os.path.join(place, name))
                yield FileInfo(os.path.join(place, name), stat.st_size, str(stat.st_mtime_ns)), stat.st_mtime
        return
    fs, path = remote(folder)
    protocol = folder.split("://", 1)[0]
    fs.invalidate_cache()
    for item in steady(fs.find, path, detail=True).values():
        changed = item.get("LastModified", item.get("mtime"))
        seconds = changed.timestamp() if hasattr(changed, "timestamp") else float(changed or 0)
        yield FileInfo(f"{protocol}://{item['name']}", int(item["size"]), str(item.get("ETag", ""))), seconds
