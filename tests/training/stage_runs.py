"""One stage on one or two processes, as the tests run it, and what the models before and after have in common."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForImageTextToText

from sightloom.training.parallel import Workers
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


class Killed(Exception):
    pass


def die(name: str, step: int) -> None:
    raise Killed


def kill_at_its_checkpoint(order: StageOrder) -> None:
    """Run a stage until its first checkpoint is whole, and no further."""
    with pytest.raises(Killed):
        run(order, hooks=Hooks(published=die))
