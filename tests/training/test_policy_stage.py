"""A policy stage on one or two processes: its rollouts, restarts, and engines that fail."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sightloom.errors import SightloomError, UserMistake
from sightloom.training.engines import TransformersEngine
from sightloom.training.run_options import CheckpointOptions
from sightloom.training.worker import StageOrder

from .stage_runs import (
    PARAMETER_ATOL,
    RL,
    assert_equal_weights,
    change,
    run,
    run_on_two,
)

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
