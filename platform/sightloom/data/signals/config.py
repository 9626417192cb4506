"""What is measured of each row, and how the machine is used for it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sightloom.config import Frozen
from sightloom.records import Kind

COLUMN_PATTERN = r"^[a-z][a-z0-9_]{0,39}$"


class ClipScorer(Frozen):
    """An open_clip model that scores image against text; its column is `clip_<name>`."""

    name: str = Field(pattern=COLUMN_PATTERN)
    model: str = Field(min_length=1, description="an open_clip model name or local-dir:<folder>")
    pretrained: str | None = Field(default=None, description="a tag or a file; null = random weights from `seed`")
    precision: Literal["fp32", "bf16"] = "fp32"
    embeddings: bool = False
    kinds: tuple[Kind, ...] = ("pair",)
    batch: int = Field(default=128, ge=1)
    seed: int = Field(default=0, description="of random weights, where there are no pretrained ones")
    licence: str | None = None


class DecodeLimits(Frozen):
    """What is refused before it is decoded."""

    max_pixels: int = Field(default=89_478_485, ge=1)
    max_mb: float = Field(default=64.0, gt=0)


class Workers(Frozen):
    """How the machine is used; it decides nothing about the result."""

    scorers: int | Literal["auto"] = "auto"
    threads: int | Literal["auto"] = Field(default="auto", description="torch threads of one scorer on CPU")
    gpus: int | Literal["auto"] = "auto"


class ScoreConfig(Frozen):
    """What is measured of each row."""

    chunk_rows: int = Field(default=256, ge=32, le=4096)
    clip: tuple[ClipScorer, ...] = ()
    decode: DecodeLimits = DecodeLimits()
    workers: Workers = Workers()
    max_failed: float = Field(default=0.0, ge=0.0, le=1.0, description="share of rows that may fail inside")

    @model_validator(mode="after")
    def _names_differ(self) -> ScoreConfig:
        names = [scorer.name for scorer in self.clip]
        if len(names) != len(set(names)):
            raise ValueError("two scorers in score.clip have the same name")
        return self
