"""A reward model: a number at each answer's last token, learnt from which of two answers was preferred."""

from typing import Any

import torch

from sightloom.objectives.preference import reward_loss
from sightloom.training.corpus import Corpus
from sightloom.training.curriculum import Stage
from sightloom.training.objective_options import RmObjective
from sightloom.training.parallel import Workers
from sightloom.training.tasks.batch import Packer
from sightloom.training.tasks.objective import Loss
from sightloom.training.tasks.pairs import Compared, ComparedBatch


class Rm(Compared):
    """Bradley-Terry on the rewards of both answers."""

    def __init__(
        self, options: RmObjective, stage: Stage, corpus: Corpus, packer: Packer, workers: Workers, seed: int
    ) -> None:
        self._options = options
        super().__init__(options.reasoning, True, stage, corpus, packer, workers, seed)

    def loss(self, model: Any, batch: ComparedBatch, counts: dict[str, float]) -> Loss:
        """Σ over this batch's pairs / all pairs of the step."""
        chosen_N, rejected_N = self._rewards(model, batch)
        total = reward_loss(chosen_N, rejected_N, self._options.margin)
        return Loss(total / max(counts["samples"], 1.0), self.shown(total, chosen_N - rejected_N, batch))

    def margins(self, model: Any, batch: ComparedBatch) -> torch.Tensor:
        """The chosen answer's reward less the rejected one's."""
        chosen_N, rejected_N = self._rewards(model, batch)
        return chosen_N - rejected_N

    def _rewards(self, model: Any, batch: ComparedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        rewards_2N = model(batch.pack, want=("reward",)).rewards
        return rewards_2N[: batch.num_pairs], rewards_2N[batch.num_pairs :]
