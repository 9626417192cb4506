"""Decoding in a child process: whether a picture kills what decodes it. Used on chunks whose measuring died.

The child gets pictures through its standard input (8 bytes of length, then the bytes) and answers one byte for each; it
is started again after it died.
"""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import BinaryIO

from sightloom.data.measure import Pictures, look
from sightloom.data.signals.config import DecodeLimits
from sightloom.data.signals.crops import CropSpec

PATIENCE_S = 120.0
_LENGTH = struct.Struct(">Q")
_FINE, _RAISED = b"k", b"e"


class Probe:
    """Says of each picture why it must not be decoded in this process, if it must not."""

    def __init__(self, limits: DecodeLimits, crops: Sequence[CropSpec]) -> None:
        self._setup = pickle.dumps((limits, tuple(crops)))
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def __call__(self, data: bytes) -> str | None:
        """Return None for a picture that can be looked at, or that is refused in the ordinary way."""
        child = self._child or self._start()
        watch = threading.Timer(PATIENCE_S, child.kill)
        watch.start()
        try:
            answer = _ask(child, data)
        finally:
            watch.cancel()
        if answer == _FINE:
            return None
        if answer == _RAISED:
            return "decoding it raised an unforeseen error"
        code = child.wait()
        self._end()
        return f"decoding it ended the process (exit code {code})"

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "sightloom.data.probe"]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        _ask(self._child, self._setup)
        return self._child

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def _ask(child: subprocess.Popen[bytes], data: bytes) -> bytes:
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(_LENGTH.pack(len(data)) + data)
        child.stdin.flush()
    except BrokenPipeError:
        return b""
    return child.stdout.read(1)


def _answer(source: BinaryIO, sink: BinaryIO) -> None:
    """The child: look at one picture after another until the input ends."""
    setup: tuple[DecodeLimits, tuple[CropSpec, ...]] | None = None
    while head := source.read(_LENGTH.size):
        data = source.read(_LENGTH.unpack(head)[0])
        answer = _FINE
        if setup is None:
            setup = pickle.loads(data)  # from the parent, before any picture
        else:
            try:
                look(data, setup[0], Pictures(), setup[1])
            except Exception:  # noqa: BLE001 - whatever a decoder raises is what this child is here to find out
                answer = _RAISED
        sink.write(answer)
        sink.flush()


if __name__ == "__main__":
    _answer(sys.stdin.buffer, sys.stdout.buffer)
