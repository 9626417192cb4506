"""What a model folder says about itself: digest, thinking, sampling defaults. Read without loading a weight."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightloom.errors import UserMistake
from sightloom.serving.engines.base import ThinkingPolicy

UNVERIFIED = "unverified"


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """The facts that an engine's info is made of."""

    digest: str
    max_model_len: int
    thinking: ThinkingPolicy
    temperature: float
    top_p: float
    top_k: int


def read_facts(folder: Path) -> FolderFacts:
    """Read `config.json`, `generation_config.json`, `sightloom.json` and the digest (the manifest's own sha256).

    A folder without `manifest.json` has the digest `unverified`.

    Raises:
        UserMistake: no model folder, or a file in it is no JSON.
    """
    if not (folder / "config.json").is_file():
        raise UserMistake(f"'{folder}' is no model folder: it holds no config.json", "give an exported model's folder")
    config = _read(folder / "config.json")
    text = config.get("text_config", config)
    manifest = folder / "manifest.json"
    defaults = _read(folder / "generation_config.json")
    window = int(text.get("max_position_embeddings", 4096))
    sampled = bool(defaults.get("do_sample", False))
    return FolderFacts(
        digest=hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else UNVERIFIED,
        max_model_len=window,
        thinking=_policy(_read(folder / "sightloom.json").get("thinking"), window),
        temperature=float(defaults.get("temperature") or 1.0) if sampled else 0.0,
        top_p=float(defaults.get("top_p") or 1.0) if sampled else 1.0,
        top_k=int(defaults.get("top_k") or 0) if sampled else 0,
    )


def _policy(value: Any, window: int) -> ThinkingPolicy:
    """What the export says; where it names no reserve, 128 tokens or, in a small window, a 64th of it."""
    standard = ThinkingPolicy(reserve=min(ThinkingPolicy().reserve, window // 64))
    if not isinstance(value, Mapping):
        return standard
    return ThinkingPolicy(
        default=value.get("default"),
        efforts={**standard.efforts, **value.get("efforts", {})},
        reserve=int(value.get("reserve", standard.reserve)),
    )


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserMistake(f"'{file}' is not valid JSON: {error}") from error
    return data if isinstance(data, dict) else {}
