"""What must not matter does not: how many scorers there are, how a store lists its files, what the files are called."""

from pathlib import Path
from typing import Any

import pytest

from sightloom import storage
from sightloom.data.curation import curate
from sightloom.data.shards.manifest import read_manifest
from sightloom.progress import NullProgress

from .curations import put_raw, recipe

pytestmark = pytest.mark.usefixtures("ray_session")


class Totals(NullProgress):
    """Keeps what each step said of its total."""

    def __init__(self) -> None:
        self.of: dict[str, float] = {}

    def step(self, name: str, total: float | None = None, unit: str = "") -> Any:
        self.of[name] = total or 0.0
        return super().step(name, total, unit)


@pytest.mark.long
def test_more_scorers_and_another_order_of_listing_give_the_same_bytes(
    tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = str(tmp_path / "raw")
    put_raw(raw)
    expected = read_manifest(curate(recipe(raw, str(tmp_path / "one"), tiny_clip), NullProgress()).manifest)
    ordered = storage.listing
    monkeypatch.setattr(storage, "listing", lambda pattern: ordered(pattern)[::-1])
    clip = [{"name": "tiny", "model": f"local-dir:{tiny_clip}"}]
    workers = {"scorers": 2, "threads": 2}
    many = recipe(raw, str(tmp_path / "two"), tiny_clip, score={"chunk_rows": 32, "clip": clip, "workers": workers})
    found = read_manifest(curate(many, NullProgress()).manifest)
    assert found.digest == expected.digest
    assert [shard.sha256 for shard in found.shards] == [shard.sha256 for shard in expected.shards]


def test_renamed_files_hold_the_same_uids_and_the_same_of_them_stay(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "elsewhere" / "second"
    put_raw(str(first))
    put_raw(str(second))
    for number, name in ((0, "pairs-z"), (1, "pairs-a")):
        (second / f"pairs-{number}.tar").rename(second / f"{name}.tar")
    totals = Totals()
    results = [curate(recipe(str(raw), str(raw / "out")), totals) for raw in (first, second)]
    assert abs(totals.of["score"] - 180) <= 18 and totals.of["select"] == 180  # rows; those of tars are estimated
    assert results[0].dropped == results[1].dropped and results[0].kept == results[1].kept
    subsets = [next((raw / "out").glob("select/*/subset.npy")).read_bytes() for raw in (first, second)]
    assert subsets[0] == subsets[1]
