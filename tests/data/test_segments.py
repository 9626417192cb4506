from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sightloom.data import segments
from sightloom.data.ledger import Group, commit, committed
from sightloom.data.segments import next_compactions, publish, read_segments, write_segment
from sightloom.data.select.columns import FILE, Scored, open_scores
from sightloom.data.sources.chunks import SourceFile
from sightloom.errors import SightloomError

CHUNK = 10


def files(count: int) -> list[SourceFile]:
    return [SourceFile("parquet", f"/raw/{n:03d}", 1, "v", (), CHUNK, f"{n * 7919:016x}") for n in range(count)]


@pytest.fixture
def groups(tmp_path: Path) -> list[Group]:
    return [Group.make(str(tmp_path), "base", {}), Group.make(str(tmp_path), "clip_x", {})]


def put(groups: Sequence[Group], file: SourceFile, chunks: int, which: Sequence[int] = (0, 1)) -> None:
    """Commit a file of chunks of 10 rows, the last one shorter."""
    for index in range(chunks):
        rows = CHUNK if index < chunks - 1 else 3
        value = [1000 * int(file.uri[-3:]) + CHUNK * index + row for row in range(rows)]
        tables = [pa.table({"value": value, "src": [file.uri] * rows}), pa.table({"score": [v / 2 for v in value]})]
        facts = [{"status": {"ok": rows - 1, "bad": 1}, "src": {}}, {"auc_rolled": 0.5, "scored": rows}]
        for number in which:
            commit(groups[number], file.chunk_id(index), index == chunks - 1, tables[number], facts[number])


def states(groups: Sequence[Group]) -> list[Any]:
    return [committed(group) for group in groups]


def compact_all(groups: Sequence[Group], order: Sequence[SourceFile], at_least: int = 0) -> int:
    made = 0
    while works := next_compactions(groups, states(groups), [file.file_id for file in order], at_least):
        for work in works:
            made += publish(work.group, write_segment(work))
    return made


def opened(groups: Sequence[Group], chosen: Sequence[SourceFile]) -> Scored:
    return open_scores(chosen, groups, states(groups))


def test_rows_come_in_the_order_of_files_whatever_was_committed_or_compacted_first(
    groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_ROWS", 30)
    every = files(6)
    expected = [1000 * n + value for n in range(6) for value in range(23)]
    for part in ([5, 2], [0, 4], [3, 1]):
        for number in part:
            put(groups, every[number], 3)
        compact_all(groups, every)
    found = [segment.rows for segment in read_segments(groups[0])]
    assert sum(found) == 6 * 23 and max(found) <= 30
    assert [segment.rows for segment in read_segments(groups[1])] == found
    scored = opened(groups, every)
    table = scored.read(["score", "value", FILE])
    assert table.column("value").to_pylist() == expected
    assert table.column("score").to_pylist() == [value / 2 for value in expected]
    assert table.column(FILE).to_pylist() == [n for n in range(6) for _ in range(23)]
    assert scored.status == {"ok": 6 * 20, "bad": 6 * 3}
    keep = np.arange(6 * 23) % 7 == 0
    assert scored.read(["value"], keep).column("value").to_pylist() == expected[::7]
    assert [row["value"] for row in scored.take([100, 3, 50], ["value"])] == [expected[n] for n in (100, 3, 50)]
    some = opened(groups, [every[1], every[4]])  # files that the listing no longer names are not seen
    assert some.read(["value"]).column("value").to_pylist() == expected[23:46] + expected[92:115]
    assert compact_all(groups, every) == 0


def test_a_new_group_follows_the_segments_there_are(groups: list[Group]) -> None:
    every = files(3)
    for file in every:
        put(groups, file, 2, which=[0])
    assert compact_all(groups, every) == 1
    put(groups, every[0], 2, which=[1])
    assert compact_all(groups, every) == 0  # the segment needs the other files too
    with pytest.raises(SightloomError, match=r"'/raw/001' is not wholly scored \(clip_x\)"):
        opened(groups, every)
    for file in every[1:]:
        put(groups, file, 2, which=[1])
    assert compact_all(groups, every) == 1
    assert opened(groups, every).read(["score"]).num_rows == 3 * 13


def test_of_two_writers_of_a_segment_one_wins_and_the_other_starts_anew(groups: list[Group], tmp_path: Path) -> None:
    every = files(2)
    put(groups, every[0], 1)
    (slow,) = next_compactions(groups[:1], states(groups[:1]), [every[0].file_id], 1)
    written = write_segment(slow)
    put(groups, every[1], 1)
    compact_all(groups[:1], every)  # another run, which saw more
    assert not publish(groups[0], written)
    assert [segment.rows for segment in read_segments(groups[0])] == [6]
    assert len(list(tmp_path.glob("scores/base-*/segments/*.parquet"))) == 1
    assert compact_all(groups, every) == 1 and opened(groups, every).num_rows == 6


def test_small_rests_wait_until_enough_rows_are_there(groups: list[Group]) -> None:
    every = files(2)
    put(groups, every[0], 3)
    assert compact_all(groups, every, at_least=40) == 0
    put(groups, every[1], 3)
    assert compact_all(groups, every, at_least=40) == 2
    with pytest.raises(SightloomError, match=r"no column 'nothing'.*\n?.*have: score, src, value"):
        opened(groups, every).read(["nothing"])


def test_a_file_without_records_is_compacted_too(groups: list[Group]) -> None:
    (file,) = files(1)
    nothing = pa.table({"value": pa.array([], pa.int64()), "src": pa.array([], pa.string())})
    commit(groups[0], file.chunk_id(0), True, nothing, {"status": {}, "src": {}})
    commit(groups[1], file.chunk_id(0), True, pa.table({"score": pa.array([], pa.float64())}), {"scored": 0})
    assert compact_all(groups, [file]) == 2
    assert opened(groups, [file]).read(["value", "score", FILE]).num_rows == 0


def test_a_lost_or_cut_fragment_is_named(groups: list[Group], tmp_path: Path) -> None:
    (file,) = files(1)
    put(groups, file, 1)
    (fragment,) = tmp_path.glob("scores/base-*/data/*.parquet")
    fragment.write_bytes(fragment.read_bytes()[:-5])
    with pytest.raises(SightloomError, match="its commit says"):
        compact_all(groups, [file])
