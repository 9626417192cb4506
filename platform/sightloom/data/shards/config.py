"""How shards are cut."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sightloom.config import Frozen


class PackConfig(Frozen):
    """How shards are cut."""

    max_samples: int = Field(default=10_000, ge=1)
    max_mb: float = Field(default=1000.0, gt=0)
    order: Literal["auto", "shuffle", "source"] = "auto"
