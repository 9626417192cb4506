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
from sightloom.model.load import VLM
from sightloom.model.packs import Pack
from sightloom.objectives.policy import Totals, aggregate, clip_loss, mismatch_weight
from sightloom.training.corpus import Corpus
from sightloom.training.curriculum import Stage
from sightloom.training.engines import TransformersEngine
from sightloom.training.objective_options import RlObjective
from sightloom.training.parallel import Workers
from sightloom.training.rollouts import Group, Rollouts
from sightloom.training.tasks.batch import Packer
from sightloom.training.tasks.objective import Loss

_MAX_MISMATCH: Final = 0.1  # mean |Δ log-probability| between engine and trainer at equal weights


@dataclass(frozen=True, slots=True, eq=False)
class PolicyBatch:
    """Packed responses with their prompts; per label the advantage and the engine's log-probability."""

    pack: Pack
    advantages_M: torch.Tensor
    rollout_logprobs_M: torch.Tensor
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
    ) -> None:
        self._options, self._packer, self._workers = options, packer, workers
        self._max_tokens = stage.batch.max_tokens
        self._uids: list[str] = []
        engine = TransformersEngine(vlm)
        self._rollouts = Rollouts(options, stage, corpus, packer.encoder, engine, workers, seed, folder / "rollouts")

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
        """Nothing: a micro-batch stands for itself."""

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
        token = clip_loss(logprobs_M, old_M, batch.advantages_M, *options.clip, options.dual_clip)
        weighted_M = token.loss_M * mismatch_weight(old_M, batch.rollout_logprobs_M, options.tis_cap)
        totals = Totals(counts["labels"], counts["responses"], self._options.rollout.max_new_tokens)
        num_documents = batch.pack.num_documents
        total = aggregate(weighted_M, batch.pack.label_documents, num_documents, options.aggregate, totals)
        num = float(batch.pack.num_labels)
        return Loss(
            total,
            {
                "policy_loss": (float(weighted_M.detach().sum()), num),
                "entropy": (float(out.entropy.detach().sum()), num),
                "mismatch": (float(drift.sum()), num),
                "clipped": (float(token.clipped_M.sum()), num),
            },
        )

    def consumed(self) -> list[str]:
        """Uids of the prompts of this worker's groups with signal."""
        return self._uids

    def report(self) -> dict[str, float]:
        """Rewards by part, length and share of groups with signal, of the last step."""
        return dict(self._rollouts.numbers)

    def state(self) -> dict[str, Any]:
        """The place in the stream of prompts."""
        return {"cursor": self._rollouts.cursor}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on at a place."""
        self._rollouts.cursor = int(state["cursor"])

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        """Nothing: answers are evaluated on the exported model."""
        del model
        return {}

    def close(self) -> None:
        """Nothing is read ahead."""

    def _build(self, members: Sequence[tuple[Group, int]]) -> PolicyBatch:
        documents, advantages, logprobs = [], [], []
        for group, index in members:
            generation = group.responses[index].generation
            chosen = torch.tensor([not forced for forced in generation.forced], dtype=torch.bool)
            documents.append(
                Document(
                    torch.cat([group.prompt.input_ids, torch.tensor(generation.token_ids, dtype=torch.int64)]),
                    torch.cat([torch.zeros(len(group.prompt), dtype=torch.bool), chosen]),
                    group.prompt.pixel_values,
                    group.prompt.image_grid_thw,
                )
            )
            logprobs.append(torch.tensor(generation.logprobs, dtype=torch.float32)[chosen])
            advantages.append(torch.full((int(chosen.sum()),), group.advantages[index]))
        empty = [torch.zeros(0)]
        return PolicyBatch(
            self._packer.pack(documents), torch.cat(advantages or empty), torch.cat(logprobs or empty), len(members)
        )


def _bins(groups: list[Group], max_tokens: int) -> list[list[tuple[Group, int]]]:
    """Responses in order, cut where a bin is full; a response that is longer alone has a bin of its own."""
    bins: list[list[tuple[Group, int]]] = []
    filled = max_tokens
    for group in groups:
        for index, response in enumerate(group.responses):
            length = len(group.prompt) + response.generation.num_tokens
            if filled + length > max_tokens or not bins:
                bins.append([])
                filled = 0
            bins[-1].append((group, index))
            filled += length
    return bins
