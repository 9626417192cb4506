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
from hypothesis import given
from hypothesis import strategies as st

from sightloom.data.shards.tarfiles import BATCH, BLOCK, TarWriter, header
from sightloom.data.sources.tarstream import members_of, read_members

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=40)


@given(NAMES, st.integers(0, 9 * 10**9))
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    try:
        expected = info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except ValueError:  # longer than USTAR can say
        return
    assert header(name, size) == expected


@given(st.lists(st.tuples(NAMES, st.binary(max_size=700)), max_size=5),
       st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))  # fmt: skip
def test_members_are_read_as_tarfile_reads_them(files: list[tuple[str, bytes]], form: int) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as tar:
        for name, data in files:
            info = tarfile.TarInfo("long/" * 20 + name if len(data) % 3 == 0 else name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    sink.seek(0)
    with tarfile.open(fileobj=sink) as tar:
        expected = [(m.name, m.size, tar.extractfile(m).read()) for m in tar.getmembers()]  # type: ignore[union-attr]
    sink.seek(0)
    found = list(read_members(sink, lambda name, size: True))
    assert [(member.name, member.size, member.data) for member in found] == expected
    assert all(member.offset % BLOCK == member.end % BLOCK == 0 for member in found)


@given(st.lists(st.tuples(NAMES, st.binary(max_size=1500)), min_size=1, max_size=4), st.integers(0, 5000))
def test_a_sample_in_memory_is_read_as_a_stream_is(files: list[tuple[str, bytes]], cut: int) -> None:
    sample = b"".join(header(name, len(data)) + data + bytes(-len(data) % BLOCK) for name, data in files)
    found = members_of(memoryview(sample), lambda name, size: size != 7)
    plain = list(read_members(io.BytesIO(sample), lambda name, size: size != 7, True))
    if found is not None:  # None: a name that takes another kind of header
        assert found == plain
    part = sample[: cut % len(sample)]
    assert len(part) % BLOCK == 0 or members_of(memoryview(part), lambda name, size: True) is None


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
