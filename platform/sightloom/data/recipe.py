"""The recipe of a curation: sources, scorers, duplicates, selection, packing and report, as one frozen tree."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, field_validator, model_validator

from sightloom.config import Frozen
from sightloom.records import Kind

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,39}$"
COLUMN_PATTERN = r"^[a-z][a-z0-9_]{0,39}$"
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


class Perceptual(Frozen):
    """Near copies: `bits` of the 64-bit hash are the first sieve, two finer checks follow."""

    bits: int = Field(default=4, ge=0, le=4)


class DedupConfig(Frozen):
    """Which duplicates go."""

    prefer: str | None = Field(default=None, description="the score of which the highest copy stays")
    exact: bool = True
    perceptual: Perceptual | None = None


class Top(Frozen):
    """Keep the best by a score, exactly floor(fraction * n + 1/2) or `count` rows, ties by ascending uid."""

    by: str
    fraction: float | dict[str, float] | None = None
    count: int | dict[str, int] | None = None
    per: str | None = None
    of: Literal["survivors", "input"] = "survivors"
    kinds: tuple[Kind, ...] | None = Field(default=None, description="rows of other kinds are left as they are")

    @model_validator(mode="after")
    def _one_amount(self) -> Top:
        if (self.fraction is None) == (self.count is None):
            raise ValueError("give either fraction or count")
        amount = self.fraction if self.fraction is not None else self.count
        if isinstance(amount, dict) and self.per is None:
            raise ValueError("an amount for each group needs `per`")
        for value in amount.values() if isinstance(amount, dict) else [amount]:
            if value is None or value < 0 or (self.fraction is not None and value > 1):
                raise ValueError("fraction must lie in 0..1 and count must not be negative")
        return self


class SelectConfig(Frozen):
    """What stays: each rule is a question that a kept row answers with yes."""

    rules: dict[str, str] = Field(default_factory=dict)
    derive: dict[str, str] = Field(default_factory=dict)
    top: tuple[Top, ...] = ()

    @field_validator("rules", "derive")
    @classmethod
    def _names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not re.match(COLUMN_PATTERN, name):
                raise ValueError(f"'{name}' is not a name ({COLUMN_PATTERN})")
        if len(value) > 64:
            raise ValueError("at most 64 rules")
        return value


class PackConfig(Frozen):
    """How shards are cut."""

    max_samples: int = Field(default=10_000, ge=1)
    max_mb: float = Field(default=1000.0, gt=0)
    order: Literal["auto", "shuffle", "source"] = "auto"


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
