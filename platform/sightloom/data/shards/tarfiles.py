"""Writing tars that are equal byte for byte whenever their content is: USTAR, no names, no times."""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
import tarfile
from pathlib import Path
from types import TracebackType

import numpy as np

BLOCK = 512
RECORD = 10_240
BATCH = 512 << 10  # bytes that are hashed and written at once (a whole sample at least): still in the cache then
SMALL = 16_384  # parts below are joined with their neighbours
# The kernel begins to write this many bytes to the disk while the next ones are hashed, so that the sync at the end is
# short. It does so when told that they are not needed soon; being dirty, they stay in memory.
WRITE_BACK = 8_000_000
# Type, link name, magic, version, owner names, device numbers, prefix and padding: the same in every header.
REST = b"0" + bytes(100) + b"ustar\x0000" + bytes(64 + 16 + 155 + 12)
REST_SUM = sum(REST)


def header(name: str, size: int) -> bytes:
    """Return a USTAR header: mode 0644, owner 0, time 0; equal to what `tarfile` writes, twenty times faster."""
    encoded = name.encode("utf-8")
    if len(encoded) > 100 or size >= 8**11:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, 0o644, 0
        return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    front = encoded.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"%011o\0" % 0
    checksum = sum(front.translate(None, b"\0")) + REST_SUM + 8 * ord(" ")
    return front + b"%06o\0 " % checksum + REST


class TarWriter:
    """Writes samples one after another and remembers where each begins.

    What was added is hashed and written some samples later, so an error of the disk is raised by a later `add`, or at
    the end. `digest` is the whole file's once the block has ended. There is no second thread for it: tasks run on every
    core already, and handing batches over costs a fifth more CPU than it hides.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offsets: list[int] = [0]
        self.digest = hashlib.sha256()
        self._parts: list[bytes] = []
        self._written = self._on_its_way = 0
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - closed by __exit__; batches are large enough

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                end = self.offsets[-1]
                self._parts.append(bytes((end + 2 * BLOCK + RECORD - 1) // RECORD * RECORD - end))
                self._write()
        finally:
            self._file.close()

    def add(self, key: str, members: list[tuple[str, bytes]]) -> tuple[int, int]:
        """Add one sample's members, given as (extension, content); return its offset and size."""
        size = 0
        for extension, data in members:
            parts = (header(f"{key}.{extension}", len(data)), data, bytes(-len(data) % BLOCK))
            size += sum(map(len, parts))
            self._parts += parts
        offset = self.offsets[-1]
        self.offsets.append(offset + size)
        if offset + size - self._written >= BATCH:
            self._write()
        return offset, size

    def index(self) -> bytes:
        """Return the index: little-endian uint64 offsets of the samples, then the last one's end."""
        return np.asarray(self.offsets, "<u8").tobytes()

    def _write(self) -> None:
        """Hash and write what was added; large parts as they are, not copied to stand beside their headers."""
        parts, self._parts = self._parts, []
        buffers: list[bytes] = []
        for small, run in itertools.groupby(parts, key=lambda part: len(part) < SMALL):
            together = list(run)
            buffers += [b"".join(together)] if small else together
        for buffer in buffers:
            self.digest.update(buffer)
        missing = sum(map(len, buffers)) - os.writev(self._file.fileno(), buffers)
        if missing:  # a full disk, or more than one call takes
            rest = memoryview(b"".join(buffers))[-missing:]
            while rest:
                rest = rest[os.write(self._file.fileno(), rest) :]
        self._written += sum(map(len, buffers))
        if sys.platform == "linux" and self._written - self._on_its_way >= WRITE_BACK:
            fresh = self._written - self._on_its_way
            os.posix_fadvise(self._file.fileno(), self._on_its_way, fresh, os.POSIX_FADV_DONTNEED)
            self._on_its_way = self._written
