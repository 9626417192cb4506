"""Reinforcement on a model that was taught its few prompts a little: is its entropy held?"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightloom.training.parallel import Workers
from sightloom.training.worker import StageOrder, run_stage

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
REASON, RL = 2, 3
BAND = (2.6, 3.0)
POLICY = (
    "batch.window=32", "objective.rollout.rounds=1", "objective.rollout.prompts=12", "objective.rollout.n=8",
    "objective.rollout.max_new_tokens=48", "objective.rollout.temperature=1.0", "objective.advantage.credit=response",
    "optim.schedule=constant", "optim.warmup=0.0", "train.decoder=0.0005", "batch.max_tokens=3072",
)  # fmt: skip


@pytest.fixture
def taught(order: Callable[..., StageOrder]) -> Path:
    """A model that writes worked answers in the right form, seldom right ones."""
    teach = order(
        REASON, "taught", "steps=42", "batch.max_tokens=800", "train={vision: 0.002, fusion: 0.003, decoder: 0.004}",
        'mix={worked: {where: "reasoning_chars > 0", weight: 1.0}}',
    )  # fmt: skip
    run_stage(teach, Workers(0, 1), lambda event: None)
    return Path(teach.folder) / "model"


def policy(order: Callable[..., StageOrder], start: Path, folder: str, *sets: str) -> list[dict[str, Any]]:
    """The metrics of each step that was told."""
    told: list[dict[str, Any]] = []
    asked = order(RL, folder, *POLICY, *sets).model_copy(update={"start": str(start)})
    run_stage(asked, Workers(0, 1), lambda event: told.append(event["metrics"]) if event["kind"] == "step" else None)
    return told


def test_entropy_shaping_keeps_the_entropy_in_a_band_that_it_else_leaves(
    order: Callable[..., StageOrder], taught: Path
) -> None:
    shaped = f"objective.entropy={{coef: 0.3, bands: {{default: [{BAND[0]}, {BAND[1]}]}}}}"
    free, held = policy(order, taught, "free", "steps=48"), policy(order, taught, "held", "steps=48", shaped)
    last = {}
    for name, told in (("free", free), ("held", held)):
        last[name] = np.mean([m["train/entropy"] for m in told if "train/entropy" in m][-8:])
    assert BAND[0] <= last["held"] <= BAND[1]
    assert not BAND[0] <= last["free"] <= BAND[1]
