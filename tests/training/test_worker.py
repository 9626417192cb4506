"""One stage on one or two processes: exactness over workers and restarts."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sightloom.data.shards.heldout import heldout_mask
from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.reader import read_table
from sightloom.training.consumed import consumed
from sightloom.training.export import verify
from sightloom.training.run_options import CheckpointOptions, ParallelOptions
from sightloom.training.saver import Hooks
from sightloom.training.worker import StageOrder

from .stage_runs import (
    ALIGN,
    INSTRUCT,
    PARAMETER_ATOL,
    RL,
    assert_equal_weights,
    change,
    die,
    kill_at_its_checkpoint,
    run,
    run_on_two,
)


@pytest.mark.parametrize("number", [ALIGN, INSTRUCT])
def test_two_workers_end_with_the_weights_of_one(
    order: Callable[..., StageOrder], number: int, unused_port: int
) -> None:
    alone, together = order(number, "one", "optim.kind=muon"), order(number, "two", "optim.kind=muon")
    run(alone)
    run_on_two(together, unused_port)
    assert_equal_weights(alone, together, PARAMETER_ATOL)
    assert change(alone) > 1e-3


@pytest.mark.parametrize("number", [ALIGN, INSTRUCT])
def test_two_workers_that_share_the_model_end_with_the_weights_of_one(
    order: Callable[..., StageOrder], number: int, unused_port: int
) -> None:
    # odd numbers of packs leave the second worker a blank one
    packs = {ALIGN: 1, INSTRUCT: 3}[number]
    options = ("optim.kind=adamw", f"batch.packs={packs}", "train={fusion: 0.001, decoder: 0.003, head: 0.002}")
    alone, together = order(number, "one", *options), order(number, "two", *options)
    together = together.model_copy(update={"parallel": ParallelOptions(shard=2, recompute=True)})
    run(alone)
    run_on_two(together, unused_port)
    assert_equal_weights(alone, together, PARAMETER_ATOL)
    verify(Path(together.folder) / "model")


@pytest.mark.parametrize(("shard", "beside"), [(1, True), (2, False), (2, True)])
def test_one_worker_goes_on_from_the_checkpoint_of_two(
    order: Callable[..., StageOrder], unused_port: int, shard: int, beside: bool
) -> None:
    alone, together = order(INSTRUCT, "one", "optim.kind=adamw"), order(INSTRUCT, "two", "optim.kind=adamw")
    saving = CheckpointOptions(every_steps=2, asynchronous=beside)
    together = together.model_copy(update={"parallel": ParallelOptions(shard=shard), "checkpoint": saving})
    run_on_two(together, unused_port)
    events: list[dict[str, Any]] = []
    run(alone.model_copy(update={"store": together.store}), say=events.append)
    assert events[0]["step"] == 2
    assert_equal_weights(alone, together, PARAMETER_ATOL)


def copied(order: StageOrder, folder: Path) -> tuple[StageOrder, list[Path]]:
    """The order on a copy of its shards, and their tars."""
    ((manifest, index),) = order.parts
    shutil.copytree(Path(manifest).parent, folder)
    return order.model_copy(update={"parts": ((str(folder / "manifest.json"), index),)}), sorted(folder.glob("*.tar"))


def test_a_shard_that_one_worker_misses_ends_the_stage_on_all_with_its_name(
    order: Callable[..., StageOrder], unused_port: int, tmp_path: Path
) -> None:
    changed, tars = copied(order(ALIGN, "two", "steps=40", "batch.packs=3"), tmp_path / "shards")
    for tar in tars[1:]:
        tar.unlink()
    failed = run_on_two(changed, unused_port, good=False)
    assert len(failed) == 2 and failed[0] == failed[1]
    assert "nothing at" in failed[0] and any(tar.name in failed[0] for tar in tars[1:])


def test_pictures_that_are_not_those_of_the_table_are_left_out_and_counted_by_all(
    order: Callable[..., StageOrder], unused_port: int, tmp_path: Path
) -> None:
    changed, tars = copied(order(ALIGN, "two", "steps=6", "batch.packs=3"), tmp_path / "shards")
    for tar in tars:
        data = bytearray(tar.read_bytes())
        place = data.index(b"IDAT") + 40  # in the first picture of the shard
        data[place] ^= 1
        tar.write_bytes(data)
    events: list[dict[str, Any]] = []
    alone = {"folder": changed.folder + "-alone", "store": changed.store + "-alone"}
    run(changed.model_copy(update=alone), say=events.append)
    found = events[-1]["metrics"]
    assert found["data/unreadable"] == found["data/unreadable/DamagedPicture"] > 0
    run_on_two(changed, unused_port)
    ours, theirs = (consumed(Path(folder) / "consumed") for folder in (changed.folder, alone["folder"]))
    assert ours == theirs and len(ours) == 6


def test_two_workers_that_become_one_and_two_again_consume_the_same_samples(
    order: Callable[..., StageOrder], unused_port: int
) -> None:
    options = ("optim.kind=adamw", "steps=6", "batch.packs=3")
    calm, resized = order(INSTRUCT, "calm", *options), order(INSTRUCT, "resized", *options)
    run_on_two(calm, unused_port)
    assert run_on_two(resized, unused_port, good=False, hooks=Hooks(published=die)) == ["Killed()"] * 2
    kill_at_its_checkpoint(resized)
    run_on_two(resized, unused_port)
    files = sorted(file.name for file in (Path(resized.folder) / "consumed").iterdir())
    assert [name[5:] for name in files] == ["0of2.jsonl", "1of2.jsonl", "0of1.jsonl", "0of2.jsonl", "1of2.jsonl"]
    ours, theirs = (consumed(Path(each.folder) / "consumed") for each in (resized, calm))
    assert ours == theirs and len(ours) == 6
    assert_equal_weights(resized, calm, PARAMETER_ATOL)


def test_held_out_pictures_are_never_consumed(order: Callable[..., StageOrder]) -> None:
    done = order(INSTRUCT, "held", "steps=12", "optim.kind=adamw")
    run(done)
    used = {uid for uids in consumed(Path(done.folder) / "consumed").values() for uid in uids}
    ((manifest, _),) = done.parts
    table = read_table(read_manifest(manifest), ["uid", "sha256"])
    held = heldout_mask(table, done.heldout)
    uids = [uid.hex() for uid in table.column("uid").to_pylist()]
    out = {uid for uid, out in zip(uids, held, strict=True) if out}
    assert out and len(used) > 20 and used <= set(uids) and not used & out


@pytest.mark.parametrize("number", [INSTRUCT, RL])
def test_a_stage_that_was_killed_goes_on_from_its_checkpoint_to_the_same_weights(
    order: Callable[..., StageOrder], number: int
) -> None:
    extra = ("objective.rollout.keep=[0.0,1.0]", "objective.rollout.prompts=2", "objective.rollout.max_new_tokens=8")
    overrides = ("optim.kind=muon", *(extra if number == RL else ()))
    whole, broken = order(number, "whole", *overrides), order(number, "broken", *overrides)
    run(whole)
    kill_at_its_checkpoint(broken)
    events: list[dict[str, Any]] = []
    run(broken, say=events.append)
    assert events[0]["kind"] == "start" and events[0]["step"] == 2
    assert_equal_weights(whole, broken, 0.0)
    if number == RL:
        ours, theirs = (
            {file.name: file.read_bytes() for file in (Path(each.folder) / "rollouts").iterdir()}
            for each in (broken, whole)
        )
        assert ours == theirs and len(ours) == 3
