"""Which duplicates go."""

from __future__ import annotations

from pydantic import Field

from sightloom.config import Frozen


class Perceptual(Frozen):
    """Near copies: `bits` of the 64-bit hash are the first sieve, two finer checks follow."""

    bits: int = Field(default=4, ge=0, le=4)


class DedupConfig(Frozen):
    """Which duplicates go."""

    prefer: str | None = Field(default=None, description="the score of which the highest copy stays")
    exact: bool = True
    perceptual: Perceptual | None = None
