"""Supervised fine-tuning: the loss of the model's own turns, normalised over all labelled tokens of the step."""

import torch

from sightloom.objectives.language import lm_loss
from sightloom.training.corpus import Corpus, Picked
from sightloom.training.curriculum import Stage
from sightloom.training.objective_options import SftObjective
from sightloom.training.order import keyed
from sightloom.training.parallel import Workers
from sightloom.training.tasks.batch import Packer, TextBatch, by_domain, loss_by_document
from sightloom.training.tasks.feed import Fed, Feed
from sightloom.training.tasks.objective import Loss

_EMPTY_DRAW = 6  # purpose of the keyed draw


class Sft(Fed[TextBatch]):
    """Conversations with or without worked steps, captions as replay; one micro-batch a bin."""

    def __init__(
        self, options: SftObjective, stage: Stage, corpus: Corpus, packer: Packer, workers: Workers, seed: int
    ) -> None:
        self._options, self._packer, self._seed = options, packer, seed
        super().__init__(Feed(corpus, stage, seed, workers, self._build, merged=False))

    def counts(self, batches: list[TextBatch]) -> dict[str, float]:
        """Labels, samples, tokens and pictures of this worker."""
        grids = [batch.pack.image_grid_thw for batch in batches if batch.pack.image_grid_thw is not None]
        return {
            "labels": float(sum(batch.pack.num_labels for batch in batches)),
            "samples": float(sum(batch.num_samples for batch in batches)),
            "tokens": float(sum(batch.pack.num_tokens for batch in batches)),
            "images": float(sum(len(grid) for grid in grids)),
        }

    def loss(self, model: torch.nn.Module, batch: TextBatch, counts: dict[str, float]) -> Loss:
        """Σ CE over this batch's labels / all labels of the step."""
        logprobs_M = model(batch.pack).logprobs
        total = lm_loss(logprobs_M)
        sums = {"loss": (float(total.detach()), float(batch.pack.num_labels))}
        sums |= by_domain("loss", batch.domains, *loss_by_document(logprobs_M.detach(), batch.pack))
        return Loss(total / max(counts["labels"], 1.0), sums)

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        """Nothing: answers are evaluated on the exported model."""
        del model
        return {}

    def _build(self, samples: list[Picked]) -> TextBatch:
        documents = [self._packer.render(picked, self._options.turns, self._mode(picked)) for picked in samples]
        return TextBatch(
            self._packer.pack(documents),
            tuple(picked.sample.conversation.domain for picked in samples) or ("",),
            len(samples),
        )

    def _mode(self, picked: Picked) -> bool | None:
        if not self._options.reasoning:
            return None
        return bool(keyed(self._seed, _EMPTY_DRAW, picked.row).random() >= self._options.empty_think_share)
