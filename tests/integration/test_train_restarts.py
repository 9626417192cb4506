"""Training that is killed at any point ends as if nothing had been: the same weights, the same samples, one diary."""

import os
import signal
from pathlib import Path

import pytest
from tests.integration.raw import finish
from tests.integration.training_runs import SAVE_EVERY, STEPS, Run, kill, train_workers, wait_until
from tests.training.conftest import write_shards

from sightloom import storage

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shards(tmp_path_factory.mktemp("shards"), 150, 0)


@pytest.fixture(scope="module")
def calm(manifest: str, mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What an uninterrupted run of two workers comes to."""
    run = Run(manifest, tmp_path_factory.mktemp("calm") / "calm", mlflow_uri)
    finish(run.start(), 900)
    assert run.attempts() == [(2, list(range(STEPS)))]
    run.assert_one_true_diary()
    return run


def assert_equal(run: Run, calm: Run) -> None:
    assert run.consumed() == calm.consumed() and len(calm.consumed()) == STEPS
    assert run.weights() == calm.weights()
    run.assert_one_true_diary()
    assert not list((run.out / "checkpoints").glob("*/align-*"))  # a finished stage leaves none


def test_a_worker_killed_in_a_step(calm: Run, tmp_path: Path) -> None:
    run = Run(calm.manifest, tmp_path / "worker", calm.mlflow)
    process = run.start()
    wait_until(lambda: run.step() > 2 * SAVE_EVERY + 3, process)
    os.kill(train_workers(process.pid)[-1], signal.SIGKILL)
    finish(process, 900)
    (_, first), (_, second) = run.attempts()
    assert first[-1] < STEPS - 1 and second[0] % SAVE_EVERY == 0 and second[0] > 0
    assert_equal(run, calm)


def test_a_worker_killed_in_an_upload(calm: Run, tmp_path: Path) -> None:
    run = Run(calm.manifest, tmp_path / "upload", calm.mlflow)
    (tmp_path / "faults").mkdir()
    fault = {"match": r"align-.*/checkpoint\.json", "nth": 2, "when": "before", "folder": str(tmp_path / "faults")}
    finish(run.start(fault), 900)
    assert (tmp_path / "faults" / "killed").exists()
    (_, _), (_, second) = run.attempts()
    assert second[0] == SAVE_EVERY  # the second one was written, but not whole
    assert_equal(run, calm)


def test_a_worker_killed_in_an_upload_to_s3(calm: Run, store: int, tmp_path: Path) -> None:
    run = Run(calm.manifest, tmp_path / "s3", calm.mlflow, ("checkpoint.uri=s3://pool/runs",))
    (tmp_path / "faults").mkdir()
    # two workers upload a file each: the fourth one is of the second checkpoint
    fault = {"match": r"s3://pool/.*\.distcp", "nth": 4, "when": "before", "folder": str(tmp_path / "faults")}
    access = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
    finish(run.start(fault, **access), 900)
    assert (tmp_path / "faults" / "killed").exists()
    (_, _), (_, second) = run.attempts()
    assert second[0] == SAVE_EVERY
    assert_equal(run, calm)
    assert [name for name in storage.folders("s3://pool/runs/five-domains-nano") if "step" in name] == []
    assert not (run.out / "checkpoints").exists()


def test_the_driver_killed_in_a_step(calm: Run, tmp_path: Path) -> None:
    run = Run(calm.manifest, tmp_path / "driver", calm.mlflow)
    process = run.start()
    wait_until(lambda: run.step() > 2 * SAVE_EVERY + 3, process)
    kill(process)
    finish(run.start(), 900)
    (_, _), (_, second) = run.attempts()
    assert second[0] % SAVE_EVERY == 0 and second[0] > 0
    assert_equal(run, calm)


def test_a_stage_that_fails_is_marked_failed_and_goes_on_when_its_shards_are_back(calm: Run, tmp_path: Path) -> None:
    manifest = write_shards(tmp_path / "shards", 150, 0)
    run = Run(manifest, tmp_path / "failing", calm.mlflow)
    tars = sorted((tmp_path / "shards").glob("*.tar"))
    process = run.start()
    wait_until(lambda: run.step() > 2 * SAVE_EVERY + 3, process)
    # a worker keeps its open files, so they are cut rather than deleted
    whole = {tar: tar.read_bytes() for tar in tars}
    for tar in tars:
        os.truncate(tar, 1024)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 1 and "ends inside the sample" in err, err[-3000:]
    run.assert_one_true_diary("FAILED")
    for tar, data in whole.items():
        tar.write_bytes(data)
    finish(run.start(), 900)
    assert run.attempts()[-1][1][0] > 0
    assert_equal(run, calm)
