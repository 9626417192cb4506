"""Where raw records come from: addresses, where their fields stand, and how URLs are downloaded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sightloom.config import Frozen

KeptType = Literal["float32", "float64", "int64", "string", "bool"]

FieldName = Literal[
    "image",
    "text",
    "domain",
    "uid",
    "record",
    "question",
    "answer",
    "options",
    "reasoning",
    "task",
    "id",
    "url",
    "sha256",
]


class Resize(Frozen):
    """Pictures with a larger side are made smaller as they arrive, and written as JPEG; none is enlarged."""

    side: int = Field(ge=16)
    mode: Literal["short_side", "long_side"] = "short_side"
    quality: int = Field(default=95, ge=1, le=100)


class FetchConfig(Frozen):
    """How URLs are downloaded; the defaults are polite."""

    contact: str = Field(min_length=3, description="a page or address where site owners reach you; in the User-Agent")
    allow_networks: tuple[str, ...] = Field(default=(), description="private networks (CIDR) that may be asked")
    max_mb: float = Field(default=20.0, gt=0)
    connect_s: float = Field(default=10.0, gt=0)
    total_s: float = Field(default=30.0, gt=0)
    per_host: int = Field(default=4, ge=1)
    at_once: int = Field(default=64, ge=1)
    tries: int = Field(default=3, ge=1)
    chunk_rows: int = Field(default=1000, ge=1, le=10_000)
    robots: bool = True
    resize: Resize | None = None


class SourceBase(Frozen):
    """What every source has: an address, and where its fields are found."""

    uri: str = Field(min_length=1)
    fields: dict[FieldName, str] = Field(default_factory=dict, description="field of a sample -> where it stands")
    keep_fields: dict[str, KeptType] = Field(default_factory=dict, description="source fields kept as src_<name>")


class WebDatasetSource(SourceBase):
    """Tars of samples: image, txt and json members that share a name."""

    kind: Literal["webdataset"]


class ParquetSource(SourceBase):
    """Parquet with the images' bytes in a column."""

    kind: Literal["parquet"]


class FolderSource(SourceBase):
    """A folder of images with captions.jsonl, captions.csv or a .txt beside each image."""

    kind: Literal["folder"]


class UrlSource(SourceBase):
    """Lists of image URLs (parquet, csv or jsonl), which are downloaded first."""

    kind: Literal["urls"]
    fetch: FetchConfig


Source = Annotated[WebDatasetSource | ParquetSource | FolderSource | UrlSource, Field(discriminator="kind")]
