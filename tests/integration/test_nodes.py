"""Curation on a Ray of several nodes (processes of this machine), of which one dies midway."""

import time
from pathlib import Path
from typing import Any

import pytest
from tests.integration.raw import environment, finish, put_tars, start, write_recipe, write_scorer

from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.verify import verify
from sightloom.progress import NullProgress

ROWS, TARS, CHUNKS = 320, 3, 30
pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


@pytest.fixture
def cluster() -> Any:
    """A head without cores for tasks, and two nodes with two each; the scorer may only run where the head is."""
    import ray
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        ray.shutdown()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 200_000_000})
    nodes = [made.add_node(num_cpus=2, object_store_memory=200_000_000) for _ in range(2)]
    made.wait_for_nodes()
    yield made, nodes
    made.shutdown()


def test_a_node_that_dies_midway_costs_nothing_but_time(cluster: Any, tmp_path: Path) -> None:
    made, nodes = cluster
    put_tars(str(tmp_path / "raw"), TARS, ROWS)
    scorer = write_scorer(tmp_path / "scorer")
    calm = write_recipe(tmp_path / "calm.yaml", str(tmp_path / "raw"), str(tmp_path / "calm"), scorer)
    env = environment(tmp_path / "home")
    expected = read_manifest(finish(start(calm, env))["manifest"])

    recipe = write_recipe(tmp_path / "r.yaml", str(tmp_path / "raw"), str(tmp_path / "out"), scorer)
    process = start(recipe, env, "curate", "--ray", made.address)
    while len(list((tmp_path / "out").glob("scores/base-*/commit/*.json"))) < CHUNKS // 4:
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.05)
    made.remove_node(nodes[0], allow_graceful=False)
    assert process.poll() is None
    result = finish(process, 900)
    assert (result["rows_in"], result["failed"]) == (TARS * ROWS, 0)
    manifest = read_manifest(result["manifest"])
    assert manifest.digest == expected.digest
    assert verify(manifest, True, NullProgress()).problems == ()
