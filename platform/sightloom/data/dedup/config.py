"""Which duplicates go."""

from __future__ import annotations

from pydantic import Field, model_validator

from sightloom.config import Frozen
from sightloom.data.signals.config import SHORT_PATTERN


class Perceptual(Frozen):
    """Near copies: `bits` of the 64-bit hash are the first sieve, two finer checks follow."""

    bits: int = Field(default=4, ge=0, le=4)


class Semantic(Frozen):
    """Pictures whose stored embeddings by a scorer have a cosine of `cosine` or more."""

    scorer: str = Field(description="a name in score.clip, with embeddings: true")
    cosine: float = Field(default=0.95, gt=0, le=1)


class EvaluationSet(Frozen):
    """An evaluation set that was scored as a corpus of its own; rows that are in it go."""

    name: str = Field(pattern=SHORT_PATTERN)
    scores: str = Field(min_length=1, description="its folder OUT/scores")


class DedupConfig(Frozen):
    """Which duplicates go."""

    prefer: str | None = Field(default=None, description="the score of which the highest copy stays")
    exact: bool = True
    perceptual: Perceptual | None = None
    semantic: Semantic | None = None
    decontaminate: tuple[EvaluationSet, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> DedupConfig:
        names = [one.name for one in self.decontaminate]
        if len(names) != len(set(names)):
            raise ValueError("two entries of dedup.decontaminate have the same name")
        return self
