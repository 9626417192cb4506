"""CLIP scores by any open_clip model: the cosine of normalised features, in the model's own preprocessing.

Shapes: N samples, H and W pixels, T tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from open_clip.transformer import text_global_pool

from sightloom.data.signals.scorers import LOCAL, ClipSpec, local_folder


@dataclass(frozen=True, slots=True)
class ClipScores:
    """Cosines float32 [N], image features float16 [N, D], and whether true captions outrank the next one's (AUC)."""

    cosine_N: npt.NDArray[np.float32]
    image_ND: npt.NDArray[np.float16]
    auc_rolled: float | None
    text_ND: torch.Tensor | None = None  # normalised text features, for another score of the same texts


class ClipModel:
    """A loaded scorer on one device."""

    def __init__(self, spec: ClipSpec, device: str) -> None:
        name = spec.scorer.model
        if name.startswith(LOCAL):
            name = LOCAL + str(local_folder(name.removeprefix(LOCAL)))
        torch.manual_seed(spec.scorer.seed)
        self.spec, self.device = spec, torch.device(device)
        self.model = open_clip.create_model(
            name, spec.scorer.pretrained, precision=spec.scorer.precision, device=self.device
        ).eval()
        self.tokenizer = open_clip.get_tokenizer(name)
        self.dtype = torch.bfloat16 if spec.scorer.precision == "bf16" else torch.float32
        self.mean = torch.tensor(spec.mean, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(spec.std, device=self.device).view(1, 3, 1, 1)

    def score(
        self, crops_NHWC: npt.NDArray[np.uint8], texts: Sequence[str], text_ND: torch.Tensor | None = None
    ) -> ClipScores:
        """Score N pictures against their texts; `text_ND` are these texts' features where they are known."""
        if not len(texts):
            empty = np.zeros(0, np.float32)
            return ClipScores(empty, np.zeros((0, self.spec.dim), np.float16), None)
        with torch.inference_mode():
            image_ND = self.image_features(crops_NHWC)
            text_ND = self.text_features(texts) if text_ND is None else text_ND
            cosine_N = (image_ND * text_ND).sum(-1).cpu().numpy()
            rolled_N = (image_ND * text_ND.roll(-1, 0)).sum(-1).cpu().numpy()
        separation = rank_auc(cosine_N, rolled_N) if len(texts) > 1 else None
        return ClipScores(cosine_N, image_ND.cpu().numpy().astype(np.float16), separation, text_ND)

    @property
    def scale(self) -> float:
        """What the model multiplies cosines by, as trained."""
        return float(self.model.logit_scale.detach().float().exp())

    def image_features(self, crops_NHWC: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Return normalised image features, float32 [N, D]."""

        def encode(rows: slice) -> torch.Tensor:
            return self.model.encode_image(self.pixels(crops_NHWC[rows])).float()

        features_ND = in_batches(encode, len(crops_NHWC), self.spec.scorer.batch)
        return torch.nn.functional.normalize(features_ND, dim=-1)

    def pixels(self, crops_NHWC: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Return crops as the model wants them, normalised, [N, 3, side, side]."""
        pixels = torch.from_numpy(crops_NHWC).to(self.device)
        return ((pixels.permute(0, 3, 1, 2).float() / 255.0 - self.mean) / self.std).to(self.dtype)

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Return normalised text features, float32 [N, D]; equal texts are encoded once, short ones together."""
        distinct = list(dict.fromkeys(texts))
        tokens_NT = self.tokenizer(distinct)
        order = torch.argsort((tokens_NT != 0).sum(1), stable=True)

        def encode(rows: slice) -> torch.Tensor:
            return encode_text(self.model, tokens_NT[order[rows]].to(self.device)).float()

        sorted_ND = in_batches(encode, len(distinct), self.spec.scorer.batch)
        unsorted_ND = sorted_ND[torch.argsort(order).to(self.device)]
        place = {text: index for index, text in enumerate(distinct)}
        chosen = torch.tensor([place[text] for text in texts], device=self.device)
        return torch.nn.functional.normalize(unsorted_ND[chosen], dim=-1)


def in_batches(encode: Callable[[slice], torch.Tensor], rows: int, batch: int) -> torch.Tensor:
    """Return what `encode` gives of all rows, batch by batch; a batch that a GPU's memory does not hold is halved."""
    parts: list[torch.Tensor] = []
    start = 0
    while start < rows:
        try:
            parts.append(encode(slice(start, start + batch)))
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
            torch.cuda.empty_cache()
            continue
        start += batch
    return torch.cat(parts)


def encode_text(model: Any, tokens_NT: torch.Tensor) -> torch.Tensor:
    """Return text features [N, D], leaving out the padding after the batch's longest caption where that is exact.

    A causal tower that reads its features at the end mark cannot see what follows it. Source: open_clip
    `CLIP.encode_text`; only the length of the context differs (8e-8 at most for ViT-B-32).
    """
    causal = type(model) is open_clip.CLIP and model.attn_mask is not None and model.text_pool_type == "argmax"
    if not causal:
        return model.encode_text(tokens_NT)
    length = int(tokens_NT.argmax(-1).max()) + 1
    tokens_NT = tokens_NT[:, :length]
    dtype = model.transformer.get_cast_dtype()
    hidden_NTD = model.token_embedding(tokens_NT).to(dtype) + model.positional_embedding[:length].to(dtype)
    hidden_NTD = model.transformer(hidden_NTD, attn_mask=model.attn_mask[:length, :length])
    pooled_ND = text_global_pool(model.ln_final(hidden_NTD), tokens_NT, "argmax")
    projection = model.text_projection
    if projection is None:
        return pooled_ND
    return projection(pooled_ND) if isinstance(projection, torch.nn.Linear) else pooled_ND @ projection


def rank_auc(higher_N: npt.NDArray[Any], lower_M: npt.NDArray[Any]) -> float:
    """Return the probability that a draw of the first outranks a draw of the second; ties count half."""
    ordered = np.sort(lower_M)
    below = np.searchsorted(ordered, higher_N, "left") + np.searchsorted(ordered, higher_N, "right")
    return float(below.mean() / (2 * len(ordered)))
