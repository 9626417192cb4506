"""Files anywhere: local paths and fsspec addresses (`s3://…`) behind a few verbs that never leave half a file.

Local writes go aside, are synced and linked or renamed into place. On object stores a put is atomic by itself;
create-only puts use the store's own conditional put (`If-None-Match`).
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from sightloom.errors import SightloomError, UserMistake
from sightloom.storage.addresses import explained, filesystem, is_local, local_path, remote
from sightloom.storage.listings import FileInfo, folders, listing, names, walk
from sightloom.storage.retries import SteadyFile, create_remote, steady

__all__ = [
    "FileInfo",
    "building",
    "create",
    "delete",
    "ensure_exclusive",
    "ensure_writable",
    "exists",
    "filesystem",
    "folders",
    "is_local",
    "join",
    "listing",
    "local_copy",
    "local_path",
    "make_folder",
    "names",
    "open_read",
    "put_file",
    "read_bytes",
    "read_json",
    "read_text",
    "sha256_file",
    "size",
    "walk",
    "write",
]

_COPY_BYTES = 1 << 20


def join(uri: str, *parts: str) -> str:
    """Join path parts below an address."""
    return "/".join([uri.rstrip("/") or "/", *(part.strip("/") for part in parts)])


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    if is_local(uri):
        return local_path(uri).exists()
    fs, path = remote(uri)
    fs.invalidate_cache()
    with explained(uri):
        return bool(steady(fs.exists, path))


def size(uri: str) -> int:
    """Size in bytes; raises UserMistake where there is no file."""
    with explained(uri):
        if is_local(uri):
            return local_path(uri).stat().st_size
        fs, path = remote(uri)
        return int(steady(fs.size, path))


def read_bytes(uri: str, offset: int = 0, length: int | None = None) -> bytes:
    """Read a file or a range of it (one ranged GET on object stores)."""
    with explained(uri):
        if is_local(uri):
            with open(local_path(uri), "rb") as file:
                file.seek(offset)
                return file.read(-1 if length is None else length)
        fs, path = remote(uri)
        end = None if length is None else offset + length
        return bytes(steady(fs.cat_file, path, start=offset or None, end=end))


def read_text(uri: str) -> str:
    """Read a UTF-8 text."""
    return read_bytes(uri).decode("utf-8")


def read_json(uri: str) -> Any:
    """Read a JSON file; raises UserMistake when it is none."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise UserMistake(f"'{uri}' is not valid JSON: {error}") from error


def open_read(uri: str) -> BinaryIO:
    """Open a file for (streamed, seekable) reading; a remote one is opened again where a read failed."""
    with explained(uri):
        if is_local(uri):
            return open(local_path(uri), "rb")
        fs, path = remote(uri)
        length = steady(fs.size, path)
        if length is None:  # a server that does not say how long its answer is
            return cast(BinaryIO, fs.open(path, "rb"))
        return cast(BinaryIO, io.BufferedReader(SteadyFile(uri, length, lambda: fs.open(path, "rb")), _COPY_BYTES))


def create(uri: str, data: bytes) -> bool:
    """Write a new file whole and durable, or leave an existing one untouched.

    Returns:
        True if this call made the file, False if it was there already: of many writers exactly one sees True.
    """
    with explained(uri):
        if not is_local(uri):
            return create_remote(*remote(uri), data)
        target = local_path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _aside(target) as aside:
            _write_synced(aside, data)
            try:
                os.link(aside, target)
            except FileExistsError:
                return False
        _sync_folder(target.parent)
        return True


def write(uri: str, data: bytes) -> None:
    """Write or replace a file atomically."""
    with explained(uri):
        if not is_local(uri):
            fs, path = remote(uri)
            steady(fs.pipe_file, path, data)
            return
        target = local_path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _aside(target) as aside:
            _write_synced(aside, data)
            os.replace(aside, target)


def put_file(local: Path, uri: str) -> None:
    """Publish a finished local file at `uri`, atomically, and compare the size that arrived."""
    expected = local.stat().st_size
    with explained(uri):
        if is_local(uri):
            target = local_path(uri)
            target.parent.mkdir(parents=True, exist_ok=True)
            with _aside(target) as aside:
                shutil.copyfile(local, aside)
                with open(aside, "rb+") as file:
                    os.fsync(file.fileno())
                os.replace(aside, target)
        else:
            fs, path = remote(uri)
            steady(fs.put_file, str(local), path)
            fs.invalidate_cache()
        arrived = size(uri)
    if arrived != expected:
        raise SightloomError(f"'{uri}' has {arrived} bytes after the upload of {expected}", "run the command again")


@contextlib.contextmanager
def building(uri: str) -> Iterator[Path]:
    """A local path to build a new file at; published whole at `uri` when the block ends without an error."""
    if not is_local(uri):
        with tempfile.TemporaryDirectory(prefix="sightloom-build-") as scratch, explained(scratch):
            path = Path(scratch) / uri.rsplit("/", 1)[-1]
            yield path
            put_file(path, uri)
        return
    target = local_path(uri)
    with explained(uri):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _aside(target) as aside:
            yield aside
            with open(aside, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(aside, target)


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A local path with the file's content: the file itself, or a temporary download."""
    if is_local(uri):
        size(uri)
        yield local_path(uri)
        return
    with tempfile.TemporaryDirectory() as folder, explained(uri):
        target = Path(folder) / uri.rstrip("/").rsplit("/", 1)[-1]
        fs, path = remote(uri)
        steady(fs.get_file, path, str(target))
        yield target


def delete(uri: str) -> None:
    """Delete a file or a folder with all that is in it; nothing there is no error."""
    if is_local(uri):
        target = local_path(uri)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        return
    fs, path = remote(uri)
    with contextlib.suppress(FileNotFoundError):
        steady(fs.rm, path, recursive=True)


def make_folder(uri: str) -> None:
    """Make a local folder and its parents (object stores have none)."""
    if is_local(uri):
        with explained(uri):
            local_path(uri).mkdir(parents=True, exist_ok=True)


def ensure_writable(uri: str, free_bytes: int = 0) -> None:
    """Prove that a folder can be written before any work is done.

    Args:
        uri: the folder; made if it is missing.
        free_bytes: what must be free on a local disk.

    Raises:
        UserMistake: it cannot be written, or has too little space; the message says which.
    """
    probe = join(uri, f".sightloom-probe-{uuid.uuid4().hex[:12]}")
    write(probe, b"probe")
    delete(probe)
    if is_local(uri) and free_bytes:
        free = shutil.disk_usage(local_path(uri)).free
        if free < free_bytes:
            raise UserMistake(
                f"'{uri}' has {free / 1e9:.1f} GB of free space, {free_bytes / 1e9:.1f} GB are needed",
                "free some space or choose another folder",
            )


def ensure_exclusive(uri: str) -> None:
    """Prove that a store knows create-only puts, which keep two writers apart; UserMistake where it does not."""
    if is_local(uri):
        return  # a hard link is exclusive on every local file system
    probe = join(uri, f".sightloom-probe-{uuid.uuid4().hex[:12]}")
    create(probe, b"one")
    second = create(probe, b"two")
    delete(probe)
    if second:
        raise UserMistake(
            f"the store of '{uri}' has no conditional put: two runs could overwrite each other's commits",
            "give --single-writer if nobody else writes there",
        )


def sha256_file(source: str | Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    hasher = hashlib.sha256()
    with open_read(str(source)) as file:
        while block := file.read(_COPY_BYTES):
            hasher.update(block)
    return hasher.hexdigest()


@contextlib.contextmanager
def _aside(target: Path) -> Iterator[Path]:
    aside = target.parent / f".{target.name}.{uuid.uuid4().hex[:12]}"
    try:
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
