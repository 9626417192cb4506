"""Packs: many documents in one row of tokens, as the model's forward takes them.

Shapes: L tokens of the pack, N documents, M labelled positions, K pooled documents, P patches, n images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sightloom.model.chat import Document
from sightloom.model.positions import rope_positions


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """Documents laid end to end. Position i predicts token i + 1 where that is labelled and of the same document."""

    input_ids: torch.Tensor  # int64 [1, L]
    position_ids: torch.Tensor  # int64 [4, 1, L]: row 0 restarts with each document, rows 1–3 are M-RoPE
    boundaries: torch.Tensor  # int32 [N + 1]
    longest: int
    label_positions: torch.Tensor  # int64 [M], rising
    targets: torch.Tensor  # int64 [M]
    label_documents: torch.Tensor  # int64 [M], which document each label is of
    pool_positions: torch.Tensor  # int64 [K], last token of each pooled document
    pixel_values: torch.Tensor | None  # float32 [P, D]
    image_grid_thw: torch.Tensor | None  # int64 [n, 3]

    @property
    def num_documents(self) -> int:
        return len(self.boundaries) - 1

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[1]

    @property
    def num_labels(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> "Pack":
        """The pack with its tensors on a device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name in self.__slots__
            if isinstance(value := getattr(self, name), torch.Tensor)
        }
        return replace(self, **moved)


def pack_documents(documents: Sequence[Document], image_token_id: int, merge_size: int) -> Pack:
    """Lay documents end to end.

    Raises:
        ValueError: no document, or an empty one.
    """
    if not documents or any(len(document) == 0 for document in documents):
        raise ValueError("a pack needs documents, each with a token")
    lengths = [len(document) for document in documents]
    boundaries = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    input_ids = torch.cat([document.input_ids for document in documents])
    labelled = torch.cat([document.loss_mask for document in documents])
    labelled[boundaries[:-1].long()] = False  # nothing stands before the first token of a document
    label_positions = labelled.nonzero()[:, 0] - 1
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    pooled = torch.tensor([document.pool for document in documents])
    pixels = [document.pixel_values for document in documents if document.pixel_values is not None]
    grids = [document.image_grid_thw for document in documents if document.image_grid_thw is not None]
    return Pack(
        input_ids=input_ids[None],
        position_ids=packed_position_ids(documents, image_token_id, merge_size),
        boundaries=boundaries,
        longest=max(lengths),
        label_positions=label_positions,
        targets=input_ids[label_positions + 1],
        label_documents=owner[label_positions],
        pool_positions=boundaries[1:][pooled].long() - 1,
        pixel_values=torch.cat(pixels) if pixels else None,
        image_grid_thw=torch.cat(grids) if grids else None,
    )


def packed_position_ids(documents: Sequence[Document], image_token_id: int, merge_size: int) -> torch.Tensor:
    """Position ids int64 [4, 1, L] of documents laid end to end: text positions, then the three M-RoPE rows.

    All four rows restart with each document; with three, stock attention would see one long document.
    """
    text = torch.cat([torch.arange(len(document)) for document in documents])
    rope = torch.cat([rope_positions(document, image_token_id, merge_size) for document in documents], dim=1)
    return torch.cat([text[None], rope])[:, None]
