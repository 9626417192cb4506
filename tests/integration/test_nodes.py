"""Curation on a Ray of several nodes (processes of this machine), of which one dies midway."""

import time
from pathlib import Path
from typing import Any

import pytest
from tests.integration.raw import environment, finish, put_tars, start, start_cluster, write_recipe, write_scorer

from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.verify import verify
from sightloom.progress import NullProgress

ROWS, TARS, CHUNKS = 320, 3, 30
pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


@pytest.fixture
def cluster() -> Any:
    """Three nodes with two cores each; drivers join the first."""
    made = start_cluster(2, 2, 2)
    yield made
    made.shutdown()


def test_a_node_that_dies_midway_costs_nothing_but_time(cluster: Any, tmp_path: Path) -> None:
    put_tars(str(tmp_path / "raw"), TARS, ROWS)
    scorer = write_scorer(tmp_path / "scorer")
    calm = write_recipe(tmp_path / "calm.yaml", str(tmp_path / "raw"), str(tmp_path / "calm"), scorer)
    env = environment()
    expected = read_manifest(finish(start(calm, env, cluster.address), 900)["manifest"])

    recipe = write_recipe(tmp_path / "r.yaml", str(tmp_path / "raw"), str(tmp_path / "out"), scorer)
    process = start(recipe, env, cluster.address)
    while len(list((tmp_path / "out").glob("scores/base-*/commit/*.json"))) < CHUNKS // 4:
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.05)
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    assert process.poll() is None
    result = finish(process, 900)
    assert (result["rows_in"], result["failed"]) == (TARS * ROWS, 0)
    manifest = read_manifest(result["manifest"])
    assert manifest.digest == expected.digest
    assert verify(manifest, True, NullProgress()).problems == ()
