"""Addresses: local paths and fsspec URIs, and failures of file systems said in a person's words."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from sightloom.errors import SightloomError, UserMistake


def is_local(uri: str) -> bool:
    """Whether `uri` is a plain path or a `file://` address."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> Path:
    """The path of a local address."""
    return Path(uri.removeprefix("file://"))


def remote(uri: str) -> tuple[Any, str]:
    try:
        fs, path = url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise UserMistake(
            f"'{uri}' cannot be reached: {error}", "supported: local paths, s3:// and fsspec's"
        ) from error
    return fs, str(path)


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system of an address and the path in it, for readers (pyarrow, webdataset) that take these."""
    if is_local(uri):
        return fsspec.filesystem("file"), str(local_path(uri))
    return remote(uri)


_REASONS = {
    errno.ENOSPC: ("no space is left on the disk", "free some space and run it again: finished parts are kept"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run it again: finished parts are kept"),
    errno.EROFS: ("the file system is read-only", "choose another folder"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another folder"),
    errno.EISDIR: ("it is a folder, not a file", "give a file"),
}


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what the file system says into what, where and what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserMistake(f"nothing at '{uri}'", "check the path") from error
    except PermissionError as error:
        raise UserMistake(
            f"no permission for '{uri}'", "check its owner and mode, or the store's credentials"
        ) from error
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        what, todo = _REASONS[error.errno]
        kind = SightloomError if error.errno in (errno.ENOSPC, errno.EDQUOT) else UserMistake
        raise kind(f"'{uri}': {what}", todo) from error
