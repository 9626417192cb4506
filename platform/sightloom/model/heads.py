"""The model as training sees it: one module that turns a pack into log-probabilities and contrastive features.

It is the root that DDP or FSDP wraps, so that every parameter is used inside its forward; the heads are no part of the
exported model.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import nn

from sightloom.model import attention, patch_embedding
from sightloom.model.packs import Pack
from sightloom.model.sampling import never_written
from sightloom.objectives.language import token_logprobs, token_logprobs_and_entropy
from sightloom.objectives.precision import widened

Want = Literal["logprobs", "entropy", "contrastive", "reward"]
LOGPROBS: Final[tuple[Want, ...]] = ("logprobs",)
CONTRASTIVE_START: Final = {"clip": (math.log(1 / 0.07), None), "siglip": (math.log(10), -10.0)}


@dataclass(frozen=True, slots=True)
class Outputs:
    """What was asked for; the rest is None. Shapes: M labels, n images, K pooled documents, C feature width."""

    logprobs: torch.Tensor | None  # float32 [M], of the pack's targets
    entropy: torch.Tensor | None  # float32 [M], nats
    image_features: torch.Tensor | None  # float32 [n, C], L2-normalised
    text_features: torch.Tensor | None  # float32 [K, C], L2-normalised
    rewards: torch.Tensor | None  # float32 [K], of the pooled documents


class ContrastiveHeads(nn.Module):
    """Projections of an image (mean of its merged tokens) and a text (state at its end) to one space, scale and bias.

    `bias` is a parameter for SigLIP only; for CLIP it is None.
    """

    def __init__(self, width: int, kind: Literal["clip", "siglip"], feature_width: int | None = None) -> None:
        super().__init__()
        log_scale, bias = CONTRASTIVE_START[kind]
        self.image = nn.Linear(width, feature_width or width, bias=False)
        self.text = nn.Linear(width, feature_width or width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(log_scale))
        self.bias = nn.Parameter(torch.tensor(bias)) if bias is not None else None


class RewardHead(nn.Module):
    """One number for the state at a document's last token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        nn.init.normal_(self.score.weight, std=1 / math.sqrt(width + 1))


class TrainableVLM(nn.Module):
    """A Hugging Face Qwen-VL model and, for alignment or a reward model, its heads."""

    def __init__(self, model: Any, heads: ContrastiveHeads | RewardHead | None = None) -> None:
        super().__init__()
        attention.register(model)
        patch_embedding.use_matrix_product(model)
        self.vlm = model
        self.heads = heads
        self.always_look = False  # a pack without a picture looks at a blank one: shared-out towers must run everywhere
        self.never: torch.Tensor
        self.register_buffer("never", never_written(model.config), persistent=False)
        self.image_token_id: int = model.config.image_token_id
        self.merge_size: int = model.config.vision_config.spatial_merge_size

    def forward(
        self, pack: Pack, want: Collection[Want] = LOGPROBS, temperature: float = 1.0, sampled: bool = False
    ) -> Outputs:
        """Run the vision tower once, the decoder once, and the language head on labelled positions only.

        Args:
            want: `logprobs` of the targets, their `entropy`, `contrastive` features of all images and pooled documents,
                `reward` of the pooled documents.
            temperature: divides the logits (reinforcement learning at a rollout temperature other than 1).
            sampled: normalise over what generation samples from, without the tokens of pictures.
        """
        vision = self._look(pack)
        blank = self._blank(pack) if vision is None and self.always_look else None
        hidden_LD = self.vlm.model(
            input_ids=pack.input_ids,
            position_ids=pack.position_ids,
            attention_mask=None,
            use_cache=False,
            mm_encoder_outputs=None if vision is None else {"image": vision},
            cu_seq_lens_q=pack.boundaries,
            cu_seq_lens_k=pack.boundaries,
            max_length_q=pack.longest,
            max_length_k=pack.longest,
            **({} if pack.chains is None else {"chains": pack.chains}),
        ).last_hidden_state[0]
        if blank is not None:
            hidden_LD = hidden_LD + blank
        logprobs = entropy = image_features = text_features = rewards = None
        if "logprobs" in want or "entropy" in want:
            labelled_MD = hidden_LD.index_select(0, pack.label_positions)
            weight_VD = self.vlm.lm_head.weight
            never = self.never if sampled else None
            if "entropy" in want:
                logprobs, entropy = token_logprobs_and_entropy(labelled_MD, weight_VD, pack.targets, temperature, never)
            else:
                logprobs = token_logprobs(labelled_MD, weight_VD, pack.targets, temperature, never)
        if "contrastive" in want:
            if not isinstance(self.heads, ContrastiveHeads):
                raise ValueError("contrastive features are asked for, but the model has no contrastive heads")
            pooled_KD = hidden_LD.index_select(0, pack.pool_positions)
            text_features = F.normalize(widened(self.heads.text(pooled_KD.to(self.heads.text.weight.dtype))), dim=-1)
            if vision is not None:
                images_nD = torch.stack([tokens.mean(0) for tokens in vision.pooler_output])
                images_nD = images_nD.to(self.heads.image.weight.dtype)
                image_features = F.normalize(widened(self.heads.image(images_nD)), dim=-1)
        if "reward" in want:
            if not isinstance(self.heads, RewardHead):
                raise ValueError("rewards are asked for, but the model has no reward head")
            pooled_KD = hidden_LD.index_select(0, pack.pool_positions)
            rewards = widened(self.heads.score(pooled_KD.to(self.heads.score.weight.dtype))[:, 0])
        return Outputs(logprobs, entropy, image_features, text_features, rewards)

    def _look(self, pack: Pack) -> Any:
        if pack.pixel_values is None:
            return None
        return self.vlm.model.get_image_features(pack.pixel_values, pack.image_grid_thw, return_dict=True)

    def _blank(self, pack: Pack) -> torch.Tensor:
        """Zero, by way of all that a picture passes through: the least one, of zeros; its gradients are zero too."""
        vision = self.vlm.config.vision_config
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        weight = self.vlm.lm_head.weight
        pixels = weight.new_zeros(self.merge_size**2, width)
        grid = torch.tensor([[1, self.merge_size, self.merge_size]], device=pack.input_ids.device)
        seen = self.vlm.model.get_image_features(pixels, grid, return_dict=True)
        fused = [part for layer in seen.deepstack_features or () for part in layer]
        return 0.0 * torch.stack([part.sum() for part in (*seen.pooler_output, *fused)]).sum()
