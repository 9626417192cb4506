"""Trying again what may pass: resets, time-outs, a busy store; and conditional puts whose answer was lost."""

import errno
import io
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from sightloom.errors import SightloomError

TRIES = 6
FIRST_WAIT_S, LAST_WAIT_S = 0.5, 16.0
_BUSY = frozenset({"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "500", "502",
                   "503", "504"})  # fmt: skip
_CONFLICT = frozenset({"ConditionalRequestConflict", "OperationAborted", "409"})
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
Result = TypeVar("Result")


def steady(function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Call a remote operation that may be repeated; wait 0.5 s to 16 s, with jitter, between at most six tries."""
    for attempt in range(TRIES):
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if attempt + 1 == TRIES or not is_passing(error):
                raise
            wait(attempt)
    raise AssertionError("unreachable")


def wait(attempt: int) -> None:
    """Sleep before the next try: exponential with jitter."""
    time.sleep(min(LAST_WAIT_S, FIRST_WAIT_S * 2**attempt) * (0.5 + random.random() / 2))


def is_passing(error: BaseException) -> bool:
    """Whether a failure of a remote store may pass by itself."""
    if isinstance(error, _FINAL):
        return False
    if _code(error) in _BUSY | _CONFLICT or isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno == errno.EIO and not _code(error):
        return True
    return type(error).__module__.split(".")[0] in ("botocore", "aiohttp", "urllib3") and not _code(error)


def create_remote(fs: Any, path: str, data: bytes) -> bool:
    """Put an object only if there is none; False where there was one (perhaps ours, if only the answer was lost)."""
    for attempt in range(TRIES):
        try:
            fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except Exception as error:
            if _code(error) in ("PreconditionFailed", "412"):
                return False
            if attempt + 1 == TRIES or not is_passing(error):
                raise
            wait(attempt)
        else:
            return True
    raise AssertionError("unreachable")


def _code(error: BaseException) -> str:
    """The store's own code of an error, looked up through its causes."""
    current: BaseException | None = error
    while current is not None:
        response = getattr(current, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Code", ""))
        current = current.__cause__
    return ""


class SteadyFile(io.RawIOBase):
    """A remote file that is opened again, at the same place, when a read fails in a way that may pass.

    Giving up is a SightloomError: a lost connection must not look like the end of a broken file.
    """

    def __init__(self, uri: str, length: int, reopen: Callable[[], Any]) -> None:
        self._uri, self._size, self._reopen = uri, length, reopen
        self._file = steady(reopen)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        data = self._read(wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _read(self, wanted: int) -> bytes:
        for attempt in range(TRIES):
            try:
                self._file.seek(self._position)
                data = bytes(self._file.read(wanted))
                if data:
                    return data
                reason: BaseException = EOFError("no bytes came")
            except Exception as error:
                if not is_passing(error) or attempt + 1 == TRIES:
                    raise SightloomError(
                        f"'{self._uri}' cannot be read at byte {self._position}: {error}", "run the same command again"
                    ) from error
                reason = error
            wait(attempt)
            self._file = steady(self._reopen)
        raise SightloomError(f"'{self._uri}' cannot be read at byte {self._position}: {reason}", "run it again")
