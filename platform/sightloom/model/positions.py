"""Multimodal rotary positions (M-RoPE) of a document, without a look at the model.

Text tokens count on in all three rows; an image's tokens keep one temporal position and take their row and column in
the merged grid; the text behind it goes on after the larger side (Qwen2-VL, §2.1). Equal to transformers'
`get_rope_index`, computed once for each shape of document.
"""

from functools import lru_cache

import numpy as np
import torch

from sightloom.model.chat import Document


def rope_positions(document: Document, image_token_id: int, merge_size: int) -> torch.Tensor:
    """Positions int64 [3, T]: temporal, height, width; shared between documents of one shape, so never write to it."""
    if document.image_grid_thw is None:
        return _positions(len(document), (), ())
    starts = _image_starts(document.input_ids, image_token_id)
    grids = tuple((rows // merge_size, columns // merge_size) for _, rows, columns in document.image_grid_thw.tolist())
    return _positions(len(document), starts, grids)


def _image_starts(input_ids: torch.Tensor, image_token_id: int) -> tuple[int, ...]:
    is_image = input_ids.numpy() == image_token_id
    return tuple((np.flatnonzero(np.diff(is_image.astype(np.int8), prepend=0) == 1)).tolist())


@lru_cache(maxsize=16_384)
def _positions(length: int, starts: tuple[int, ...], grids: tuple[tuple[int, int], ...]) -> torch.Tensor:
    if len(starts) != len(grids):
        raise ValueError(f"{len(starts)} images in the tokens, {len(grids)} image grids")
    positions = np.empty((3, length), np.int64)
    token = position = 0
    for start, (rows, columns) in zip(starts, grids, strict=True):
        positions[:, token:start] = np.arange(position, position + start - token)
        position += start - token
        token = start + rows * columns
        positions[0, start:token] = position
        positions[1, start:token] = position + np.arange(rows).repeat(columns)
        positions[2, start:token] = position + np.tile(np.arange(columns), rows)
        position += max(rows, columns)
    positions[:, token:] = np.arange(position, position + length - token)
    return torch.from_numpy(positions)
