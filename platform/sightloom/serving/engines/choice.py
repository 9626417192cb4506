"""The engine that settings ask for."""

from pathlib import Path
from typing import TYPE_CHECKING

from sightloom.later import Later
from sightloom.serving.engines.base import Engine
from sightloom.serving.engines.settings import TransformersSettings, VllmSettings

if TYPE_CHECKING:
    from sightloom.serving.engines import transformers, vllm
else:  # torch, for which a router has no use
    transformers = Later("sightloom.serving.engines.transformers")
    vllm = Later("sightloom.serving.engines.vllm")


def make_engine(folder: Path, version: str, settings: TransformersSettings | VllmSettings) -> Engine:
    """The engine that the settings ask for, not started."""
    if isinstance(settings, VllmSettings):
        return vllm.VllmEngine(folder, version, settings)
    return transformers.TransformersEngine(folder, version, settings)
