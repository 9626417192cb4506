"""The seam between the loop and the processes it runs on: sums, gathers and gradient reduction over the workers.

Where every worker holds the whole model, gradients are summed in one flat all-reduce after the last micro-batch; those
of a model that is shared out (`sharding.py`) have then met already.
Losses are local sums over global counts (training.md §4), so the sum over workers is the gradient of the whole step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import Tensor
from torch.distributed.tensor import DTensor

from sightloom.errors import SightloomError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Workers:
    """This process's place among the workers; `Workers(0, 1)` needs no process group.

    `sharded`: they share the model out, so all must run equally many forwards. `device`: where this one computes.
    """

    rank: int
    world: int
    sharded: bool = False
    device: str = "cpu"

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum over the workers; every worker gets it."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values, op=dist.ReduceOp.SUM)
        return values

    def sum_all(self, values: dict[str, float]) -> dict[str, float]:
        """Named numbers summed over the workers in one exchange; all workers must name the same ones."""
        if self.world == 1 or not values:
            return values
        names = sorted(values)
        total = self.sum(torch.tensor([values[name] for name in names], dtype=torch.float64, device=self.device))
        return dict(zip(names, total.tolist(), strict=True))

    def gather_rows(self, rows_ND: Tensor) -> Tensor:
        """All workers' rows, rank after rank, with gradients to the worker each row came from; counts may differ."""
        if self.world == 1:
            return rows_ND
        counts = self.gather_counts(len(rows_ND))
        most = max(counts)
        padded = torch.cat([rows_ND, rows_ND.new_zeros(most - len(rows_ND), *rows_ND.shape[1:])])
        group = dist.distributed_c10d._get_default_group()
        gathered = collectives.all_gather_tensor_autograd(padded.contiguous(), 0, group)
        return torch.cat([gathered[rank * most : rank * most + count] for rank, count in enumerate(counts)])

    def gather_counts(self, count: int) -> list[int]:
        """Each worker's count, by rank."""
        if self.world == 1:
            return [count]
        counts = torch.zeros(self.world, dtype=torch.int64, device=self.device)
        counts[self.rank] = count
        return [int(value) for value in self.sum(counts).tolist()]

    def gather(self, value: Any) -> list[Any]:
        """Each worker's value, by rank: plain data."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def agreed(self, act: Callable[[], T]) -> T:
        """What `act` gives, unless it fails on some worker: then the same SightloomError on all, none waits on."""
        result: T | None = None
        failure: SightloomError | None = None
        try:
            result = act()
        except SightloomError as error:
            failure = error
        for told in self.gather(failure):
            if told is not None:
                raise told
        return cast(T, result)

    def reduce_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over the workers; one that is missing here counts as zero."""
        parameters = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        if self.world == 1 or not parameters:
            return
        flat = torch.cat(
            [
                (parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)).reshape(-1)
                for parameter in parameters
            ]
        )
        dist.all_reduce(flat, op=dist.ReduceOp.SUM)
        start = 0
        for parameter in parameters:
            part = flat[start : start + parameter.numel()].view_as(parameter)
            if parameter.grad is None:
                parameter.grad = part.clone()
            else:
                parameter.grad.copy_(part)
            start += parameter.numel()

    def barrier(self) -> None:
        """Wait for all workers."""
        if self.world > 1:
            dist.barrier()


def ensure_group() -> None:
    """A process group of this process alone, where there is none: FSDP asks for one even then."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
