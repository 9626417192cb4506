"""Checkpoints: written by some workers, read by others, on disk and on S3; what is not whole is never used."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sightloom import storage
from sightloom.training.checkpoint import Position
from sightloom.training.checkpoint_store import SEAL, CheckpointStore
from sightloom.training.parallel import Workers
from sightloom.training.run_options import CheckpointOptions
from sightloom.training.saver import Hooks, Saver

STAGE, DIGEST = "instruct-0123456789ab", "0123456789ab" + "c" * 52


class Stage:
    """A little model with AdamW that takes a step whenever it is asked to."""

    def __init__(self, store: str, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        self.model[0].weight.requires_grad_(False)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.01, fused=True)
        self.events: list[dict[str, Any]] = []
        self.store = CheckpointStore(store)
        self.published: list[str] = []
        hooks = Hooks(published=lambda name, step: self.published.append(name))
        self.saver = Saver(
            self.store, STAGE, DIGEST, CheckpointOptions(every_steps=1, **options), Workers(0, 1), self.model,
            self.optimizer, hooks, self.events.append,
        )  # fmt: skip

    def step(self, seed: int) -> None:
        data = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed))
        self.optimizer.zero_grad()
        self.model(data).square().sum().backward()
        self.optimizer.step()

    def save(self, step: int) -> None:
        self.saver.begin(Position(step, {"window": step, "pack": 3}, skipped=1))
        self.saver.settle()

    def state(self) -> list[torch.Tensor]:
        weights = [parameter.detach().clone() for parameter in self.model.parameters()]
        return weights + [v.clone() for entries in self.optimizer.state.values() for v in entries.values()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "checkpoints")
    request.getfixturevalue("store")
    return "s3://pool/runs/nano"


@pytest.mark.parametrize("beside", [False, True])
def test_a_stage_goes_on_to_the_bit_from_disk_and_from_s3(place: str, beside: bool) -> None:
    first = Stage(place, asynchronous=beside)
    assert first.saver.resume() is None
    first.step(0)
    first.saver.begin(Position(1, {"window": 1, "pack": 3}, skipped=1))
    kept = first.state()
    first.step(1)  # goes on while the checkpoint may still be written
    first.saver.settle()
    after = first.state()

    second = Stage(place)
    assert second.saver.resume() == Position(1, {"window": 1, "pack": 3}, skipped=1)
    assert same(second.state(), kept) and second.saver.unusable == 0
    second.step(1)
    assert same(second.state(), after)
    (event,) = first.events
    assert event["kind"] == "checkpoint" and event["step"] == 1 and not event["problem"]
    sizes = [file["bytes"] for file in first.store.read_seal(first.published[0]).files.values()]
    assert event["metrics"]["checkpoint/bytes"] == sum(sizes)


def test_frozen_weights_are_not_written(tmp_path: Path) -> None:
    stage = Stage(str(tmp_path))
    stage.save(1)
    held = stage.store.reader(stage.published[0]).read_metadata().state_dict_metadata
    assert set(held) == {"model/0.bias", "model/1.weight", "model/1.bias"}


def test_as_many_checkpoints_stay_as_the_file_says_and_none_after_the_end(place: str) -> None:
    stage = Stage(place, keep=2)
    for step in (1, 2, 10):
        stage.save(step)
    assert stage.store.names(STAGE) == [f"{STAGE}-step-000010", f"{STAGE}-step-000002"]
    stage.store.prune(STAGE, keep=0)
    assert stage.store.names(STAGE) == [] and storage.folders(place) == []


def flipped(uri: str) -> None:
    data = bytearray(storage.read_bytes(uri))
    data[len(data) // 2] ^= 1
    storage.write(uri, bytes(data))


DAMAGE: dict[str, Callable[[str, str], None]] = {
    "a flipped bit": lambda folder, file: flipped(storage.join(folder, file)),
    "a cut file": lambda folder, file: storage.write(storage.join(folder, file), b"short"),
    "a missing file": lambda folder, file: storage.delete(storage.join(folder, file)),
    "no seal": lambda folder, file: storage.delete(storage.join(folder, SEAL)),
    "half a seal": lambda folder, file: storage.write(storage.join(folder, SEAL), b'{"step": 2'),
    "another seal": lambda folder, file: storage.write(storage.join(folder, SEAL), json.dumps({"step": 2}).encode()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_counted_and_the_one_before_it_is_used(place: str, damage: str) -> None:
    first = Stage(place, keep=2)
    first.step(0)
    first.save(1)
    kept = first.state()
    first.step(1)
    first.save(2)
    DAMAGE[damage](first.store.place(first.published[1]), "__0_0.distcp")

    second = Stage(place, keep=2)
    position = second.saver.resume()
    assert position is not None and position.step == 1 and same(second.state(), kept)
    assert second.saver.unusable == 1
    (event,) = second.events
    assert event["kind"] == "unusable" and event["name"] == first.published[1]

    # the step is done again under a name of its own, and what was damaged goes when it is saved
    second.step(1)
    second.save(2)
    assert second.published == [f"{STAGE}-step-000002-1"]
    assert second.store.names(STAGE)[0] == second.published[0] and same(second.state(), first.state())
    third = Stage(place, keep=2)
    again = third.saver.resume()
    assert again is not None and again.step == 2 and same(third.state(), first.state())


def test_a_checkpoint_of_another_stage_is_not_taken(tmp_path: Path) -> None:
    first = Stage(str(tmp_path))
    first.save(1)
    assert "another stage" in first.store.problem(first.published[0], "f" * 64)
    assert first.store.names("instruct-ffffffffffff") == []


@pytest.mark.parametrize("beside", [False, True])
def test_a_full_disk_costs_a_checkpoint_that_is_counted_and_no_other(
    small_disk: Callable[[str], Path], beside: bool
) -> None:
    place = str(small_disk("4m"))
    stage = Stage(place, asynchronous=beside, keep=1)
    stage.step(0)
    stage.save(1)
    kept = stage.state()
    filler = Path(place) / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb") as file:
        while True:
            file.write(b"x" * 4096)
    stage.step(1)
    stage.save(2)
    assert stage.saver.skipped == 1 and len(stage.published) == 1
    assert "No space left" in stage.events[-1]["problem"]
    assert stage.events[-1]["metrics"]["checkpoint/skipped"] == 1
    other = Stage(place)
    position = other.saver.resume()
    assert position is not None and position.step == 1 and same(other.state(), kept)

    filler.unlink()
    stage.save(3)
    assert stage.store.names(STAGE) == [f"{STAGE}-step-000003"]


def test_an_upload_that_arrives_cut_is_a_checkpoint_left_out(store: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    stage = Stage("s3://pool/runs/nano")
    stage.save(1)
    whole = s3fs.S3FileSystem._put_file

    async def cut(fs: Any, local: str, path: str, **options: Any) -> None:
        short = Path(local).with_suffix(".cut")
        short.write_bytes(Path(local).read_bytes()[:-7])
        await whole(fs, str(short), path, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_put_file", cut)
    s3fs.S3FileSystem.clear_instance_cache()
    stage.save(2)
    assert stage.saver.skipped == 1 and "after the upload of" in stage.events[-1]["problem"]
    assert stage.store.names(STAGE) == [f"{STAGE}-step-000001"]
