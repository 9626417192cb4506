import errno
import hashlib
import io
import os
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightloom.data.shards.tarfiles import BATCH, TarWriter


def test_a_tar_of_many_batches_is_what_tarfile_writes_and_its_digest_is_the_files(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    sizes = [0, 1, 511, 512, 513, 16_383, 16_384, BATCH // 2, BATCH, 3 * BATCH + 7, *draw.integers(0, 90_000, 200)]
    samples = [(f"k{number}", draw.bytes(int(size)), b"words") for number, size in enumerate(sizes)]
    with TarWriter(tmp_path / "a.tar") as writer:
        places = [writer.add(key, [("jpg", data), ("txt", text)]) for key, data, text in samples]
    written = (tmp_path / "a.tar").read_bytes()
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, data, text in samples:
            for name, content in ((f"{key}.jpg", data), (f"{key}.txt", text)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    assert written == expected.getvalue()
    assert writer.digest.hexdigest() == hashlib.sha256(written).hexdigest()
    assert [offset for offset, _ in places] == writer.offsets[:-1]


@pytest.mark.parametrize("samples", [1, 3, 40])
def test_a_full_disk_is_an_error_however_far_behind_the_writing_is(
    samples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, buffers: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = threading.active_count()
    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(OSError, match="No space left"), TarWriter(tmp_path / "a.tar") as writer:
        for number in range(samples):
            writer.add(f"k{number}", [("jpg", bytes(BATCH // 2 + 1))])
    assert threading.active_count() == before


def test_a_short_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writev = os.writev
    monkeypatch.setattr(os, "writev", lambda descriptor, buffers: writev(descriptor, [b"".join(buffers)[:1000]]))
    with TarWriter(tmp_path / "a.tar") as writer:
        for number in range(5):
            writer.add(f"k{number}", [("jpg", bytes([number]) * 300_000)])
    with tarfile.open(tmp_path / "a.tar") as tar:
        contents = [tar.extractfile(member).read() for member in tar]  # type: ignore[union-attr]
    assert contents == [bytes([number]) * 300_000 for number in range(5)]
    assert writer.digest.hexdigest() == hashlib.sha256((tmp_path / "a.tar").read_bytes()).hexdigest()
