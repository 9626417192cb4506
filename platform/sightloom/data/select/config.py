"""What stays."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from sightloom.config import Frozen
from sightloom.data.select.presets import PRESETS, Preset
from sightloom.data.signals.config import COLUMN_PATTERN
from sightloom.records import Kind


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


class Sample(Frozen):
    """Draw `count` rows, some of them several times: likelier by score, less likely each time that they are drawn."""

    method: Literal["soft_cap"] = "soft_cap"
    by: str
    count: int = Field(ge=0)
    temperature: float = Field(gt=0)
    penalty: float = Field(default=0.15, ge=0, description="taken off the score of what was drawn")
    batch: int = Field(default=100_000, ge=1, description="drawn at once, without replacement")


class SelectConfig(Frozen):
    """What stays: each rule is a question that a kept row answers with yes."""

    preset: Preset | None = Field(default=None, description="a published selection; what is given here is added")
    rules: dict[str, str] = Field(default_factory=dict)
    derive: dict[str, str] = Field(default_factory=dict)
    top: tuple[Top, ...] = ()
    sample: Sample | None = None

    @field_validator("rules", "derive")
    @classmethod
    def _names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not re.match(COLUMN_PATTERN, name):
                raise ValueError(f"'{name}' is not a name ({COLUMN_PATTERN})")
        if len(value) > 64:
            raise ValueError("at most 64 rules")
        return value

    @model_validator(mode="after")
    def _nothing_twice(self) -> SelectConfig:
        own = PRESETS[self.preset].get("rules", {}) if self.preset is not None else {}
        for name in self.rules:
            if name in own:
                raise ValueError(f"preset '{self.preset}' has a rule '{name}' already: choose another name")
        if len(self.rules) + len(own) > 64:
            raise ValueError("at most 64 rules, those of the preset included")
        return self

    @property
    def all_rules(self) -> dict[str, str]:
        """The preset's rules, then the own ones."""
        return {**(PRESETS[self.preset].get("rules", {}) if self.preset is not None else {}), **self.rules}

    @property
    def all_tops(self) -> tuple[Top, ...]:
        """The preset's top fractions, then the own ones."""
        given = PRESETS[self.preset].get("top", ()) if self.preset is not None else ()
        return (*(Top.model_validate(top) for top in given), *self.top)
