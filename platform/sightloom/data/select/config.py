"""What stays."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from sightloom.config import Frozen
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
