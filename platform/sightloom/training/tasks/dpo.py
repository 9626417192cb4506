"""Direct preference optimisation: the chosen answer gains on the rejected one against a frozen copy of the start."""

from typing import Any

import torch

from sightloom.model.heads import TrainableVLM
from sightloom.model.load import VLM, load
from sightloom.objectives.preference import dpo_loss, ipo_loss, preference_margin
from sightloom.training.corpus import Corpus
from sightloom.training.curriculum import Stage
from sightloom.training.objective_options import DpoObjective
from sightloom.training.parallel import Workers
from sightloom.training.tasks.batch import Packer
from sightloom.training.tasks.objective import Loss
from sightloom.training.tasks.pairs import Compared, ComparedBatch


class Dpo(Compared):
    """The reference is the model that the stage starts from, read once more."""

    def __init__(
        self, options: DpoObjective, stage: Stage, corpus: Corpus, packer: Packer, workers: Workers, seed: int, vlm: VLM
    ) -> None:
        self._options = options
        reference = load(str(vlm.folder), device=packer.device).model
        self._reference = TrainableVLM(reference).eval().requires_grad_(False)
        super().__init__(options.reasoning, False, stage, corpus, packer, workers, seed)

    def loss(self, model: Any, batch: ComparedBatch, counts: dict[str, float]) -> Loss:
        """Σ over this batch's pairs / all pairs of the step."""
        margin_N = self.margins(model, batch)
        if self._options.loss == "ipo":
            total = ipo_loss(margin_N, self._options.beta)
        else:
            total = dpo_loss(margin_N, self._options.beta, self._options.label_smoothing)
        return Loss(total / max(counts["samples"], 1.0), self.shown(total, margin_N, batch))

    def margins(self, model: Any, batch: ComparedBatch) -> torch.Tensor:
        """Δ of the answers' log-probabilities against the reference: token sums, for IPO token means."""
        with torch.no_grad():
            reference_2N = self._answers(self._reference, batch)
        policy_2N = self._answers(model, batch)
        pairs = batch.num_pairs
        chosen, rejected = slice(0, pairs), slice(pairs, 2 * pairs)
        return preference_margin(policy_2N[chosen], policy_2N[rejected], reference_2N[chosen], reference_2N[rejected])

    def _answers(self, model: Any, batch: ComparedBatch) -> torch.Tensor:
        """The log-probability of each document's answer."""
        logprobs_M = model(batch.pack).logprobs
        owner_M, num = batch.pack.label_documents, batch.pack.num_documents
        sums = logprobs_M.new_zeros(num).index_add(0, owner_M, logprobs_M)
        return sums / owner_M.bincount(minlength=num).clamp(min=1) if self._options.loss == "ipo" else sums
