import io
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from sightloom.data.shards.tarfiles import BLOCK, header
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
