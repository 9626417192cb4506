"""What is measured of each row, and how the machine is used for it."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from sightloom.config import Frozen
from sightloom.data.signals.prompts import PROMPTS
from sightloom.records import Kind

SHORT_PATTERN = r"^[a-z][a-z0-9_]{0,19}$"  # names and labels of banks: a sample's JSON holds both and a number
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


class Bank(Frozen):
    """Labels by prompts: shares `<name>_<label>` and `<name>_top`, from the stored embeddings of a scorer.

    A prompt is plain text; `{}` in it stands for the label's words. The bank called `domain` lets a domain that the
    source declares win in `domain_top`.
    """

    name: str = Field(pattern=SHORT_PATTERN)
    scorer: str = Field(description="a name in score.clip, with embeddings: true")
    prompts: dict[str, tuple[str, ...]] | None = Field(default=None, description="null = the built-in set of this name")
    scale: float | None = Field(default=None, gt=0, description="of the cosines; null = the scorer's own")

    @model_validator(mode="after")
    def _labelled(self) -> Bank:
        if self.prompts is None and self.name not in PROMPTS:
            raise ValueError(
                f"no built-in prompts for bank '{self.name}' (there are {', '.join(PROMPTS)}): give prompts"
            )
        for label in self.labels:
            if not re.match(SHORT_PATTERN, label) or label == "top":
                raise ValueError(f"'{label}' is no label of bank '{self.name}': lower case, digits, _, not 'top'")
            if not self.prompts_of(label) or not all(prompt.strip() for prompt in self.prompts_of(label)):
                raise ValueError(f"label '{label}' of bank '{self.name}' has no prompt, or an empty one")
        if len(self.labels) < 2:
            raise ValueError(f"bank '{self.name}' needs two labels or more: shares of one are always 1")
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in order."""
        return tuple(self.prompts if self.prompts is not None else PROMPTS[self.name])

    def prompts_of(self, label: str) -> tuple[str, ...]:
        """Return the prompts of a label, its words put in."""
        given = self.prompts if self.prompts is not None else PROMPTS[self.name]
        return tuple(prompt.replace("{}", label.replace("_", " ")) for prompt in given[label])


class Head(Frozen):
    """A trained layer or perceptron on the stored embeddings of a scorer; its column is `head_<name>`."""

    name: str = Field(pattern=SHORT_PATTERN)
    scorer: str = Field(description="a name in score.clip, with embeddings: true")
    weights: str = Field(min_length=1, description="a safetensors file, see signals/heads.py")
    activation: Literal["none", "relu"] | None = Field(default=None, description="between layers; LAION's head: none")
    licence: str | None = None


class Overlap(Frozen):
    """Scorers that score each picture once more with its text covered, as `clip_<scorer>_masked` (T-MARS)."""

    scorers: tuple[str, ...] = Field(min_length=1, description="names in score.clip")
    detector: str | None = Field(default=None, description="ONNX file of a DB text detector; null = RapidOCR's own")
    side: int = Field(default=640, ge=64, le=2048, description="long side at which text is looked for")
    confidence: float = Field(default=0.5, gt=0, lt=1, description="of a box")


class DecodeLimits(Frozen):
    """What is refused before it is decoded."""

    max_pixels: int = Field(default=89_478_485, ge=1)
    max_mb: float = Field(default=64.0, gt=0)


class Workers(Frozen):
    """How the machine is used; it decides nothing about the result."""

    scorers: int | Literal["auto"] = "auto"
    threads: int | Literal["auto"] = Field(default="auto", description="torch threads of one scorer on CPU")
    gpus: int | Literal["auto"] = "auto"
    decode_resources: dict[str, float] = Field(
        default_factory=dict, description="Ray's custom resources that decoding takes of its node"
    )
    scorer_resources: dict[str, float] = Field(default_factory=dict, description="and a scorer of its own")


class ScoreConfig(Frozen):
    """What is measured of each row."""

    chunk_rows: int = Field(default=256, ge=32, le=4096)
    clip: tuple[ClipScorer, ...] = ()
    banks: tuple[Bank, ...] = ()
    heads: tuple[Head, ...] = ()
    overlap: Overlap | None = None
    decode: DecodeLimits = DecodeLimits()
    workers: Workers = Workers()
    max_failed: float = Field(default=0.0, ge=0.0, le=1.0, description="share of rows that may fail inside")

    @model_validator(mode="after")
    def _names_differ(self) -> ScoreConfig:
        for place, listed in (("clip", self.clip), ("banks", self.banks), ("heads", self.heads)):
            names = [one.name for one in listed]
            if len(names) != len(set(names)):
                raise ValueError(f"two entries of score.{place} have the same name")
        covered = self.overlap.scorers if self.overlap is not None else ()
        names = [one.name for one in self.clip]
        for name in covered:
            if name not in names:
                raise ValueError(
                    f"score.overlap names no scorer '{name}'; score.clip has: {', '.join(names) or 'none'}"
                )
            if f"{name}_masked" in names or covered.count(name) > 1:
                raise ValueError(
                    f"score.overlap makes a column 'clip_{name}_masked', which is there: rename the scorer"
                )
        return self


def origin_of(column: str) -> str:
    """Say where a column that is not there would come from; empty if no part of `score` makes such a name."""
    if column.startswith("clip_") and column.endswith("_masked"):
        return "add the scorer to score.overlap.scorers"
    if column.startswith("clip_"):
        return "add the scorer to score.clip"
    if column.startswith("head_"):
        return "add the head to score.heads"
    return "add the bank to score.banks" if column.split("_")[0] in PROMPTS and "_" in column else ""


# Licences of open_clip's pretrained tags, by how a tag begins: as their publishers give them.
LICENCES = {
    "openai": "mit",
    "laion": "mit",
    "datacomp_": "mit",
    "datacomp1b": "mit",
    "commonpool": "mit",
    "webli": "apache-2.0",
    "metaclip": "cc-by-nc-4.0",
}


def licence_of(scorer: ClipScorer) -> str | None:
    """Return the licence of a scorer's weights: as the recipe gives it, else as known of its tag."""
    known = (name for begin, name in LICENCES.items() if (scorer.pretrained or "").startswith(begin))
    return scorer.licence or next(known, None)
