"""Which duplicates go, and which evaluation sets must not be met again."""

from __future__ import annotations

from pydantic import Field, model_validator

from sightloom.config import Frozen


class Perceptual(Frozen):
    """Near copies: `bits` of the 64-bit hash are the first sieve, two finer checks follow."""

    bits: int = Field(default=4, ge=0, le=4)
    mirror: bool = Field(default=False, description="also copies that were mirrored left to right; one column more")


class Semantic(Frozen):
    """Pictures that say the same: the cosine of their stored embeddings."""

    scorer: str = Field(description="a name in score.clip, with embeddings: true")
    cosine: float = Field(default=0.95, gt=0, le=1)


class EvaluationSet(Frozen):
    """A corpus, scored like any other, of which no row may be left in this one."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")
    scores: str = Field(min_length=1, description="its OUT, or OUT/scores")


class DedupConfig(Frozen):
    """Which duplicates go."""

    prefer: str | None = Field(default=None, description="the score of which the highest copy stays")
    exact: bool = True
    perceptual: Perceptual | None = None
    semantic: Semantic | None = None
    decontaminate: tuple[EvaluationSet, ...] = ()

    @property
    def mirror(self) -> bool:
        """Whether mirrored pictures are hashed."""
        return self.perceptual is not None and self.perceptual.mirror

    @model_validator(mode="after")
    def _names_differ(self) -> DedupConfig:
        names = [one.name for one in self.decontaminate]
        if len(names) != len(set(names)):
            raise ValueError("two entries of dedup.decontaminate have the same name")
        return self
