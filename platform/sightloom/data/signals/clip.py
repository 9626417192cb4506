"""CLIP scores by any open_clip model: the cosine of normalised features, in the model's own preprocessing.

Shapes: N samples, H and W pixels, T tokens, D features.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from open_clip.transformer import text_global_pool

from sightloom import storage
from sightloom.config import digest
from sightloom.data.signals.config import ClipScorer
from sightloom.data.signals.crops import RESAMPLING, CropSpec
from sightloom.errors import UserMistake

LOCAL = "local-dir:"
CONFIG_FILE = "open_clip_config.json"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
VERSION = 1


@dataclass(frozen=True, slots=True)
class ClipSpec:
    """A scorer as resolved once by the driver: everything that decides its scores, and how it wants pictures."""

    scorer: ClipScorer
    weights_sha256: str
    crop: CropSpec
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    dim: int

    @property
    def column(self) -> str:
        """The name of its score column."""
        return f"clip_{self.scorer.name}"

    def identity(self) -> dict[str, Any]:
        """Return what decides its scores, as plain data."""
        chosen = self.scorer
        by_folder = chosen.model.startswith(LOCAL)
        return {
            "version": VERSION,
            "model": "local-dir" if by_folder else chosen.model,
            "weights_sha256": self.weights_sha256,
            "precision": chosen.precision,
            "kinds": list(chosen.kinds),
            "batch": chosen.batch,
            "crop": asdict(self.crop),
            "mean": list(self.mean),
            "std": list(self.std),
        }


def resolve(scorer: ClipScorer) -> ClipSpec:
    """Find a scorer's configuration and the digest of its weights; UserMistake where there is none."""
    if scorer.model.startswith(LOCAL):
        folder = local_folder(scorer.model.removeprefix(LOCAL))
        config = _read_config(folder)
        weights = next((f for suffix in WEIGHT_SUFFIXES for f in sorted(folder.glob(f"*{suffix}"))), None)
        if weights is None:
            raise UserMistake(f"no weights in '{folder}' (score.clip '{scorer.name}')", "run `sightloom fit-scorer`")
        identity = digest([config, storage.sha256_file(weights)])
        return _spec(scorer, config["model_cfg"], config.get("preprocess_cfg", {}), identity)
    model_config = open_clip.get_model_config(scorer.model.replace("/", "-"))
    if model_config is None:
        raise UserMistake(
            f"'{scorer.model}' is no open_clip model (score.clip '{scorer.name}')",
            "see open_clip.list_models(), or give local-dir:<folder>",
        )
    if scorer.pretrained is None:
        return _spec(scorer, model_config, {}, digest(["random", model_config, scorer.seed]))
    tag = open_clip.get_pretrained_cfg(scorer.model.replace("/", "-"), scorer.pretrained)
    if not tag and not Path(scorer.pretrained).is_file():
        known = ", ".join(open_clip.list_pretrained_tags_by_model(scorer.model)) or "none"
        raise UserMistake(
            f"'{scorer.pretrained}' is neither a file nor a pretrained tag of '{scorer.model}'", f"tags: {known}"
        )
    try:
        path = open_clip.download_pretrained(tag) if tag else scorer.pretrained
    except OSError as error:
        raise UserMistake(
            f"the weights '{scorer.pretrained}' of '{scorer.model}' cannot be downloaded: {error}",
            "give a file as `pretrained`, or run where the hub can be reached",
        ) from error
    return _spec(scorer, model_config, dict(tag or {}), storage.sha256_file(path))


def local_folder(uri: str) -> Path:
    """Return a folder on this machine with what is at `uri`; remote folders are copied first."""
    if storage.is_local(uri):
        path = storage.local_path(uri)
        if not path.is_dir():
            raise UserMistake(f"no folder at '{uri}'", "give the `out` of `sightloom fit-scorer`")
        return path
    folder = Path(tempfile.mkdtemp(prefix="sightloom-scorer-"))
    for info in storage.listing(uri):
        (folder / info.uri.rsplit("/", 1)[-1]).write_bytes(storage.read_bytes(info.uri))
    return folder


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserMistake(f"no {CONFIG_FILE} in '{folder}'", "give the `out` of `sightloom fit-scorer`")
    config: dict[str, Any] = storage.read_json(str(file))
    if "model_cfg" not in config:
        raise UserMistake(f"'{file}' has no model_cfg", "give the `out` of `sightloom fit-scorer`")
    return config


def _spec(scorer: ClipScorer, model: dict[str, Any], picture: dict[str, Any], weights: str) -> ClipSpec:
    side = model["vision_cfg"].get("image_size", 224)
    resize = picture.get("resize_mode") or "shortest"
    interpolation = picture.get("interpolation") or "bicubic"
    if not isinstance(side, int) or resize not in ("shortest", "squash") or interpolation not in RESAMPLING:
        raise UserMistake(
            f"scorer '{scorer.name}' wants pictures of {side}, resized by '{resize}' and '{interpolation}'",
            "square sides with shortest or squash, bicubic or bilinear are supported",
        )
    mean = tuple(picture.get("mean") or open_clip.OPENAI_DATASET_MEAN)
    std = tuple(picture.get("std") or open_clip.OPENAI_DATASET_STD)
    return ClipSpec(scorer, weights, CropSpec(side, resize, interpolation), mean, std, int(model["embed_dim"]))


@dataclass(frozen=True, slots=True)
class ClipScores:
    """Cosines float32 [N], image features float16 [N, D], and whether true captions outrank the next one's (AUC)."""

    cosine_N: npt.NDArray[np.float32]
    image_ND: npt.NDArray[np.float16]
    auc_rolled: float | None


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

    def score(self, crops_NHWC: npt.NDArray[np.uint8], texts: Sequence[str]) -> ClipScores:
        """Score N pictures against their texts."""
        if not len(texts):
            empty = np.zeros(0, np.float32)
            return ClipScores(empty, np.zeros((0, self.spec.dim), np.float16), None)
        with torch.inference_mode():
            image_ND, text_ND = self.image_features(crops_NHWC), self.text_features(texts)
            cosine_N = (image_ND * text_ND).sum(-1).cpu().numpy()
            rolled_N = (image_ND * text_ND.roll(-1, 0)).sum(-1).cpu().numpy()
        separation = rank_auc(cosine_N, rolled_N) if len(texts) > 1 else None
        return ClipScores(cosine_N, image_ND.cpu().numpy().astype(np.float16), separation)

    @property
    def scale(self) -> float:
        """What the model multiplies cosines by, as trained."""
        return float(self.model.logit_scale.detach().float().exp())

    def image_features(self, crops_NHWC: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Return normalised image features, float32 [N, D]."""
        parts = []
        for start in range(0, len(crops_NHWC), self.spec.scorer.batch):
            pixels_NCHW = self.pixels(crops_NHWC[start : start + self.spec.scorer.batch])
            parts.append(self.model.encode_image(pixels_NCHW).float())
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)

    def pixels(self, crops_NHWC: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Return crops as the model wants them, normalised, [N, 3, side, side]."""
        pixels = torch.from_numpy(crops_NHWC).to(self.device)
        return ((pixels.permute(0, 3, 1, 2).float() / 255.0 - self.mean) / self.std).to(self.dtype)

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Return normalised text features, float32 [N, D]; equal texts are encoded once, short ones together."""
        distinct = list(dict.fromkeys(texts))
        tokens_NT = self.tokenizer(distinct)
        order = torch.argsort((tokens_NT != 0).sum(1), stable=True)
        features: list[torch.Tensor] = []
        for start in range(0, len(distinct), self.spec.scorer.batch):
            batch_NT = tokens_NT[order[start : start + self.spec.scorer.batch]].to(self.device)
            features.append(encode_text(self.model, batch_NT).float())
        unsorted_ND = torch.cat(features)[torch.argsort(order).to(self.device)]
        place = {text: index for index, text in enumerate(distinct)}
        chosen = torch.tensor([place[text] for text in texts], device=self.device)
        return torch.nn.functional.normalize(unsorted_ND[chosen], dim=-1)


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


def write_config(folder: Path, model_config: dict[str, Any], spec: ClipSpec) -> None:
    """Write what open_clip's `local-dir:` reads beside the weights."""
    picture = {
        "mean": list(spec.mean),
        "std": list(spec.std),
        "interpolation": spec.crop.interpolation,
        "resize_mode": spec.crop.resize,
    }
    content = {"model_cfg": model_config, "preprocess_cfg": picture}
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2, sort_keys=True))
