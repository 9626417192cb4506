"""Preference stages on one or two processes and from a checkpoint."""

from collections.abc import Callable

import pytest

from sightloom.training.run_options import ParallelOptions
from sightloom.training.worker import StageOrder

from .stage_runs import LAST, PARAMETER_ATOL, assert_equal_weights, change, kill_at_its_checkpoint, run, run_on_two

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
