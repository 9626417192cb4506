"""Alignment: pictures and captions meet in one space, and captions are written token by token.

Each pair gives two documents: the picture with its caption (language loss; its merged tokens' mean is the picture's
feature) and the caption alone (its last state is the text's feature). The contrastive batch is the whole step over all
workers: a worker's bins form one micro-batch, or several with GradCache (Gao et al. 2021, arXiv:2101.06983): features
without a graph, the loss's gradient for each feature, then each micro-batch again with Σ feature·gradient as its loss.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch

from sightloom.metrics import recall_at_k
from sightloom.model.packs import Pack
from sightloom.objectives.contrastive import clip_loss, siglip_loss
from sightloom.objectives.language import lm_loss
from sightloom.training.corpus import Corpus, Picked
from sightloom.training.curriculum import Stage
from sightloom.training.objective_options import AlignObjective
from sightloom.training.order import Rows, keyed
from sightloom.training.parallel import Workers
from sightloom.training.reader import Reader
from sightloom.training.tasks.batch import Packer, by_domain, loss_by_document
from sightloom.training.tasks.feed import Fed, Feed
from sightloom.training.tasks.objective import Loss

_HELDOUT_DRAW: Final = 7  # purpose of the keyed draw
_HELDOUT_PAIRS: Final = 200
_HELDOUT_BATCH: Final = 50
_WANT: Final = ("logprobs", "contrastive")


@dataclass(frozen=True, slots=True, eq=False)
class PairBatch:
    """Packed pairs: n pictures with captions, then the n captions alone; `domains` has one entry a pair."""

    pack: Pack
    domains: tuple[str, ...]

    @property
    def num_pairs(self) -> int:
        return len(self.domains)


@dataclass(frozen=True, slots=True)
class _Features:
    """The loss's gradient for the features of one micro-batch's pictures and captions, [B, D] each."""

    image: torch.Tensor
    text: torch.Tensor


class Align(Fed[PairBatch]):
    """Contrastive loss across all workers plus captioning."""

    def __init__(
        self, options: AlignObjective, stage: Stage, corpus: Corpus, packer: Packer, workers: Workers, seed: int
    ) -> None:
        self._options, self._packer, self._workers = options, packer, workers
        self._corpus = corpus
        self._cached: dict[int, _Features] = {}
        super().__init__(Feed(corpus, stage, seed, workers, self._build, merged=not options.grad_cache))
        held = corpus.select('kind == "pair"', held_out=True)
        self._held: Rows = keyed(seed, _HELDOUT_DRAW).permutation(held)[:_HELDOUT_PAIRS]

    def counts(self, batches: list[PairBatch]) -> dict[str, float]:
        """Labels, pairs and tokens of this worker."""
        pairs = float(sum(batch.num_pairs for batch in batches))
        return {
            "labels": float(sum(batch.pack.num_labels for batch in batches)),
            "samples": pairs,
            "images": pairs,
            "tokens": float(sum(batch.pack.num_tokens for batch in batches)),
        }

    def prepare(self, model: Any, batches: list[PairBatch], counts: dict[str, float]) -> None:
        """With GradCache: the contrastive loss of the whole step, as gradients for each micro-batch's features.

        The gradients of the scale and of the bias are added to theirs here.
        """
        if not self._options.grad_cache:
            return
        with torch.no_grad():
            outs = [model(batch.pack, want=("contrastive",)) for batch in batches]
        width = model.heads.text.out_features
        none_BD = model.heads.text.weight.new_zeros(0, width)
        images = [none_BD if out.image_features is None else out.image_features for out in outs]
        texts = [out.text_features for out in outs]
        image_BD, text_BD = (torch.cat([none_BD, *part]).requires_grad_() for part in (images, texts))
        contrastive = self._contrastive(model.heads, image_BD, text_BD)
        (self._options.weight * contrastive / max(counts["samples"], 1.0)).backward()
        assert image_BD.grad is not None and text_BD.grad is not None
        sizes = [len(part) for part in texts]
        gradients = zip(image_BD.grad.split(sizes), text_BD.grad.split(sizes), strict=True)
        self._cached = {id(batch): _Features(*pair) for batch, pair in zip(batches, gradients, strict=True)}
        self._shown = (float(contrastive.detach()), float(sum(batch.num_pairs for batch in batches)))

    def loss(self, model: Any, batch: PairBatch, counts: dict[str, float]) -> Loss:
        """caption_weight · Σ CE / labels + weight · Σ contrastive / pairs, both over all workers."""
        out = model(batch.pack, want=_WANT)
        caption = lm_loss(out.logprobs)
        total = self._options.caption_weight * caption / max(counts["labels"], 1.0)
        if self._options.grad_cache:
            gradient = self._cached.pop(id(batch))
            total = total + (out.text_features * gradient.text).sum()
            if out.image_features is not None:
                total = total + (out.image_features * gradient.image).sum()
            contrastive = self._shown if not self._cached else (0.0, 0.0)  # all of it with the last micro-batch
        else:
            local = self._contrastive(model.heads, out.image_features, out.text_features)
            total = total + self._options.weight * local / max(counts["samples"], 1.0)
            contrastive = (float(local.detach()), float(batch.num_pairs))
        sums = {"caption_loss": (float(caption.detach()), float(batch.pack.num_labels))}
        sums["contrastive_loss"] = contrastive
        return Loss(total, sums | captions_by_domain(out.logprobs, batch))

    @torch.no_grad()  # not inference_mode: a model that is shared out keeps what it gathered for training
    def measure(self, model: Any) -> dict[str, float]:
        """Caption loss, and retrieval of the caption among up to 200 held-out ones, per domain and over all."""
        samples = Reader(self._corpus).read(self._held)
        if not samples:
            return {}
        images, texts, nll, num = [], [], 0.0, 0
        for start in range(0, len(samples), _HELDOUT_BATCH):
            batch = self._build(samples[start : start + _HELDOUT_BATCH])
            out = model(batch.pack, want=_WANT)
            images.append(out.image_features)
            texts.append(out.text_features)
            nll, num = nll + float(lm_loss(out.logprobs)), num + batch.pack.num_labels
        similarity = (torch.cat(images) @ torch.cat(texts).T).cpu().numpy()
        return {
            "eval/all/caption_loss": nll / max(num, 1),
            "eval/all/retrieval_r1": recall_at_k(similarity, 1),
            "eval/all/retrieval_r5": recall_at_k(similarity, 5),
            "eval/all/retrieval_pool": float(len(samples)),
        }

    def _contrastive(self, heads: Any, image_BD: torch.Tensor | None, text_BD: torch.Tensor) -> torch.Tensor:
        if image_BD is None:  # a worker without a bin of this step takes part all the same
            image_BD = text_BD[:0]
        offset = sum(self._workers.gather_counts(len(text_BD))[: self._workers.rank])
        if self._options.contrastive == "clip":
            return clip_loss(image_BD, text_BD, heads.log_scale, self._workers.gather_rows, offset)
        return siglip_loss(image_BD, text_BD, heads.log_scale, heads.bias, self._workers.gather_rows, offset)

    def _build(self, samples: list[Picked]) -> PairBatch:
        shown = [self._packer.render(picked, "all", None) for picked in samples]
        alone = [self._packer.encoder.caption(picked.sample.conversation.messages[-1].text) for picked in samples]
        domains = tuple(picked.sample.conversation.domain for picked in samples)
        return PairBatch(self._packer.pack([*shown, *alone]), domains)


def captions_by_domain(logprobs_M: torch.Tensor, batch: PairBatch) -> dict[str, tuple[float, float]]:
    """The caption loss of each domain: its sum and its number of labels."""
    nll_N, num_N = loss_by_document(logprobs_M.detach(), batch.pack)
    # the captions alone and a blank document, which belong to no pair here, have no label
    return by_domain("caption_loss", batch.domains, nll_N, num_N)
