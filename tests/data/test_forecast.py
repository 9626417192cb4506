from pathlib import Path
from typing import Any

import pytest

from sightloom.config import validate
from sightloom.data.forecast import ROW_BYTES, forecast
from sightloom.data.recipe import Recipe
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
    assert found.row_bytes_assumed and found.row_bytes == ROW_BYTES and found.chunks_missing == 3
    # 8 cores measure 10 chunks at once beside one actor: (10 + 2) * 256 rows * 3 * 224^2 bytes
    assert found.object_store_mb == 12 * 256 * 3 * 224**2 / 1e6
    assert found.hours == round(found.rows / (3600 * 8 * 170), 6) and found.refusals == ()
    assert not (tmp_path / "out").exists()


def test_a_plan_of_a_missing_source_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="no files at"):
        forecast(recipe(tmp_path), cores=2)
