"""What trains in a stage and how fast: a rate for each part of the model, or `frozen`; adapters for the decoder."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from sightloom.config import Frozen
from sightloom.training.objective_options import Count, Positive

Rate = Annotated[float, Field(gt=0)] | Literal["frozen"]


class Lora(Frozen):
    """Low-rank adapters that act as (alpha / rank)·B A."""

    rank: Count
    alpha: Positive


class LoraRate(Frozen):
    """Adapters beside frozen weights, trained at the rate `lr`."""

    lora: Lora
    lr: Positive


RateOrLora = Annotated[
    Annotated[Rate, Tag("rate")] | Annotated[LoraRate, Tag("adapted")],
    Discriminator(lambda value: "adapted" if isinstance(value, Mapping | LoraRate) else "rate"),
]


class Rates(Frozen):
    """A learning rate for each part of the model, or `frozen`; the decoder may train adapters instead."""

    vision: Rate = "frozen"
    fusion: Rate = "frozen"
    decoder: RateOrLora = "frozen"
    head: Rate = "frozen"

    @model_validator(mode="after")
    def _something_trains(self) -> "Rates":
        if set(self.by_group().values()) == {None}:
            raise ValueError("everything is frozen: give at least one part a learning rate")
        return self

    def by_group(self) -> dict[str, float | None]:
        """Learning rate per module group, None where it is frozen."""
        values = {name: getattr(self, name) for name in ("vision", "fusion", "decoder", "head")}
        if isinstance(self.decoder, LoraRate):
            values["decoder"] = self.decoder.lr
        return {name: None if value == "frozen" else float(value) for name, value in values.items()}

    @property
    def lora(self) -> Lora | None:
        """The decoder's adapters, None where it trains as it is or not at all."""
        return self.decoder.lora if isinstance(self.decoder, LoraRate) else None
