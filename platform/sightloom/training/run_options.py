"""What a whole run can be told in the curriculum file, beside its stages: model, data, workers, checkpoints."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sightloom.config import Frozen
from sightloom.training.objective_options import Count, Positive, Share


class Run(Frozen):
    """What the run is called; every draw of it comes from the seed."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    seed: int = 17


class Model(Frozen):
    """Where the first stage starts: a preset built from scratch, or a pretrained folder, hub id or URI.

    `pixels`: the least and the most pixels that a picture is resized to, null: what the model's processor says.
    """

    preset: str | None = None
    pretrained: str | None = None
    pixels: tuple[Count, Count] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "Model":
        if (self.preset is None) == (self.pretrained is None):
            raise ValueError("give either preset or pretrained")
        if self.pixels is not None and self.pixels[0] > self.pixels[1]:
            raise ValueError(f"pixels: the least ({self.pixels[0]}) is above the most ({self.pixels[1]})")
        return self


class Data(Frozen):
    """The shards; the share `heldout` of their pictures never trains, at most `heldout_max` rows a domain are asked.

    `checksums`: hash every shard before the first stage, once; without it only their sizes are looked at then.
    """

    manifest: str
    heldout: Share = 0.02
    heldout_max: Count = 300
    checksums: bool = True


class RayOptions(Frozen):
    """Workers on the cluster (0: in the driver's own process, without Ray), each with so many threads and GPUs.

    `workers: [least, most]` is elastic: as many as there is room for, looked at every `resize_every_s`.
    """

    workers: Annotated[int, Field(ge=0)] | tuple[Count, Count] = 1
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0
    threads: Count = 1
    max_failures: Annotated[int, Field(ge=0)] = 8
    resize_every_s: Positive = 60
    resources: dict[str, float] = Field(default_factory=dict)  # Ray's custom ones, that a worker takes of its node

    @field_validator("workers")
    @classmethod
    def _least_before_most(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(value, tuple) and value[0] > value[1]:
            raise ValueError(f"workers: the least ({value[0]}) is above the most ({value[1]})")
        return value

    @property
    def elastic(self) -> bool:
        """Whether their number may change while they run."""
        return isinstance(self.workers, tuple) and self.workers[0] < self.workers[1]

    @property
    def most_workers(self) -> int:
        """How many there are at most."""
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers

    @property
    def gpus(self) -> int:
        """GPUs that the workers hold together, at most."""
        return self.most_workers * self.gpus_per_worker

    @model_validator(mode="after")
    def _gpus_have_workers(self) -> "RayOptions":
        if self.gpus_per_worker and not self.workers:
            raise ValueError("gpus_per_worker needs workers on Ray: set workers to 1 or more")
        return self


class ParallelOptions(Frozen):
    """How the workers hold the model: `replicate` times whole, each time shared out over `shard` of them.

    `replicate` null: as often as there are workers for; `shard: all`: over all of them, however many there are.
    `recompute` keeps no activations inside a layer; `compile` compiles each layer.
    """

    replicate: Count | None = None
    shard: Count | Literal["all"] = 1
    recompute: bool = False
    compile: bool = False

    @property
    def shares(self) -> bool:
        """Whether a worker holds less than the whole model."""
        return self.shard != 1

    def holders(self, workers: int) -> int:
        """Over how many of that many workers a copy of the model is shared out."""
        return workers if self.shard == "all" else self.shard

    def copies(self, workers: int) -> int:
        """How many times the model is held by that many workers."""
        return workers // self.holders(workers) if self.replicate is None else self.replicate


class CheckpointOptions(Frozen):
    """How often a running stage is saved, where, and how many of its checkpoints stay.

    `uri`: a folder that all nodes share or an object store, null: the output folder. `asynchronous` writes beside the
    next steps, null: on GPUs. Every `preemption_every_steps` all workers ask whether a node will be taken away.
    """

    every_minutes: Positive = 10
    every_steps: Count | None = None
    keep: Count = 2
    uri: str | None = None
    asynchronous: bool | None = None
    preemption_every_steps: Count = 20


class TrackingOptions(Frozen):
    """The MLflow store; without `uri` a sqlite file in the output folder.

    `usd_per_gpu_hour` prices the stages; `peak_tflops` is what a worker's device can do at most, where its name is not
    known or is not to be believed: it is what MFU is measured against.
    """

    uri: str | None = None
    experiment: str = "sightloom"
    usd_per_gpu_hour: Positive | None = None
    peak_tflops: Positive | None = None
