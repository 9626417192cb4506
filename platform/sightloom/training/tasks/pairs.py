"""What the objectives on preferences share: both answers of a pair in one pack, and how many pairs come out right."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from sightloom.model.packs import Pack
from sightloom.objectives.preference import num_right
from sightloom.training.corpus import Corpus, Picked
from sightloom.training.curriculum import Stage
from sightloom.training.order import Rows, keyed
from sightloom.training.parallel import Workers
from sightloom.training.reader import Reader
from sightloom.training.tasks.batch import Packer
from sightloom.training.tasks.feed import Fed, Feed

_HELDOUT_DRAW: Final = 12  # purpose of the keyed draw
_HELDOUT_PAIRS: Final = 200
_HELDOUT_BATCH: Final = 16


@dataclass(frozen=True, slots=True, eq=False)
class ComparedBatch:
    """Packed answers: n chosen ones, then the n rejected ones; `domains` has one entry a pair."""

    pack: Pack
    domains: tuple[str, ...]

    @property
    def num_pairs(self) -> int:
        return len(self.domains)


class Compared(Fed[ComparedBatch]):
    """Pairs of answers, one micro-batch a bin; a row of the corpus is a pair, so no pair is torn apart.

    Args:
        reasoning: whether worked steps are shown; else they are left out.
        pooled: mark each document's last token for the reward head.
    """

    def __init__(
        self, reasoning: bool, pooled: bool, stage: Stage, corpus: Corpus, packer: Packer, workers: Workers, seed: int
    ) -> None:
        self._thinking, self._pooled = (True if reasoning else None), pooled
        self._packer, self._corpus = packer, corpus
        super().__init__(Feed(corpus, stage, seed, workers, self._build, merged=False))
        manifests = dict.fromkeys(source.manifest for source in stage.mix.values())
        held = [corpus.select('kind == "preference"', manifest, held_out=True) for manifest in manifests]
        self._held: Rows = keyed(seed, _HELDOUT_DRAW).permutation(np.concatenate(held))[:_HELDOUT_PAIRS]

    @abstractmethod
    def margins(self, model: Any, batch: ComparedBatch) -> torch.Tensor:
        """By how much each pair's chosen answer is ahead, [N]."""

    def shown(
        self, total: torch.Tensor, margin_N: torch.Tensor, batch: ComparedBatch
    ) -> dict[str, tuple[float, float]]:
        """What a micro-batch adds to the curves: loss, share of pairs in order (of each domain too) and margin."""
        margins = margin_N.detach()
        pairs = float(batch.num_pairs)
        sums = {
            "loss": (float(total.detach()), pairs),
            "pair_accuracy": (num_right(margins), pairs),
            "pair_margin": (float(margins.sum()), pairs),
        }
        for domain in dict.fromkeys(batch.domains):
            own = margins[[name == domain for name in batch.domains]]
            sums[f"pair_accuracy/{domain}"] = (num_right(own), float(len(own)))
        return sums

    def counts(self, batches: list[ComparedBatch]) -> dict[str, float]:
        """Pairs, tokens and pictures of this worker."""
        grids = [batch.pack.image_grid_thw for batch in batches if batch.pack.image_grid_thw is not None]
        return {
            "samples": float(sum(batch.num_pairs for batch in batches)),
            "tokens": float(sum(batch.pack.num_tokens for batch in batches)),
            "images": float(sum(len(grid) for grid in grids)),
        }

    @torch.no_grad()
    def measure(self, model: Any) -> dict[str, float]:
        """Accuracy and mean margin on up to 200 held-out pairs, per domain and over all; a tie is half right."""
        samples = Reader(self._corpus).read(self._held)
        margins: dict[str, list[torch.Tensor]] = {}
        for start in range(0, len(samples), _HELDOUT_BATCH):
            batch = self._build(samples[start : start + _HELDOUT_BATCH])
            for domain, margin in zip(batch.domains, self.margins(model, batch), strict=True):
                for name in ("all", domain):
                    margins.setdefault(name, []).append(margin)
        if not margins:
            return {}
        metrics = {
            f"eval/{name}/pair_accuracy": num_right(torch.stack(values)) / len(values)
            for name, values in margins.items()
        }
        metrics["eval/all/pair_margin"] = float(torch.stack(margins["all"]).mean())
        metrics["eval/all/pairs"] = float(len(margins["all"]))
        return metrics

    def _build(self, samples: list[Picked]) -> ComparedBatch:
        both = [self._packer.render_both(picked, self._thinking) for picked in samples]
        documents = [chosen for chosen, _ in both] + [rejected for _, rejected in both]
        documents = [replace(document, pool=self._pooled) for document in documents]
        domains = tuple(picked.sample.conversation.domain for picked in samples)
        return ComparedBatch(self._packer.pack(documents), domains)
