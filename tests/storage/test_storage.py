import os
import threading
from pathlib import Path

import pytest

from sightloom import storage
from sightloom.errors import UserMistake


def test_of_many_creators_exactly_one_wins(tmp_path: Path) -> None:
    target, outcomes = str(tmp_path / "a" / "commit.json"), []
    threads = [
        threading.Thread(target=lambda n=n: outcomes.append((n, storage.create(target, str(n).encode()))))
        for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [n for n, won in outcomes if won]
    assert len(outcomes) == 16 and len(winners) == 1
    assert storage.read_text(target) == str(winners[0])
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["commit.json"]  # nothing left aside


def test_ranges_globs_folders_and_files_are_listed_in_order(tmp_path: Path) -> None:
    for index in (3, 1, 2):
        (tmp_path / f"shard-{index:03d}.tar").write_bytes(b"x" * index)
    (tmp_path / ".hidden").write_bytes(b"")
    names = [f"shard-{index:03d}.tar" for index in (1, 2, 3)]

    def listed(pattern: str) -> list[str]:
        return [Path(info.uri).name for info in storage.listing(str(tmp_path / pattern))]

    assert listed("") == names
    assert listed("*.tar") == names
    assert listed("shard-{002..009}.tar") == names[1:]
    assert listed("shard-003.tar") == names[2:]
    assert [info.size for info in storage.listing(str(tmp_path))] == [1, 2, 3]


def test_a_missing_place_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere" / "*.tar")
    with pytest.raises(UserMistake, match=r"no files at .*nowhere"):
        storage.listing(missing)
    with pytest.raises(UserMistake, match="nothing at"):
        storage.read_bytes(str(tmp_path / "none"))


def test_a_folder_under_a_file_is_unwritable_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserMistake, match="file"):
        storage.ensure_writable(str(tmp_path / "file" / "out"))


def test_too_little_space_is_said_before_work_begins(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="free space"):
        storage.ensure_writable(str(tmp_path), free_bytes=10**18)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_an_error_in_words_and_leaves_no_file(tmp_path: Path) -> None:
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("no /dev/full on this system")
    with pytest.raises(Exception, match="no space is left") as caught, storage.addresses.explained("/dev/full"):
        descriptor = os.open("/dev/full", os.O_WRONLY)
        try:
            os.write(descriptor, b"x")
        finally:
            os.close(descriptor)
    assert "finished parts are kept" in str(caught.value)


def test_write_replaces_whole_files_and_ranges_are_read(tmp_path: Path) -> None:
    target = str(tmp_path / "f")
    storage.write(target, b"0123456789")
    storage.write(target, b"abcdef")
    assert storage.read_bytes(target) == b"abcdef"
    assert storage.read_bytes(target, 2, 3) == b"cde"
    assert storage.sha256_file(target) == "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721"
