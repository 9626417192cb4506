"""The curriculum file: stages, objectives, mixtures, rates and gates, validated once (training.md §3)."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import ConfigDict, Field, field_validator, model_validator

from sightloom.config import Frozen
from sightloom.training.objective_options import Count, Objective, Positive, RlObjective, Share
from sightloom.training.rates import Rates
from sightloom.training.run_options import (
    CheckpointOptions,
    Data,
    Model,
    ParallelOptions,
    RayOptions,
    Run,
    TrackingOptions,
)

StageKind = Literal["align", "instruct", "reason", "prefer", "specialize"]
MODEL_NAME: Final = r"[a-z0-9][a-z0-9_-]{0,63}"
STAGE_ORDER: Final[tuple[str, ...]] = get_args(StageKind)
Precision = Literal["fp32", "bf16"]


class Batch(Frozen):
    """One optimizer step: `packs` packs of at most `max_tokens` tokens and `max_patches` patches each."""

    packs: Count = 4
    max_tokens: Count = 1024
    max_patches: Count = 4096
    window: Count = 4096


class Optim(Frozen):
    """The optimizer and its schedule; `warmup` and `floor` are shares of the steps and of the rate.

    `muon`: matrices by Muon at the group's rate, everything else by AdamW at `rest` times that rate.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    momentum: Share = 0.95
    rest: Positive = 0.5
    betas: tuple[Share, Share] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup: Share = 0.03
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    floor: Share = 0.1
    clip: Positive = 1.0


class Source(Frozen):
    """One source of the mixture; `by: domain` splits its weight evenly over the domains that it holds."""

    weight: Annotated[float, Field(gt=0, le=1)]
    where: str | None = None
    by: Literal["domain"] | None = None
    manifest: str | None = None


class Rule(Frozen):
    """One gate on a metric of the stage's evaluation; `init` is the model that the stage started from.

    `eval/*/accuracy` stands for every domain. `not_below` on an accuracy holds the lower bound (95 %) of the difference
    on the same questions against −margin.
    """

    metric: str
    min: float | None = None
    max: float | None = None
    above: Literal["init"] | None = None
    below: Literal["init"] | None = None
    not_below: Literal["init"] | None = None
    by: float = 0.0
    margin: float = 0.0

    @model_validator(mode="after")
    def _one_condition(self) -> "Rule":
        given = [name for name in ("min", "max", "above", "below", "not_below") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"rule on {self.metric}: give exactly one of min, max, above, below, not_below")
        return self


class EvaluateOptions(Frozen):
    """How the stage's model is asked: `thinking` null leaves the block out; at most `per_domain` rows a domain."""

    per_domain: Count = 60
    max_new_tokens: Count = 96
    thinking: bool | None = None
    batch: Count = 64


class Stage(Frozen):
    """One stage; what `defaults` says holds where the stage says nothing.

    Its length is given in `steps`, or in `epochs`: once as many samples as the mixture's sources hold together. `init`
    is an earlier stage or a model's address, null: the stage before. `register` makes the promoted model a version of
    the registry.
    """

    model_config = ConfigDict(populate_by_name=True)

    name: str = Field(pattern=r"^[\w-]+$")
    stage: StageKind
    steps: Count | None = None
    epochs: Positive | None = None
    objective: Objective
    mix: dict[str, Source] = Field(min_length=1)
    train: Rates
    batch: Batch
    optim: Optim
    evaluate: EvaluateOptions
    precision: Precision = "fp32"
    promote_if: tuple[Rule, ...] = ()
    init: str | None = None
    registers: bool = Field(default=False, alias="register")  # pydantic's metaclass has an attribute `register`

    @property
    def num_steps(self) -> int:
        """The optimizer steps of a stage whose length is known (`epochs` become steps once the data is)."""
        if self.steps is None:
            raise ValueError(f"stage '{self.name}' is given in epochs, its steps are not known yet")
        return self.steps

    @property
    def answers(self) -> bool:
        """Whether the stage ends with a model that answers questions."""
        return self.objective.kind not in ("align", "rm")

    @model_validator(mode="after")
    def _one_length(self) -> "Stage":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"stage '{self.name}': give either steps or epochs")
        return self

    @field_validator("mix")
    @classmethod
    def _weights_sum_to_one(cls, value: dict[str, Source]) -> dict[str, Source]:
        total = sum(source.weight for source in value.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the weights must sum to 1, they sum to {total:g}")
        return value


class Defaults(Frozen):
    """What every stage has unless it says otherwise."""

    batch: Batch = Batch()
    optim: Optim = Optim()
    evaluate: EvaluateOptions = EvaluateOptions()
    precision: Precision = "fp32"


class Curriculum(Frozen):
    """A whole training run. `gates: warn` goes on after a failed gate and reports it; `stop` holds the run."""

    run: Run
    model: Model
    data: Data
    ray: RayOptions = RayOptions()
    parallel: ParallelOptions = ParallelOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()
    tracking: TrackingOptions = TrackingOptions()
    gates: Literal["stop", "warn"] = "stop"
    defaults: Defaults = Defaults()
    stages: tuple[Stage, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, value: Any) -> Any:
        """Lay each stage's `batch`, `optim`, `evaluate` and `precision` over the defaults."""
        if not isinstance(value, Mapping) or not isinstance(value.get("stages"), list | tuple):
            return value
        raw = value.get("defaults") or {}
        if not isinstance(raw, Mapping):
            return value
        stages = []
        for stage in value["stages"]:
            if isinstance(stage, Mapping):
                merged = dict(stage)
                for key in ("batch", "optim", "evaluate"):
                    below, own = raw.get(key) or {}, stage.get(key) or {}
                    if isinstance(below, Mapping) and isinstance(own, Mapping):
                        merged[key] = {**below, **own}
                merged.setdefault("precision", raw.get("precision", "fp32"))
                stages.append(merged)
            else:
                stages.append(stage)
        return {**value, "stages": stages}

    @model_validator(mode="after")
    def _parallel_takes_effect(self) -> "Curriculum":
        parallel, workers = self.parallel, max(self.ray.most_workers, 1)
        holders, copies = parallel.holders(workers), parallel.copies(workers)
        if copies * holders != workers:
            raise ValueError(
                f"parallel: replicate x shard must be the number of workers, {workers} (ray.workers); "
                f"they are {copies} x {holders}"
            )
        if self.ray.elastic and (parallel.replicate is not None or parallel.shard not in (1, "all")):
            raise ValueError(
                "parallel: elastic workers (ray.workers: [least, most]) need replicate null and shard 1 or all"
            )
        for index, stage in enumerate(self.stages):
            why = "parallel.shard" if parallel.shares else "precision: bf16" if stage.precision == "bf16" else None
            if why and stage.optim.kind == "muon":
                raise ValueError(f"stages.{index}.optim.kind: muon needs whole float32 matrices, {why} adamw")
            if why and isinstance(stage.objective, RlObjective) and stage.objective.rollout.engine == "transformers":
                raise ValueError(
                    f"stages.{index}.objective: rl with rollout.engine transformers writes with the whole float32 "
                    f"model, {why} does not keep one"
                )
        return self

    @model_validator(mode="after")
    def _registered_under_a_name(self) -> "Curriculum":
        if any(stage.registers for stage in self.stages) and not re.fullmatch(MODEL_NAME, self.run.name):
            raise ValueError(
                f"run.name: '{self.run.name}' cannot name a registered model; use lower-case letters, digits, - and _"
            )
        return self

    @model_validator(mode="after")
    def _stages_in_order(self) -> "Curriculum":
        seen: list[str] = []
        last = 0
        for index, stage in enumerate(self.stages):
            place = STAGE_ORDER.index(stage.stage)
            if place < last:
                raise ValueError(f"stages.{index} '{stage.name}' ({stage.stage}) stands after a later kind of stage")
            last = place
            if stage.name in seen:
                raise ValueError(f"stages.{index}: the name '{stage.name}' is used twice")
            if index and stage.init is None and self.stages[index - 1].objective.kind == "rm":
                raise ValueError(f"stages.{index} '{stage.name}' would start from a reward model: give it `init`")
            if stage.objective.kind == "rm" and stage.train.head == "frozen":
                raise ValueError(
                    f"stages.{index} '{stage.name}': a reward model trains its head, give train.head a rate"
                )
            if stage.init is not None and "/" not in stage.init and stage.init not in seen:
                raise ValueError(f"stages.{index}.init: '{stage.init}' is no earlier stage and no path")
            seen.append(stage.name)
        return self
