"""The mean entropy of a step's tokens against its bands, over all workers (training.md §6)."""

from collections.abc import Iterable

import torch

from sightloom.objectives.entropy import band_loss
from sightloom.training.objective_options import Entropy
from sightloom.training.parallel import Workers


class EntropyBands:
    """Which band a task's tokens are held to, and on which side of it the step's mean is."""

    def __init__(self, options: Entropy, workers: Workers) -> None:
        self._names = sorted(options.bands)
        self._limits_K2 = torch.tensor([options.bands[name] for name in self._names])
        self._workers = workers
        self._mean_K = self._count_K = torch.zeros(len(self._names))

    def index(self, task: str) -> int:
        """The band of a task, that of `default` where it has none of its own."""
        return self._names.index(task if task in self._names else "default")

    def see(self, seen: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Take the step's entropies and bands [M], micro-batch after micro-batch; all workers call it together."""
        sums = dict.fromkeys((f"{kind}/{name}" for kind in ("sum", "count") for name in self._names), 0.0)
        for entropy_M, bands_M in seen:
            for number, name in enumerate(self._names):
                ours = bands_M == number
                sums[f"sum/{name}"] += float(entropy_M[ours].sum())
                sums[f"count/{name}"] += float(ours.sum())
        total = self._workers.sum_all(sums)
        self._count_K = torch.tensor([total[f"count/{name}"] for name in self._names])
        self._mean_K = torch.tensor([total[f"sum/{name}"] for name in self._names]) / self._count_K.clamp(min=1)

    def loss(self, entropy_M: torch.Tensor, bands_M: torch.Tensor) -> torch.Tensor:
        """This micro-batch's share of the surrogate of the distance of the means to their bands."""
        mean, count, limits = (x.to(entropy_M.device) for x in (self._mean_K, self._count_K, self._limits_K2))
        return band_loss(entropy_M, bands_M, mean, count, limits)
