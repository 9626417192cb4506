"""How shards are cut, and whether their pictures are written anew."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sightloom.config import Frozen


class Encoding(Frozen):
    """Pictures are written anew: upright, RGB, first frame, without EXIF and ICC; never enlarged.

    Where the new file would not be smaller than the source's, the source's own bytes stay: so no sample outgrows what
    the plan gave it, and the caps hold. `quality` is that of JPEG and WebP.
    """

    max_side: int = Field(ge=16)
    format: Literal["jpeg", "png", "webp"] = "jpeg"
    quality: int = Field(default=90, ge=1, le=100)


class PackConfig(Frozen):
    """How shards are cut.

    `group_by` names a column: each of its values becomes a series of shards of its own. Each series has a multiple of
    `multiple_of` shards, of `equal` bytes or numbers of samples.
    """

    max_samples: int = Field(default=10_000, ge=1)
    max_mb: float = Field(default=1000.0, gt=0)
    order: Literal["auto", "shuffle", "source"] = "auto"
    group_by: str | None = None
    multiple_of: int = Field(default=1, ge=1)
    equal: Literal["bytes", "samples"] = "bytes"
    image: Literal["keep"] | Encoding = "keep"
