"""The sizes a model comes in, all of the Qwen3-VL architecture (training.md §2)."""

import re
from dataclasses import dataclass
from typing import Final

from transformers import Qwen3VLConfig

from sightloom.config import Frozen
from sightloom.errors import UserMistake

MERGE_SIZE: Final = 2
TEMPORAL_PATCH_SIZE: Final = 2


class Preset(Frozen):
    """One size. `fused_blocks` are the 0-based ViT blocks whose output DeepStack feeds to the decoder."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool
    mrope: tuple[int, int, int]
    rope_theta: float
    context: int
    vision_hidden: int
    vision_depth: int
    vision_heads: int
    vision_ffn: int
    fused_blocks: tuple[int, ...]
    patch_size: int
    grid_positions: int
    min_pixels: int
    max_pixels: int
    init_std: float = 0.02  # narrow widths want wider weights: nano's captions are learned sooner from .04


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Where a tokenizer keeps the tokens that the model's configuration must know. Defaults: published Qwen3-VL."""

    vocab_size: int = 151_936
    pad: int = 151_643
    bos: int = 151_643
    eos: int = 151_645
    vision_start: int = 151_652
    vision_end: int = 151_653
    image: int = 151_655
    video: int = 151_656


def _published(
    name: str,
    decoder: tuple[int, int, int, int, int],
    vision: tuple[int, int, int],
    fused_blocks: tuple[int, ...],
    tied: bool,
) -> Preset:
    hidden, layers, heads, kv_heads, ffn = decoder
    vision_hidden, vision_depth, vision_ffn = vision
    return Preset(
        name=name, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=128, ffn=ffn,
        vocab=151_936, tied=tied, mrope=(24, 20, 20), rope_theta=5e6, context=262_144,
        vision_hidden=vision_hidden, vision_depth=vision_depth, vision_heads=16, vision_ffn=vision_ffn,
        fused_blocks=fused_blocks, patch_size=16, grid_positions=2304, min_pixels=65_536, max_pixels=16_777_216,
    )  # fmt: skip


PRESETS: Final[dict[str, Preset]] = {
    preset.name: preset
    for preset in (
        Preset(
            name="nano", hidden=128, layers=4, heads=4, kv_heads=2, head_dim=32, ffn=384, vocab=2048, tied=True,
            mrope=(6, 5, 5), rope_theta=1e6, context=2048, vision_hidden=128, vision_depth=3, vision_heads=4,
            vision_ffn=384, fused_blocks=(1,), patch_size=8, grid_positions=64, min_pixels=1024, max_pixels=4096,
            init_std=0.04,
        ),
        Preset(
            name="micro", hidden=384, layers=8, heads=6, kv_heads=2, head_dim=64, ffn=1152, vocab=8192, tied=True,
            mrope=(12, 10, 10), rope_theta=1e4, context=4096, vision_hidden=256, vision_depth=8, vision_heads=4,
            vision_ffn=768, fused_blocks=(2, 4, 6), patch_size=16, grid_positions=256, min_pixels=4096,
            max_pixels=65_536,
        ),
        _published("2b", (2048, 28, 16, 8, 6144), (1024, 24, 4096), (5, 11, 17), tied=True),
        _published("4b", (2560, 36, 32, 8, 9728), (1024, 24, 4096), (5, 11, 17), tied=True),
        _published("8b", (4096, 36, 32, 8, 12_288), (1152, 27, 4304), (8, 16, 24), tied=False),
        _published("32b", (5120, 64, 64, 8, 25_600), (1152, 27, 4304), (8, 16, 24), tied=False),
    )
}  # fmt: skip


def get_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UserMistake: there is none.
    """
    if name not in PRESETS:
        raise UserMistake(f"{name!r} is not a preset; known: {', '.join(PRESETS)}", hint="set model.preset to one")
    return PRESETS[name]


def published_preset(hub_id: str) -> str | None:
    """The preset of a published Qwen3-VL by its hub id, e.g. 8b of Qwen/Qwen3-VL-8B-Instruct; None of another model."""
    found = re.fullmatch(r"Qwen/Qwen3-VL-(\d+B)-\w+", hub_id.partition("@")[0])
    return found[1].lower() if found and found[1].lower() in PRESETS else None


def build_config(preset: str | Preset, ids: TokenIds | None = None) -> Qwen3VLConfig:
    """The transformers configuration of a preset; without `ids` it is for the published tokenizer."""
    size = get_preset(preset) if isinstance(preset, str) else preset
    ids = ids or TokenIds()
    text = {
        "vocab_size": ids.vocab_size,
        "hidden_size": size.hidden,
        "intermediate_size": size.ffn,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim,
        "initializer_range": size.init_std,
        "max_position_embeddings": size.context,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": size.rope_theta,
            "mrope_section": list(size.mrope),
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": size.tied,
        "bos_token_id": ids.bos,
        "eos_token_id": ids.eos,
        "pad_token_id": ids.pad,
    }
    vision = {
        "depth": size.vision_depth,
        "initializer_range": size.init_std,
        "hidden_size": size.vision_hidden,
        "intermediate_size": size.vision_ffn,
        "num_heads": size.vision_heads,
        "patch_size": size.patch_size,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": TEMPORAL_PATCH_SIZE,
        "out_hidden_size": size.hidden,
        "num_position_embeddings": size.grid_positions,
        "deepstack_visual_indexes": list(size.fused_blocks),
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids.image,
        video_token_id=ids.video,
        vision_start_token_id=ids.vision_start,
        vision_end_token_id=ids.vision_end,
        tie_word_embeddings=size.tied,
    )
