"""An object store that spoils requests, and two runs at once on it: one result, nothing lost, nothing doubled."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.raw import environment, finish, put_tars, start, start_cluster, write_recipe, write_scorer
from tests.storage.faulty import FaultyProxy

from sightloom import storage
from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.verify import verify
from sightloom.progress import NullProgress

ROWS = 160
pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


@pytest.fixture
def spoiled(store: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(store, 0.1, seed=3)
    yield proxy
    proxy.stop()


def test_two_runs_at_once_behind_a_faulty_store_end_as_one_calm_run(
    tmp_path: Path,
    store: int,
    spoiled: Any,
) -> None:
    store_settings = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    cluster = start_cluster(4)
    put_tars("s3://pool/raw", 2, ROWS)
    scorer = write_scorer(tmp_path / "scorer")
    calm = write_recipe(tmp_path / "calm.yaml", "s3://pool/raw", "s3://pool/calm", scorer)
    finish(start(calm, environment(**store_settings), cluster.address))
    both = write_recipe(tmp_path / "both.yaml", "s3://pool/raw", "s3://pool/both", scorer)
    env = environment(**{**store_settings, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{spoiled.port}"})
    try:
        runs = [start(both, env, cluster.address), start(both, env, cluster.address)]
        results = [finish(process, 700) for process in runs]
    finally:
        cluster.shutdown()
    assert min(spoiled.counts[kind] for kind in ("reset", "500", "503", "lost")) > 0
    assert all((result["rows_in"], result["failed"]) == (2 * ROWS, 0) for result in results)
    expected, found = (read_manifest(f"s3://pool/{name}/shards/pool") for name in ("calm", "both"))
    assert found.digest == expected.digest
    assert verify(found, True, NullProgress()).problems == ()
    for group in ("base", "clip_tiny"):
        assert len(storage.listing(f"s3://pool/both/scores/{group}-*/commit/*.json")) == 10
