"""The recipe of a curation: sources, scorers, duplicates, selection, packing and report, as one frozen tree."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
from pydantic import Field

from sightloom.config import Frozen
from sightloom.data.dedup.config import DedupConfig
from sightloom.data.select.config import SelectConfig
from sightloom.data.shards.config import PackConfig
from sightloom.data.signals.config import ScoreConfig
from sightloom.data.sources.config import Source

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,39}$"


class ReportConfig(Frozen):
    """The page and the experiment."""

    gallery: int = Field(default=48, ge=0, le=200)
    mlflow: dict[Literal["experiment"], str] | None = None


class FitConfig(Frozen):
    """A filter network, trained on sources that are trusted to be clean."""

    trusted: tuple[Source, ...]
    model: str | dict[str, Any] = Field(description="an open_clip name, a JSON file's path, or a config itself")
    pretrained: str | None = None
    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=128, ge=2)
    lr: float = Field(default=5e-4, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    warmup: int = Field(default=50, ge=0)
    held_out: float = Field(default=0.1, gt=0, lt=1)
    threads: int | Literal["auto"] = "auto"
    out: str


class Recipe(Frozen):
    """A curation from raw sources to shards."""

    name: str = Field(pattern=NAME_PATTERN)
    out: str = Field(min_length=1)
    seed: int = 0
    source: tuple[Source, ...] = Field(min_length=1)
    score: ScoreConfig = ScoreConfig()
    dedup: DedupConfig = DedupConfig()
    select: SelectConfig = SelectConfig()
    pack: PackConfig = PackConfig()
    report: ReportConfig = ReportConfig()
    fit: FitConfig | None = None


def jsonable(recipe: pydantic.BaseModel) -> dict[str, Any]:
    """Return the resolved recipe as plain data."""
    return recipe.model_dump(mode="json")
