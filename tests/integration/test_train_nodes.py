"""Training on a Ray of several nodes (processes of this machine) that die, or are taken away with notice."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.raw import add_node, finish, start_cluster
from tests.integration.training_runs import SAVE_EVERY, Run, train_workers, wait_until
from tests.training.conftest import write_shards

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]
NOTICE_S = 60
SELDOM = 150  # steps between checkpoints where that of the notice is to be told from the others
STEPS = 400  # enough for a node to go, to be noticed, and to come back


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that runs no workers, and two nodes with room for one each."""
    made = start_cluster(0, 1, 1)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shards(tmp_path_factory.mktemp("shards"), 150, 0)


@pytest.fixture(scope="module")
def calm(manifest: str, mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(manifest, tmp_path_factory.mktemp("calm") / "calm-nodes", mlflow_uri, steps=STEPS)
    finish(run.start(), 900)
    return run


def worker_of(node: Any) -> list[int]:
    raylet = next(info.process.pid for kind, infos in node.all_processes.items() if kind == "raylet" for info in infos)
    return train_workers(raylet)


def test_a_node_that_dies_in_a_stage_costs_nothing_but_time(calm: Run, cluster: Any, tmp_path: Path) -> None:
    run = Run(calm.manifest, tmp_path / "nodes", calm.mlflow, (), cluster.address, STEPS)
    process = run.start()
    wait_until(lambda: run.step() > 2 * SAVE_EVERY + 3, process)
    node = cluster.list_all_nodes()[-1]
    assert len(worker_of(node)) == 1
    cluster.remove_node(node, allow_graceful=False)
    add_node(cluster, 1)
    finish(process, 900)
    attempts = run.attempts()
    assert [world for world, _ in attempts] == [2, 2]
    assert attempts[1][1][0] % SAVE_EVERY == 0 and attempts[1][1][0] > 0
    assert run.consumed() == calm.consumed()
    assert run.weights() == calm.weights()
    run.assert_one_true_diary()


def test_workers_that_become_one_and_two_again_consume_the_same_samples(
    calm: Run, cluster: Any, tmp_path: Path
) -> None:
    """A node is taken away with notice: one more checkpoint; then one worker goes on, until there is room again."""
    from ray._raylet import GcsClient

    more = ("ray.workers=[1,2]", "ray.resize_every_s=3", "checkpoint.preemption_every_steps=3")
    more += (f"checkpoint.every_steps={SELDOM}",)
    run = Run(calm.manifest, tmp_path / "elastic", calm.mlflow, more, cluster.address, STEPS)
    process = run.start(RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="0.5")
    wait_until(lambda: run.step() > SAVE_EVERY + 3, process)
    assert run.attempts()[-1][0] == 2
    node = cluster.list_all_nodes()[-1]
    reason = 2  # DRAIN_NODE_REASON_PREEMPTION
    deadline_ms = int((time.time() + NOTICE_S) * 1000)
    accepted, _ = GcsClient(cluster.address).drain_node(node.node_id, reason, "spot reclaim", deadline_ms)
    assert accepted
    place = run.out / "checkpoints"

    def warned() -> bool:
        seals = place.glob("*/align-*-step-*/checkpoint.json")
        return any(int(seal.parent.name.split("-step-")[1].split("-")[0]) % SELDOM for seal in seals)

    wait_until(warned, process, NOTICE_S)
    cluster.remove_node(node, allow_graceful=False)
    wait_until(lambda: run.attempts()[-1][0] == 1 and len(run.attempts()[-1][1]) > 3, process)
    add_node(cluster, 1)
    finish(process, 900)
    attempts = run.attempts()
    assert [world for world, _ in attempts] == [2, 1, 2]
    assert 0 < attempts[1][1][0] < SELDOM  # it went on from the checkpoint that the notice caused
    assert run.consumed() == calm.consumed() and len(run.consumed()) == STEPS
    # one worker sums in another order than two: not the same bits, but the same training
    loss, expected = (each.metrics()["eval/all/caption_loss"] for each in (run, calm))
    assert loss == pytest.approx(expected, rel=0.05)
    run.assert_one_true_diary()
