"""Which engine serves a model: its settings say it."""

from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Discriminator, Tag, TypeAdapter

from sightloom.serving.engines.base import Engine
from sightloom.serving.engines.transformers import TransformersEngine, TransformersSettings
from sightloom.serving.engines.vllm import VllmEngine
from sightloom.serving.engines.vllm_server import VllmSettings


def _kind(settings: Any) -> str:
    kind = settings.get("kind", "transformers") if isinstance(settings, dict) else getattr(settings, "kind", None)
    return str(kind)


EngineSettings = Annotated[
    Annotated[TransformersSettings, Tag("transformers")] | Annotated[VllmSettings, Tag("vllm")],
    Discriminator(_kind, custom_error_type="engine", custom_error_message="the kind must be 'transformers' or 'vllm'"),
]
ENGINE_SETTINGS: Final[TypeAdapter[TransformersSettings | VllmSettings]] = TypeAdapter(EngineSettings)


def make_engine(folder: Path, version: str, settings: TransformersSettings | VllmSettings) -> Engine:
    """The engine that the settings ask for, not started."""
    if isinstance(settings, VllmSettings):
        return VllmEngine(folder, version, settings)
    return TransformersEngine(folder, version, settings)
