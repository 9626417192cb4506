import io
import threading
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.storage.faulty import FaultyProxy

from sightloom import storage
from sightloom.data.ledger import Group, commit, committed, read_chunk
from sightloom.errors import SightloomError, UserMistake
from sightloom.storage import retries


@pytest.fixture
def faulty(store: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same store behind a proxy that spoils three requests in ten."""
    import s3fs

    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.01)
    proxy = FaultyProxy(store, 0.3, seed=1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    s3fs.S3FileSystem.clear_instance_cache()
    yield proxy
    proxy.stop()


def test_a_store_that_spoils_requests_loses_and_doubles_no_commit(faulty: Any) -> None:
    group = Group.make("s3://pool/out", "base", {})
    chunks = [f"{number:016x}-00000" for number in range(12)]
    wins: list[tuple[str, bool]] = []

    def writer() -> None:
        for chunk in chunks:
            wins.append((chunk, commit(group, chunk, True, pa.table({"a": [1, 2]}), {"status": {"ok": 2}})))

    threads = [threading.Thread(target=writer) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 36 and sorted(chunk for chunk, won in wins if won) == chunks
    assert len(committed(group)) == 12 and all(state.complete for state in committed(group).values())
    for chunk in chunks:
        assert read_chunk(group, chunk, True)[0].num_rows == 2
    assert min(faulty.counts[kind] for kind in ("reset", "500", "503", "lost")) > 0


def test_a_file_is_read_whole_through_lost_connections(faulty: Any) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": list(range(200_000))}), sink, row_group_size=20_000)
    storage.write("s3://pool/a.parquet", sink.getvalue())
    for _ in range(4):
        with storage.open_read("s3://pool/a.parquet") as file:
            assert file.read() == sink.getvalue()
        with storage.open_read("s3://pool/a.parquet") as file:
            assert pq.read_table(file).num_rows == 200_000
    assert storage.read_bytes("s3://pool/a.parquet", 10, 50) == sink.getvalue()[10:60]
    assert faulty.counts["cut"] > 0


def test_a_store_that_stays_away_is_an_error_and_no_end_of_file(faulty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write("s3://pool/b", b"x" * 1000)
    with storage.open_read("s3://pool/b") as file:
        faulty.share = 1.0
        monkeypatch.setattr(retries, "TRIES", 2)
        with pytest.raises((SightloomError, OSError)):
            file.read()


def test_names_are_listed_in_ranges_and_conditional_puts_are_proved(store: int) -> None:
    for number in range(40):
        storage.write(f"s3://pool/commit/{number * 6:02x}.json", b"{}")
    assert sorted(storage.names("s3://pool/commit")) == sorted(f"{number * 6:02x}.json" for number in range(40))
    assert storage.names("s3://pool/nothing") == []
    storage.ensure_exclusive("s3://pool/out")
    assert storage.create("s3://pool/c", b"1") and not storage.create("s3://pool/c", b"2")
    assert storage.read_bytes("s3://pool/c") == b"1"


def test_a_store_without_conditional_puts_is_refused_in_words(store: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, _ = storage.filesystem("s3://pool/out")
    put = fs.pipe_file
    monkeypatch.setattr(fs, "pipe_file", lambda path, data, **_: put(path, data))
    with pytest.raises(UserMistake, match=r"no conditional put.*\n.*--single-writer"):
        storage.ensure_exclusive("s3://pool/out")
