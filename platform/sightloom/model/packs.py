"""Packs: many documents in one row of tokens, as the model's forward takes them.

Shapes: L tokens of the pack, N documents, M labelled positions, K pooled documents, P patches, n images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sightloom.model.chat import Document
from sightloom.model.positions import rope_positions

Chains = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """Documents laid end to end. Position i predicts token i + 1 where that is labelled and of the same document.

    `chains`: where documents share their beginnings, `boundaries` cut the pack into pieces and each document is a chain
    of pieces, by index; None: each piece is a document.
    """

    input_ids: torch.Tensor  # int64 [1, L]
    position_ids: torch.Tensor  # int64 [4, 1, L]: row 0 restarts with each document, rows 1–3 are M-RoPE
    boundaries: torch.Tensor  # int32 [N + 1]
    longest: int
    label_positions: torch.Tensor  # int64 [M], where each label is predicted; rising unless there are chains
    targets: torch.Tensor  # int64 [M]
    label_documents: torch.Tensor  # int64 [M], which document each label is of
    pool_positions: torch.Tensor  # int64 [K], last token of each pooled document
    pixel_values: torch.Tensor | None  # float32 [P, D]
    image_grid_thw: torch.Tensor | None  # int64 [n, 3]
    chains: Chains | None = None

    @property
    def num_documents(self) -> int:
        return len(self.boundaries) - 1 if self.chains is None else len(self.chains)

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of each document, int32 [N]; those of shared beginnings count in each."""
        pieces = self.boundaries[1:] - self.boundaries[:-1]
        return pieces if self.chains is None else torch.stack([pieces[list(chain)].sum() for chain in self.chains])

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


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One continuation of a prompt: its tokens int64 [T], and which of them are labels, bool [T]."""

    input_ids: torch.Tensor
    loss_mask: torch.Tensor


def pack_branches(trees: Sequence[tuple[Document, Sequence[Branch]]], image_token_id: int, merge_size: int) -> Pack:
    """Lay prompts end to end, each once with all its continuations, which do not see one another.

    Values and gradients are those of `pack_documents` on prompt + continuation, for a fraction of the tokens. The
    documents, and the labels with them, are in the order of the continuations.

    Raises:
        ValueError: nothing to pack, or something empty.
    """
    if not trees or any(not len(prompt) or not branches for prompt, branches in trees):
        raise ValueError("a pack needs prompts, each with a token and a continuation")
    pieces: list[torch.Tensor] = []
    positions: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []  # where each is predicted
    targets: list[torch.Tensor] = []
    counts: list[int] = []
    chains: list[tuple[int, int]] = []
    filled, longest = 0, 0
    for prompt, branches in trees:
        rope = rope_positions(prompt, image_token_id, merge_size)
        ahead = len(pieces)
        pieces.append(prompt.input_ids)
        positions.append(torch.cat([torch.arange(len(prompt))[None], rope]))
        filled += len(prompt)
        end = filled
        for branch in branches:
            num = len(branch.input_ids)
            steps = torch.arange(num)
            chains.append((ahead, len(pieces)))
            pieces.append(branch.input_ids)
            positions.append(torch.cat([(len(prompt) + steps)[None], (rope.max() + 1 + steps).expand(3, -1)]))
            # the prompt's last token predicts each continuation's first
            predicted_at = torch.where(steps == 0, end - 1, filled + steps - 1)
            labels.append(predicted_at[branch.loss_mask])
            targets.append(branch.input_ids[branch.loss_mask])
            counts.append(len(targets[-1]))
            filled += num
            longest = max(longest, len(prompt) + num)
    pixels = [prompt.pixel_values for prompt, _ in trees if prompt.pixel_values is not None]
    grids = [prompt.image_grid_thw for prompt, _ in trees if prompt.image_grid_thw is not None]
    lengths = [len(piece) for piece in pieces]
    if min(lengths) == 0:
        raise ValueError("a continuation without a token")
    return Pack(
        input_ids=torch.cat(pieces)[None],
        position_ids=torch.cat(positions, dim=1)[:, None],
        boundaries=torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32),
        longest=longest,
        label_positions=torch.cat(labels),
        targets=torch.cat(targets),
        label_documents=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
        pool_positions=torch.zeros(0, dtype=torch.int64),
        pixel_values=torch.cat(pixels) if pixels else None,
        image_grid_thw=torch.cat(grids) if grids else None,
        chains=tuple(chains),
    )


def packed_position_ids(documents: Sequence[Document], image_token_id: int, merge_size: int) -> torch.Tensor:
    """Position ids int64 [4, 1, L] of documents laid end to end: text positions, then the three M-RoPE rows.

    All four rows restart with each document; with three, stock attention would see one long document.
    """
    text = torch.cat([torch.arange(len(document)) for document in documents])
    rope = torch.cat([rope_positions(document, image_token_id, merge_size) for document in documents], dim=1)
    return torch.cat([text[None], rope])[:, None]
