"""What a whole run can be told in the curriculum file, beside its stages: model, data, workers, checkpoints."""

from typing import Annotated

from pydantic import Field, model_validator

from sightloom.config import Frozen
from sightloom.training.objective_options import Count, Positive, Share


class Run(Frozen):
    """What the run is called; every draw of it comes from the seed."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    seed: int = 17


class Model(Frozen):
    """Where the first stage starts: a preset built from scratch, or a pretrained folder, hub id or URI."""

    preset: str | None = None
    pretrained: str | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "Model":
        if (self.preset is None) == (self.pretrained is None):
            raise ValueError("give either preset or pretrained")
        return self


class Data(Frozen):
    """The shards; the share `heldout` of their pictures never trains, at most `heldout_max` rows a domain are asked."""

    manifest: str
    heldout: Share = 0.02
    heldout_max: Count = 300


class RayOptions(Frozen):
    """Workers on the cluster (0: in the driver's own process, without Ray), each with so many threads."""

    workers: Annotated[int, Field(ge=0)] = 1
    threads: Count = 1
    max_failures: Annotated[int, Field(ge=0)] = 8
    resources: dict[str, float] = Field(default_factory=dict)  # Ray's custom ones, that a worker takes of its node


class ParallelOptions(Frozen):
    """How the workers hold the model: `replicate` times whole, each time shared out over `shard` of them.

    `replicate` null: as often as there are workers for. `recompute` keeps no activations inside a layer.
    """

    replicate: Count | None = None
    shard: Count = 1
    recompute: bool = False

    def copies(self, workers: int) -> int:
        """How many times the model is held by that many workers."""
        return workers // self.shard if self.replicate is None else self.replicate


class CheckpointOptions(Frozen):
    """How often a running stage is saved and how many of its checkpoints stay."""

    every_minutes: Positive = 10
    every_steps: Count | None = None
    keep: Count = 2


class TrackingOptions(Frozen):
    """The MLflow store; without `uri` a sqlite file in the output folder."""

    uri: str | None = None
    experiment: str = "sightloom"
