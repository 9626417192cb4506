"""One stage on one or two processes: exactness over workers and restarts, and what is exported."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from sightloom.data.shards.heldout import heldout_mask
from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.reader import read_table
from sightloom.errors import SightloomError, UserMistake
from sightloom.model.lora import PROJECTIONS
from sightloom.training import outsider
from sightloom.training.consumed import consumed
from sightloom.training.engines import TransformersEngine
from sightloom.training.export import verify
from sightloom.training.parallel import Workers
from sightloom.training.proof import the_outsider
from sightloom.training.run_options import CheckpointOptions, ParallelOptions
from sightloom.training.saver import Hooks
from sightloom.training.worker import StageOrder, run_stage

from .forked import run_ranks

NANO = Path(__file__).parents[2] / "pipelines" / "curricula" / "nano.yaml"
# fp32: other orders of summation, then three optimizer steps that normalise small gradients; worst measured 2e-5
PARAMETER_ATOL = 3e-4
ALIGN, INSTRUCT, REASON, RL, LAST = range(5)


def run(
    order: StageOrder,
    workers: Workers = Workers(0, 1),  # noqa: B008
    say: Callable[[dict[str, Any]], None] = lambda event: None,
    hooks: Hooks = Hooks(),  # noqa: B008
) -> dict[str, Any]:
    return run_stage(order, workers, say, hooks)


def _one_rank(rank: int, order: StageOrder, port: int, hooks: Hooks, errors: Any) -> None:
    try:
        torch.set_num_threads(1)  # the OpenMP threads of the parent do not survive the fork
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
        run(order, Workers(rank, 2), hooks=hooks)
        dist.destroy_process_group()
    except BaseException as error:
        errors.put(repr(error))
        raise


def run_on_two(order: StageOrder, port: int, good: bool = True, hooks: Hooks = Hooks()) -> list[str]:  # noqa: B008
    """Run a stage on two processes; returns what went wrong, which must be nothing unless `good` is false."""
    ranks, errors = run_ranks(_one_rank, 2, order, port, hooks)
    failed = [process.exitcode != 0 for process in ranks]
    said = [errors.get(timeout=5) for _ in range(sum(failed))]
    assert not (good and any(failed)), said
    return said


def weights(order: StageOrder) -> dict[str, torch.Tensor]:
    model = AutoModelForImageTextToText.from_pretrained(Path(order.folder) / "model")
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def change(order: StageOrder) -> float:
    """The largest change of a weight over the stage."""
    before = dict(AutoModelForImageTextToText.from_pretrained(order.start).named_parameters())
    return max(float((value - before[name].detach()).abs().max()) for name, value in weights(order).items())


def assert_equal_weights(first: StageOrder, second: StageOrder, atol: float) -> None:
    ours, theirs = weights(first), weights(second)
    worst = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    assert worst <= atol, worst


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


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Killed(Exception):
    pass


def die(name: str, step: int) -> None:
    raise Killed


def kill_at_its_checkpoint(order: StageOrder) -> None:
    """Run a stage until its first checkpoint is whole, and no further."""
    with pytest.raises(Killed):
        run(order, hooks=Hooks(published=die))


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


RL_SMALL = ("objective.rollout.keep=[0.0,1.0]", "objective.rollout.prompts=4", "objective.rollout.max_new_tokens=8",
            "objective.rollout.n=4", "optim.kind=adamw", "objective.rollout.temperature=1.0",
            "objective.rewards={accuracy: 0.8, format: 0.1, length: 0.1}",  # untrained, it differs in lengths alone
            "objective.length={default: [0, 4, 64, 96]}")  # fmt: skip
POLICIES = {
    "kl-and-entropy": (
        "objective.kl={coef: 0.1}",
        "objective.entropy={coef: 0.5, bands: {default: [0.0, 0.1]}}",
        "objective.advantage={name: g2rpo, scope: group+task, recenter: true}",
    ),
    "gspo": (
        "objective.loss={name: gspo, aggregate: sequence, clip: [0.0003, 0.0004]}",
        "objective.advantage.credit=response",
    ),
    "dr_grpo": ("objective.loss={name: clip, aggregate: constant}", "objective.advantage={name: dr_grpo}"),
    "cispo": ("objective.loss={name: cispo, clip: [1.0, 4.0]}", "objective.advantage={name: rloo}"),
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_learns_the_same_on_two_workers_as_on_one(
    order: Callable[..., StageOrder], unused_port: int, name: str
) -> None:
    options = (*RL_SMALL, *POLICIES[name], "steps=2", "train={decoder: 0.001}")
    alone, together = order(RL, "one", *options), order(RL, "two", *options)
    events: list[dict[str, Any]] = []
    run(alone, say=events.append)
    assert change(alone) > 1e-4
    if name == "kl-and-entropy":
        metrics = events[-1]["metrics"]
        assert metrics["train/kl"] >= 0 and metrics["train/entropy"] > 0.1
    run_on_two(together, unused_port)
    assert_equal_weights(alone, together, PARAMETER_ATOL)


def test_a_step_that_was_written_is_read_and_not_generated_again(order: Callable[..., StageOrder]) -> None:
    first, second = order(RL, "first", *RL_SMALL, "steps=1"), order(RL, "second", *RL_SMALL, "steps=1")
    run(first)
    shutil.copytree(Path(first.folder) / "rollouts", Path(second.folder) / "rollouts")
    (table,) = (Path(second.folder) / "rollouts").iterdir()
    stamp = table.stat().st_mtime_ns
    run(second)
    assert table.stat().st_mtime_ns == stamp
    assert_equal_weights(first, second, 0.0)


def failing_engine(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The engine's process dies, as far as its caller sees, in these steps."""

    def generate(self: Any, requests: Any) -> Any:
        if self.version in steps:
            raise ConnectionResetError("the engine died")
        return whole(self, requests)

    whole = TransformersEngine.generate
    monkeypatch.setattr(TransformersEngine, "generate", generate)


def test_an_engine_that_fails_costs_its_groups_and_the_step_is_replayed_alike(
    order: Callable[..., StageOrder], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*RL_SMALL, "train={decoder: 0.001}", "optim.warmup=0.0")
    first, second = order(RL, "first", *options), order(RL, "second", *options)
    events: list[dict[str, Any]] = []
    failing_engine(monkeypatch, 0)
    run(first, say=events.append)
    assert change(first) > 1e-4
    assert [e["metrics"]["rollout/engine_failures"] for e in events if e["kind"] == "step"][-1] == 0
    tables = sorted((Path(first.folder) / "rollouts").iterdir())
    assert [pq.read_metadata(table).num_rows for table in tables] == [0, 16, 16]
    monkeypatch.undo()
    shutil.copytree(Path(first.folder) / "rollouts", Path(second.folder) / "rollouts")
    run(second)
    assert_equal_weights(first, second, 0.0)


def test_an_engine_that_goes_on_failing_ends_the_run_which_goes_on_from_there_later(
    order: Callable[..., StageOrder], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*RL_SMALL, "train={decoder: 0.001}", "steps=6")
    done = order(RL, "done", *options).model_copy(update={"checkpoint": CheckpointOptions(every_minutes=60)})
    failing_engine(monkeypatch, 1, 2, 3)
    with pytest.raises(SightloomError, match=r"failed in 3 steps in a row, up to step 3; last: .*the engine died"):
        run(done)
    monkeypatch.undo()
    events: list[dict[str, Any]] = []
    run(done, say=events.append)
    assert next(event["step"] for event in events if event["kind"] == "start") == 3
    assert [event["step"] for event in events if event["kind"] == "step"][-1] == 6


def test_an_engine_that_is_too_slow_has_failed(order: Callable[..., StageOrder]) -> None:
    with pytest.raises(SightloomError, match=r"TimeoutError: 16 responses were not written within 0.001 s"):
        run(order(RL, "slow", *RL_SMALL, "objective.rollout.limit_s=0.001"))


def test_vllm_is_refused_where_it_would_write_with_old_weights(order: Callable[..., StageOrder]) -> None:
    with pytest.raises(UserMistake, match=r"packed copies of the old weights"):
        run(order(RL, "vllm", "objective.rollout.engine=vllm"))


def test_an_export_loads_with_transformers_alone_and_a_damaged_one_is_refused(order: Callable[..., StageOrder]) -> None:
    done = order(REASON, "reason")
    outcome = run(done)
    folder = Path(done.folder) / "model"
    assert outcome["steps"] == 3 and outcome["samples"] > 0 and outcome["seconds"] > 0
    AutoProcessor.from_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen3_vl"
    verify(folder)
    assert 0 <= the_outsider().prove(folder) < 1e-4
    weights_file = folder / "model.safetensors"
    whole = weights_file.read_bytes()
    data = bytearray(whole)
    data[-3] ^= 1
    weights_file.write_bytes(data)
    with pytest.raises(SightloomError, match=r"model\.safetensors differs"):
        verify(folder)

    # what the checksums do not know of, the answers do: other weights, another template, a file that is not there
    tensors = load_file(weights_file)
    tensors["model.language_model.norm.weight"] *= 1.01
    save_file(tensors, weights_file, {"format": "pt"})
    with pytest.raises(SightloomError, match=r"its logits differ by"):
        the_outsider().prove(folder)
    weights_file.write_bytes(whole)
    template = folder / "chat_template.jinja"
    words = template.read_text()
    template.write_text(words.replace("<|im_start|>assistant", "<|im_start|>user"))
    with pytest.raises(SightloomError, match=r"give other tokens"):
        the_outsider().prove(folder)
    template.write_text(words)
    the_outsider().prove(folder)
    (folder / "config.json").unlink()
    with pytest.raises(SightloomError, match=r"is not the same one for transformers alone"):
        the_outsider().prove(folder)


def test_the_one_who_proves_an_export_cannot_import_sightloom() -> None:
    finder = outsider.Refused()
    assert finder.find_spec("transformers") is None and finder.find_spec("sightloomlike") is None
    for name in ("sightloom", "sightloom.model.attention"):
        with pytest.raises(ImportError, match="without sightloom"):
            finder.find_spec(name)


PREFER = ("optim.kind=adamw", 'mix={pairs: {where: "kind == \\"preference\\"", weight: 1.0}}')
PREFERENCES = {
    "dpo": ("objective={kind: dpo}", "train={fusion: 0.001, decoder: 0.002}"),
    "dpo-lora": ("objective={kind: dpo}", "train={decoder: {lora: {rank: 4, alpha: 8}, lr: 0.01}}"),
    "rm": ("objective={kind: rm}", "train={decoder: 0.002, head: 0.002}"),
}


@pytest.mark.parametrize("name", ["dpo", "rm"])
def test_preferences_go_on_from_a_checkpoint_against_the_same_reference(
    order: Callable[..., StageOrder], name: str
) -> None:
    options = (*PREFER, *PREFERENCES[name])
    whole, broken = order(LAST, "whole", *options), order(LAST, "broken", *options)
    outcome = run(whole)
    assert outcome["metrics"]["eval/all/pairs"] > 0
    kill_at_its_checkpoint(broken)
    again = run(broken)
    assert_equal_weights(whole, broken, 0.0)
    assert again["metrics"] == outcome["metrics"]


@pytest.mark.parametrize("name", ["dpo-lora", "rm"])
def test_preferences_learnt_by_two_workers_that_share_the_model_are_those_of_one(
    order: Callable[..., StageOrder], name: str, unused_port: int
) -> None:
    options = (*PREFER, *PREFERENCES[name])
    alone, together = order(LAST, "one", *options), order(LAST, "two", *options)
    run(alone)
    run_on_two(together.model_copy(update={"parallel": ParallelOptions(shard=2)}), unused_port)
    assert_equal_weights(alone, together, PARAMETER_ATOL)
    assert change(alone) > 1e-3


def test_adapters_train_the_decoder_alone_and_the_export_is_a_plain_model(
    order: Callable[..., StageOrder],
) -> None:
    train = "train={decoder: {lora: {rank: 4, alpha: 8}, lr: 0.01}}"
    whole, broken = (
        order(INSTRUCT, "whole", train, "optim.kind=adamw"),
        order(INSTRUCT, "broken", train, "optim.kind=adamw"),
    )
    run(whole)
    before = dict(AutoModelForImageTextToText.from_pretrained(whole.start).named_parameters())
    after = weights(whole)
    assert list(after) == list(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 4 * 7 and all(name.split(".")[-2] in PROJECTIONS for name in changed)
    verify(Path(whole.folder) / "model")

    kill_at_its_checkpoint(broken)
    run(broken)
    assert_equal_weights(whole, broken, 0.0)


def test_rollouts_are_kept_as_rows_and_a_step_without_signal_leaves_the_weights(
    order: Callable[..., StageOrder],
) -> None:
    # an untrained model solves nothing, so no group carries signal
    done = order(RL, "rl", "objective.rollout.prompts=2", "objective.rollout.max_new_tokens=6", "steps=1")
    run(done)
    files = os.listdir(Path(done.folder) / "rollouts")
    rows = pq.read_table(Path(done.folder) / "rollouts" / files[0])
    rounds = done.stage.objective.rollout.rounds  # type: ignore[union-attr]
    assert rows.num_rows == 2 * 8 * rounds
    assert {"uid", "token_ids", "logprobs", "reward", "advantage", "text"} <= set(rows.column_names)
    pages = Path(done.folder) / "rollout-pages"
    text = (pages / "step-000000.html").read_text()
    assert text.count("<img") == 2 * rounds and text.count("<tr class") == rows.num_rows
    table = json.loads((pages / "step-000000.json").read_text())
    assert len(table["data"]) == rows.num_rows and {len(row) for row in table["data"]} == {len(table["columns"])}
    assert change(done) == 0
