"""The engine that settings ask for."""

from pathlib import Path
from typing import TYPE_CHECKING

from sightloom.later import Later
from sightloom.serving.engines.base import Engine
from sightloom.serving.engines.settings import TransformersSettings, VllmSettings
from sightloom.serving.engines.vllm import VllmEngine

if TYPE_CHECKING:
    from sightloom.serving.engines import transformers
else:  # torch, where a router or vLLM's replica has no use for it
    transformers = Later("sightloom.serving.engines.transformers")


def make_engine(folder: Path, version: str, settings: TransformersSettings | VllmSettings) -> Engine:
    """The engine that the settings ask for, not started."""
    if isinstance(settings, VllmSettings):
        return VllmEngine(folder, version, settings)
    return transformers.TransformersEngine(folder, version, settings)
