import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sightloom.data import segments
from sightloom.data.embeddings import open_embeddings, open_group
from sightloom.data.garbage import find_garbage
from sightloom.data.ledger import Group, commit, committed
from sightloom.data.segments import next_compactions, publish, write_segment
from sightloom.data.select.columns import Scored, open_scores
from sightloom.data.sources.chunks import SourceFile
from sightloom.errors import SightloomError, UserMistake

CHUNK, DIM = 10, 4
FILES = [SourceFile("parquet", f"/raw/{n:03d}", 1, "v", (), CHUNK, f"{n * 7919:016x}") for n in range(3)]


def vectors(file: int, chunk: int, rows: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng((file, chunk)).normal(size=(rows, DIM)).astype(np.float16)


def put(groups: list[Group], number: int, embeddings: bool = True) -> None:
    """Commit a file of two chunks, 10 and 3 rows."""
    for index, rows in ((0, CHUNK), (1, 3)):
        chunk, last = FILES[number].chunk_id(index), index == 1
        commit(groups[0], chunk, last, pa.table({"src": ["x"] * rows}), {"status": {"ok": rows}, "src": {}})
        found = vectors(number, index, rows) if embeddings else None
        commit(groups[1], chunk, last, pa.table({"clip_x": [0.5] * rows}), {"scored": rows}, found)


def compacted(groups: list[Group]) -> Scored:
    states = [committed(group) for group in groups]
    while works := next_compactions(groups, states, [file.file_id for file in FILES], 0):
        for work in works:
            publish(work.group, write_segment(work))
    return open_scores(FILES, groups, states)


@pytest.fixture
def groups(tmp_path: Path) -> list[Group]:
    return [Group.make(str(tmp_path), "base", {}), Group.make(str(tmp_path), "clip_x", {}, "-emb")]


def test_embeddings_come_in_the_order_of_the_rows_whatever_was_committed_first(
    groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_ROWS", 25)
    for number in (2, 0, 1):
        put(groups, number)
        if number != 0:
            states = [committed(group) for group in groups]
            for work in next_compactions(groups, states, [file.file_id for file in FILES], 0):
                publish(work.group, write_segment(work))
    scored = compacted(groups)
    expected = np.concatenate([vectors(n, index, rows) for n in range(3) for index, rows in ((0, CHUNK), (1, 3))])
    assert np.array_equal(open_embeddings(scored, "clip_x").read(), expected)
    rows = np.array([38, 0, 11, 11, 25])
    assert np.array_equal(open_embeddings(scored, "clip_x").read(rows), expected[rows])
    assert open_embeddings(scored, "clip_x").read([]).shape == (0, DIM)
    blocks = list(open_embeddings(scored, "clip_x").batches(7))
    assert [start for start, _ in blocks] == list(range(0, 39, 7)) and max(len(block) for _, block in blocks) == 7
    assert np.array_equal(np.concatenate([block for _, block in blocks]), expected)
    assert sorted(map(tuple, open_group(groups[1]).read().tolist())) == sorted(map(tuple, expected.tolist()))
    with pytest.raises(IndexError, match="of 39 embeddings"):
        open_embeddings(scored, "clip_x").read([39])


def test_orphans_are_never_read_and_gc_takes_them_and_them_alone(groups: list[Group], tmp_path: Path) -> None:
    for number in range(3):
        put(groups, number)
    orphan = Path(groups[1].folder) / "emb" / f"{FILES[0].chunk_id(0)}-deadbeef.npy"
    np.save(orphan, np.full((CHUNK, DIM), 9, np.float16))
    scored = compacted(groups)
    assert np.abs(open_embeddings(scored, "clip_x").read()).max() < 9
    for path in tmp_path.rglob("*"):
        os.utime(path, (time.time() - 90_000,) * 2)
    assert [info.uri for info in find_garbage(str(tmp_path))] == [str(orphan)]


def test_missing_lost_and_cut_embeddings_are_named(groups: list[Group], tmp_path: Path) -> None:
    for number in range(3):
        put(groups, number, embeddings=number != 1)
    scored = compacted(groups)
    with pytest.raises(UserMistake, match="holds no embeddings of chunk") as caught:
        open_embeddings(scored, "clip_x")
    assert caught.value.hint == "set embeddings=true and score again"
    with pytest.raises(UserMistake, match="no group 'clip_y' was scored"):
        open_embeddings(scored, "clip_y")
    other = [groups[0], Group.make(str(tmp_path), "clip_x", {}, "-two")]
    for number in range(3):
        put(other, number)
    scored = compacted(other)
    file = next((Path(other[1].folder) / "emb").iterdir())
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(SightloomError, match=r"embeddings .* cannot be read"):
        open_embeddings(scored, "clip_x").read()
    file.unlink()
    with pytest.raises(SightloomError, match=r"embeddings .* cannot be read"):
        open_embeddings(scored, "clip_x").read()
