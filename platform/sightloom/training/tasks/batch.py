"""A micro-batch of packed documents, and how conversations become documents in each rendering."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sightloom.model.chat import Document, Encoder
from sightloom.model.packs import Pack, pack_documents
from sightloom.training.corpus import Picked
from sightloom.training.index import without_reasoning


@dataclass(frozen=True, slots=True, eq=False)
class TextBatch:
    """A pack whose labels are learnt; `domains` has one entry a document."""

    pack: Pack
    domains: tuple[str, ...]
    num_samples: int


class Packer:
    """Lays documents end to end for one model."""

    def __init__(self, encoder: Encoder, config: Any) -> None:
        self.encoder = encoder
        self._image_token_id = int(config.image_token_id)
        self._merge_size = int(config.vision_config.spatial_merge_size)

    def pack(self, documents: Sequence[Document]) -> Pack:
        """One pack; without a document a blank one, two tokens that nothing is learnt from."""
        blank = Document(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool))
        return pack_documents(list(documents) or [blank], self._image_token_id, self._merge_size)

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
