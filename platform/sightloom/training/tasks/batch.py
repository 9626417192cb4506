"""A micro-batch of packed documents, and how conversations become documents in each rendering."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sightloom.model.chat import Document, Encoder
from sightloom.model.packs import Branch, Pack, pack_branches, pack_documents
from sightloom.training.corpus import Picked
from sightloom.training.index import without_reasoning


@dataclass(frozen=True, slots=True, eq=False)
class TextBatch:
    """A pack whose labels are learnt; `domains` has one entry a document."""

    pack: Pack
    domains: tuple[str, ...]
    num_samples: int


def loss_by_document(logprobs_M: torch.Tensor, pack: Pack) -> tuple[list[float], list[int]]:
    """Σ −log π over the labels of each document, and how many they are."""
    nll_N = logprobs_M.new_zeros(pack.num_documents).index_add(0, pack.label_documents, -logprobs_M)
    return nll_N.tolist(), pack.label_documents.bincount(minlength=pack.num_documents).tolist()


def by_domain(
    name: str, domains: Sequence[str], nll: Sequence[float], num: Sequence[int]
) -> dict[str, tuple[float, float]]:
    """`name/domain` → (Σ loss, Σ labels) of documents whose domains are the first entries."""
    sums: dict[str, tuple[float, float]] = {}
    for domain, loss, labels in zip(domains, nll, num, strict=False):
        before = sums.get(f"{name}/{domain}", (0.0, 0.0))
        sums[f"{name}/{domain}"] = (before[0] + loss, before[1] + labels)
    return sums


class Packer:
    """Lays documents end to end for one model."""

    def __init__(self, encoder: Encoder, config: Any, device: str = "cpu") -> None:
        self.encoder, self.device = encoder, device
        self._image_token_id = int(config.image_token_id)
        self._merge_size = int(config.vision_config.spatial_merge_size)

    def pack(self, documents: Sequence[Document]) -> Pack:
        """One pack; without a document a blank one, two tokens that nothing is learnt from."""
        blank = Document(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool))
        pack = pack_documents(list(documents) or [blank], self._image_token_id, self._merge_size)
        return pack if self.device == "cpu" else pack.to(self.device)

    def pack_trees(self, trees: Sequence[tuple[Document, Sequence[Branch]]]) -> Pack:
        """One pack of prompts with their continuations; without any a blank one."""
        if not trees:
            return self.pack([])
        pack = pack_branches(trees, self._image_token_id, self._merge_size)
        return pack if self.device == "cpu" else pack.to(self.device)

    def render(self, picked: Picked, turns: str, thinking: bool | None) -> Document:
        """A sample as a training document; `thinking` None leaves worked steps out, as does False."""
        conversation = picked.sample.conversation
        if picked.image is not None:
            conversation = conversation.with_image()
        if thinking is not True:
            conversation = without_reasoning(conversation)
        return self.encoder.encode(conversation, picked.image, "last" if turns == "last" else "all", thinking)

    def render_both(self, picked: Picked, thinking: bool | None) -> tuple[Document, Document]:
        """A preference as two documents, the chosen answer's and the rejected one's; only the answers are labelled."""
        conversation = picked.sample.conversation
        if picked.image is not None:
            conversation = conversation.with_image()
        chosen, rejected = (
            self.encoder.encode(
                dialogue if thinking is True else without_reasoning(dialogue), picked.image, "last", thinking
            )
            for dialogue in conversation.compared()
        )
        return chosen, rejected
