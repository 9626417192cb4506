"""What each kind of objective can be told in the curriculum file (training.md §3, §6)."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sightloom.config import Frozen

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class AlignObjective(Frozen):
    """Contrastive alignment across all workers plus captioning.

    `grad_cache`: a worker takes its bins one after the other and looks at them twice, for a contrastive batch that is
    larger than memory; else they are one micro-batch.
    """

    kind: Literal["align"]
    contrastive: Literal["siglip", "clip"] = "siglip"
    weight: Annotated[float, Field(ge=0)] = 0.5
    caption_weight: Annotated[float, Field(ge=0)] = 1.0
    grad_cache: bool = False


class SftObjective(Frozen):
    """Supervised fine-tuning on conversations.

    `reasoning: false` leaves worked steps out (direct answers). With true the prompt opens a think block, in which the
    steps are written, or which is closed at once where the record has none; the share `empty_think_share` of the
    documents answers directly after a block that the prompt closed.
    """

    kind: Literal["sft"]
    turns: Literal["all", "last"] = "all"
    reasoning: bool = False
    empty_think_share: Share = 0.0


class Advantage(Frozen):
    """How rewards become advantages (training.md §6); the switches are those of g2rpo.

    `scope: group+task` ranks the values of all of a task's groups of the step once more, as the paper's code does;
    `recenter` then takes each group's mean away again. `credit`: `response` gives all its tokens the response's
    advantage; `prefix` gives a token the difference that it made among the responses with the same tokens before it.
    """

    credit: Literal["response", "prefix"] = "response"
    name: Literal["g2rpo", "grpo", "dr_grpo", "rloo"] = "g2rpo"
    scope: Literal["group", "group+task"] = "group"
    recenter: bool = False
    unit_variance: bool = False

    @model_validator(mode="after")
    def _switches_take_effect(self) -> "Advantage":
        if self.name != "g2rpo" and (self.scope != "group" or self.recenter or self.unit_variance):
            raise ValueError(f"scope, recenter and unit_variance are g2rpo's; {self.name} has none of them")
        if self.recenter and self.scope == "group":
            raise ValueError("recenter has no effect with scope: group, whose groups have mean 0")
        return self


class PolicyLoss(Frozen):
    """The policy loss and how its tokens are aggregated.

    GRPO: clip and sequence; Dr. GRPO: clip, constant, advantage dr_grpo; DAPO: clip [0.2, 0.28], token; GSPO: gspo,
    sequence, clip near [0.0003, 0.0004]; CISPO: cispo, token, of whose clip only the upper bound counts.
    """

    name: Literal["clip", "gspo", "cispo"] = "clip"
    aggregate: Literal["token", "sequence", "constant"] = "token"
    clip: tuple[Positive, Positive] = (0.2, 0.3)
    dual_clip: Positive | None = 3.0
    tis_cap: Positive = 2.0

    @model_validator(mode="after")
    def _choices_fit(self) -> "PolicyLoss":
        if self.name == "gspo" and self.aggregate != "sequence":
            raise ValueError(f"gspo has one ratio a response: aggregate: sequence, not {self.aggregate}")
        if self.name != "clip" and self.dual_clip is not None and "dual_clip" in self.model_fields_set:
            raise ValueError(f"dual_clip belongs to loss clip; {self.name} has none: leave it out")
        return self


class Kl(Frozen):
    """A penalty on the distance from the model that the stage starts from; coef 0: none, and no second model."""

    coef: Annotated[float, Field(ge=0)] = 0.0
    estimator: Literal["k1", "k2", "k3", "k3_k2grad"] = "k3_k2grad"


class Entropy(Frozen):
    """Keeps the mean entropy per token (nats) inside a band: `coef` times its distance to the band joins the loss.

    `bands`: low and high per task; tasks without a band of their own share that of `default`.
    """

    coef: Annotated[float, Field(ge=0)] = 0.0
    bands: dict[str, tuple[float, float]] = Field(default_factory=lambda: {"default": (0.0, 10.0)})

    @field_validator("bands")
    @classmethod
    def _bands_rise(cls, value: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        if "default" not in value:
            raise ValueError("bands needs the key 'default'")
        for task, (low, high) in value.items():
            if not 0 <= low <= high:
                raise ValueError(f"bands.{task}: 0 <= low <= high is needed, got {low}, {high}")
        return value


class Rewards(Frozen):
    """Weights of the reward's parts."""

    accuracy: Share = 0.8
    format: Share = 0.1
    length: Share = 0.1


class RolloutOptions(Frozen):
    """A step samples `prompts` groups of `n` responses; groups with mean accuracy outside `keep` are replaced.

    `batch_size`: responses that are written side by side; `limit_s`: for all of a round's on a worker. `engine: vllm`
    writes on the workers' GPUs, beside the trainer; on a CPU it is refused.
    """

    engine: Literal["transformers", "vllm"] = "transformers"
    batch_size: Count = 256
    prompts: Count = 8
    n: Annotated[int, Field(ge=2)] = 8
    temperature: Positive = 1.0
    max_new_tokens: Count = 96
    keep: tuple[Share, Share] = (0.01, 0.99)
    rounds: Count = 3
    limit_s: Positive = 600.0


class RlObjective(Frozen):
    """Policy optimisation on verifiable rewards; `length` holds Lmin, Llow, Lhigh, Lmax in tokens per task."""

    kind: Literal["rl"]
    advantage: Advantage = Advantage()
    loss: PolicyLoss = PolicyLoss()
    kl: Kl = Kl()
    entropy: Entropy = Entropy()
    rewards: Rewards = Rewards()
    length: dict[str, tuple[int, int, int, int]] = Field(default_factory=lambda: {"default": (0, 8, 64, 96)})
    rollout: RolloutOptions = RolloutOptions()

    @model_validator(mode="after")
    def _credit_fits(self) -> "RlObjective":
        if self.advantage.credit == "prefix" and self.loss.name == "gspo":
            raise ValueError("advantage.credit prefix is one value a token, loss gspo takes one a response")
        return self

    @field_validator("length")
    @classmethod
    def _has_default(cls, value: dict[str, tuple[int, int, int, int]]) -> dict[str, tuple[int, int, int, int]]:
        for task, bounds in value.items():
            if list(bounds) != sorted(bounds):
                raise ValueError(f"length.{task}: Lmin, Llow, Lhigh, Lmax must rise")
        if "default" not in value:
            raise ValueError("length needs the key 'default'")
        return value


class DpoObjective(Frozen):
    """Direct preference optimisation against the model that the stage starts from; `ipo` takes token means.

    `reasoning` as in SftObjective, for both responses of a pair.
    """

    kind: Literal["dpo"]
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    beta: Positive = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    reasoning: bool = False

    @model_validator(mode="after")
    def _smoothing_takes_effect(self) -> "DpoObjective":
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError("label_smoothing has no meaning for loss: ipo; leave it out")
        return self


class RmObjective(Frozen):
    """A reward model: one number at a response's last token, higher for the chosen one by `margin`."""

    kind: Literal["rm"]
    margin: Annotated[float, Field(ge=0)] = 0.0
    reasoning: bool = False


Objective = Annotated[
    AlignObjective | SftObjective | RlObjective | DpoObjective | RmObjective, Field(discriminator="kind")
]
