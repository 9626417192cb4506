"""Policy optimisation: the same loop, its batches made of rollouts with verifiable rewards (training.md §6, §7).

A step's responses are written with the weights that the step starts from, so the old log-probabilities are the
trainer's own of the same forward; the engine's are kept and weigh tokens where the two differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from sightloom.errors import SightloomError
from sightloom.model.chat import Document
from sightloom.model.heads import TrainableVLM
from sightloom.model.load import VLM, load
from sightloom.model.packs import Branch, Pack
from sightloom.objectives.advantages import along_prefixes
from sightloom.objectives.kl import ESTIMATORS
from sightloom.objectives.policy import (
    TokenLoss,
    Totals,
    aggregate,
    cispo_loss,
    clip_loss,
    gspo_loss,
    mismatch_weight,
)
from sightloom.training.corpus import Corpus
from sightloom.training.curriculum import Stage
from sightloom.training.engines import RolloutEngine
from sightloom.training.objective_options import RlObjective
from sightloom.training.parallel import Workers
from sightloom.training.rollout_rows import Group
from sightloom.training.rollouts import Rollouts
from sightloom.training.tasks.batch import Packer
from sightloom.training.tasks.entropy_bands import EntropyBands
from sightloom.training.tasks.objective import Loss

_MAX_MISMATCH: Final = 0.1  # mean |Δ log-probability| between engine and trainer at equal weights


@dataclass(frozen=True, slots=True, eq=False)
class PolicyBatch:
    """Packed responses with their prompts; per label the advantage, the engine's log-probability, the band."""

    pack: Pack
    advantages_M: torch.Tensor
    rollout_logprobs_M: torch.Tensor
    bands_M: torch.Tensor  # int64, which entropy band each token is held to
    num_responses: int


class Rl:
    """Group-relative policy optimisation on prompts with a checkable answer."""

    source = "rollout"

    def __init__(
        self,
        options: RlObjective,
        stage: Stage,
        corpus: Corpus,
        packer: Packer,
        workers: Workers,
        seed: int,
        vlm: VLM,
        folder: Path,
        engine: RolloutEngine,
        rollouts: Rollouts | None = None,
    ) -> None:
        self._options, self._packer, self._workers = options, packer, workers
        self._max_tokens = stage.batch.max_tokens
        self._uids: list[str] = []
        self._reference: TrainableVLM | None = None
        if options.kl.coef > 0:
            reference = load(str(vlm.folder), device=packer.device).model
            self._reference = TrainableVLM(reference).eval().requires_grad_(False)
        self._bands = EntropyBands(options.entropy, workers)
        self._rollouts = rollouts or Rollouts(
            options,
            stage,
            corpus,
            packer.encoder,
            engine,
            workers,
            seed,
            folder / "rollouts",
        )

    def batches(self, step: int) -> list[PolicyBatch]:
        """Micro-batches of this worker's responses, responses whole; blank ones where other workers have more."""
        groups = self._rollouts.get(step)
        self._uids = [group.uid for group in groups]
        bins = _bins(groups, self._max_tokens)
        most = max(self._workers.gather_counts(len(bins)))
        return [self._build(bins[i] if i < len(bins) else []) for i in range(most)]

    def counts(self, batches: list[PolicyBatch]) -> dict[str, float]:
        """Tokens that the policy chose, responses and packed tokens of this worker."""
        responses = float(sum(batch.num_responses for batch in batches))
        return {
            "labels": float(sum(batch.pack.num_labels for batch in batches)),
            "responses": responses,
            "samples": responses,
            "tokens": float(sum(batch.pack.num_tokens for batch in batches)),
        }

    def prepare(self, model: Any, batches: list[PolicyBatch], counts: dict[str, float]) -> None:
        """Where entropy is shaped, look at all tokens once: a band is about the mean of the whole step."""
        if self._options.entropy.coef > 0:
            with torch.no_grad():
                self._bands.see((self._entropy(model, batch), batch.bands_M) for batch in batches)

    def _entropy(self, model: Any, batch: PolicyBatch) -> torch.Tensor:
        temperature = self._options.rollout.temperature
        entropy: torch.Tensor = model(batch.pack, ("entropy",), temperature, sampled=True).entropy
        return entropy

    def loss(self, model: torch.nn.Module, batch: PolicyBatch, counts: dict[str, float]) -> Loss:
        """The clipped policy loss, aggregated over all tokens (or responses) of the step.

        Raises:
            SightloomError: engine and trainer disagree about the same weights.
        """
        options = self._options.loss
        out = model(
            batch.pack, want=("logprobs", "entropy"), temperature=self._options.rollout.temperature, sampled=True
        )
        logprobs_M = out.logprobs
        old_M = logprobs_M.detach()
        drift = (old_M - batch.rollout_logprobs_M).abs()
        if batch.pack.num_labels and float(drift.mean()) > _MAX_MISMATCH:
            raise SightloomError(
                f"rollouts and trainer differ by {float(drift.mean()):.3f} in mean log-probability at equal weights",
                "the rollout engine does not run the trainer's model",
            )
        token = self._token_loss(logprobs_M, old_M, batch)
        weighted_M = token.loss_M * mismatch_weight(old_M, batch.rollout_logprobs_M, options.tis_cap)
        num = float(batch.pack.num_labels)
        sums = {
            "policy_loss": (float(weighted_M.detach().sum()), num),
            "entropy": (float(out.entropy.detach().sum()), num),
            "mismatch": (float(drift.sum()), num),
            "clipped": (float(token.clipped_M.sum()), num),
        }
        if self._reference is not None:
            with torch.no_grad():
                reference_M = self._reference(
                    batch.pack, temperature=self._options.rollout.temperature, sampled=True
                ).logprobs
            divergence_M = ESTIMATORS[self._options.kl.estimator](logprobs_M, reference_M)
            weighted_M = weighted_M + self._options.kl.coef * divergence_M
            sums["kl"] = (float(divergence_M.detach().sum()), num)
        totals = Totals(counts["labels"], counts["responses"], self._options.rollout.max_new_tokens)
        num_documents = batch.pack.num_documents
        total = aggregate(weighted_M, batch.pack.label_documents, num_documents, options.aggregate, totals)
        if self._options.entropy.coef > 0:
            total = total + self._options.entropy.coef * self._bands.loss(out.entropy, batch.bands_M)
        return Loss(total, sums)

    def _token_loss(self, logprobs_M: torch.Tensor, old_M: torch.Tensor, batch: PolicyBatch) -> TokenLoss:
        options = self._options.loss
        if options.name == "gspo":
            owner_M, num = batch.pack.label_documents, batch.pack.num_documents
            return gspo_loss(logprobs_M, old_M, batch.advantages_M, owner_M, num, *options.clip)
        if options.name == "cispo":
            return cispo_loss(logprobs_M, old_M, batch.advantages_M, options.clip[1])
        return clip_loss(logprobs_M, old_M, batch.advantages_M, *options.clip, options.dual_clip)

    def consumed(self) -> list[str]:
        """Uids of the prompts of this worker's groups with signal."""
        return self._uids

    def report(self) -> dict[str, float]:
        """Rewards by part, length and share of groups with signal, of the last step."""
        return dict(self._rollouts.numbers)

    def state(self) -> dict[str, Any]:
        """The place in the stream of prompts."""
        return {"cursor": self._rollouts.cursor, "idle": self._rollouts.idle}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on at a place."""
        self._rollouts.cursor, self._rollouts.idle = int(state["cursor"]), int(state["idle"])

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        """Nothing: answers are evaluated on the exported model."""
        del model
        return {}

    def close(self) -> None:
        """End the processes of scoring and writing."""
        self._rollouts.close()

    def _build(self, members: Sequence[tuple[Group, int]]) -> PolicyBatch:
        trees: list[tuple[Document, list[Branch]]] = []
        advantages, logprobs, bands = [], [], []
        by_token: list[list[float]] = []
        for group, index in members:
            generation = group.responses[index].generation
            chosen = torch.tensor([not forced for forced in generation.forced], dtype=torch.bool)
            if not trees or trees[-1][0] is not group.prompt:
                trees.append((group.prompt, []))
                by_token = self._by_token(group)
            trees[-1][1].append(Branch(torch.tensor(generation.token_ids, dtype=torch.int64), chosen))
            logprobs.append(torch.tensor(generation.logprobs, dtype=torch.float32)[chosen])
            advantages.append(torch.tensor(by_token[index], dtype=torch.float32)[chosen])
            bands.append(torch.full((int(chosen.sum()),), self._bands.index(group.task)))
        empty = [torch.zeros(0)]
        device = self._packer.device
        return PolicyBatch(
            self._packer.pack_trees(trees),
            torch.cat(advantages or empty).to(device),
            torch.cat(logprobs or empty).to(device),
            torch.cat(bands or [torch.zeros(0, dtype=torch.int64)]).to(device),
            len(members),
        )

    def _by_token(self, group: Group) -> list[list[float]]:
        """The advantage of each token of each of a group's responses."""
        tokens = [response.generation.token_ids for response in group.responses]
        if self._options.advantage.credit == "prefix":
            return along_prefixes(group.advantages, tokens)
        return [[advantage] * len(ids) for advantage, ids in zip(group.advantages, tokens, strict=True)]


def _bins(groups: list[Group], max_tokens: int) -> list[list[tuple[Group, int]]]:
    """Responses, cut where a bin is full; a bin holds a prompt once. What is too long alone has its own bin."""
    bins: list[list[tuple[Group, int]]] = []
    filled = 0
    for group in groups:
        for index, response in enumerate(group.responses):
            length = response.generation.num_tokens
            if not bins or bins[-1][-1][0] is not group:
                length += len(group.prompt)
            if not bins or filled + length > max_tokens:
                bins.append([])
                filled, length = 0, len(group.prompt) + response.generation.num_tokens
            bins[-1].append((group, index))
            filled += length
    return bins
