import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sightloom.config import validate
from sightloom.data.estimate import ROW_BYTES, estimate_rows
from sightloom.data.forecast import forecast
from sightloom.data.recipe import Recipe
from sightloom.data.sources.chunks import list_files
from sightloom.errors import UserMistake


def recipe(tmp_path: Path, **more: Any) -> Recipe:
    source = [{"kind": "webdataset", "uri": f"{tmp_path}/*.tar"}]
    return validate(Recipe, {"name": "p", "out": str(tmp_path / "out"), "source": source, **more}, "test")


def test_a_plan_reads_listings_and_writes_nothing(tmp_path: Path, make_tar: Any, scene: Any) -> None:
    for number in range(3):
        make_tar(tmp_path / f"{number}.tar", [(f"{n:03d}", {"png": scene(n), "txt": b"a cat"}) for n in range(40)])
    clip = [{"name": "b", "model": "ViT-B-32", "embeddings": True}]
    found = forecast(recipe(tmp_path, score={"clip": clip, "chunk_rows": 256}), cores=8)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    assert (found.files, found.bytes, found.files_done) == (3, size, 0)
    assert not found.row_bytes_assumed and found.rows == 120 and found.chunks_missing == 3
    # 8 cores measure 10 chunks at once beside one actor: (10 + 2) * 256 rows * 3 * 224^2 bytes
    assert found.object_store_mb == 12 * 256 * 3 * 224**2 / 1e6
    assert found.hours == round(found.rows / (3600 * 8 * 170), 6) and found.refusals == ()
    assert not (tmp_path / "out").exists()


def test_a_plan_of_a_missing_source_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="no files at"):
        forecast(recipe(tmp_path), cores=2)


def captioned(folder: Path, name: str, rows: list[dict[str, str]]) -> Path:
    folder.mkdir()
    with open(folder / name, "w", newline="") as file:
        if name.endswith(".csv"):
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n\n" for row in rows)
    return folder


def test_rows_of_folders_parquet_and_lists_are_counted_not_guessed(tmp_path: Path, scene: Any) -> None:
    rows = [{"file_name": f"{n}.png", "text": f"two\nlines, {n}"} for n in range(37)]
    lines, cells = captioned(tmp_path / "a", "captions.jsonl", rows), captioned(tmp_path / "b", "captions.csv", rows)
    beside = tmp_path / "c"
    beside.mkdir()
    for number in range(5):
        (beside / f"{number}.png").write_bytes(scene(number))
        (beside / f"{number}.txt").write_text("a cat")
    table = pa.table({"image": [scene(0)] * 1000, "text": ["a"] * 1000})
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=300)
    (tmp_path / "urls.jsonl").write_text('{"url": "http://a", "text": "x"}\n\n{"url": "http://b", "text": "y"}\n')
    (tmp_path / "urls.csv").write_text('url,text\nhttp://a,"two\nlines"\nhttp://b,x\nhttp://c,x\n')
    pq.write_table(pa.table({"url": ["http://a"] * 300, "text": ["x"] * 300}), tmp_path / "urls.parquet")
    folders = [{"kind": "folder", "uri": str(folder)} for folder in (lines, cells, beside)]
    fetch = {"contact": "tests@example.org"}
    lists = [
        {"kind": "urls", "uri": f"{tmp_path}/urls.{suffix}", "fetch": fetch} for suffix in ("jsonl", "csv", "parquet")
    ]
    source = [*folders, {"kind": "parquet", "uri": f"{tmp_path}/d.parquet"}, *lists]
    found = forecast(recipe(tmp_path, source=source, score={"chunk_rows": 100}), cores=2)
    assert (found.rows, found.urls_not_fetched, found.rows_exact) == (37 + 37 + 5 + 1000 + 2 + 3 + 300, 305, True)
    # a chunk each of the folders and small lists, 3 + 3 + 3 + 1 of the row groups, 3 of 300 URLs
    assert found.chunks_missing == 3 + 10 + 2 + 3
    assert found.hours == round(found.rows / (3600 * 2 * 170), 6)


def test_tars_without_a_whole_record_at_their_beginning_are_guessed_by_their_size(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"no tar" * 100_000)
    found = estimate_rows(list_files(recipe(tmp_path).source[0], 256), {})
    assert found.row_bytes_assumed and not found.exact and found.row_bytes == ROW_BYTES
    assert list(found.rows.values()) == [6]


def test_scored_tars_say_how_large_the_others_records_are(tmp_path: Path, make_tar: Any, scene: Any) -> None:
    for number, count in enumerate((100, 300)):
        make_tar(tmp_path / f"{number}.tar", [(f"{n:03d}", {"png": scene(n), "txt": b"a"}) for n in range(count)])
    first, second = list_files(recipe(tmp_path).source[0], 256)
    found = estimate_rows([first, second], {first.file_id: 100})
    assert found.rows[first.file_id] == 100 and abs(found.rows[second.file_id] - 300) <= 300 * 10_240 / first.size
