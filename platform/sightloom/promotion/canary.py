"""The canary plan: the steps that a challenger walks, and the rules by which a step is judged (serving.md §10)."""

from typing import Any, Final, Self

from pydantic import Field, model_validator

from sightloom.config import Frozen

BASIS_POINTS: Final = 10_000


class CanaryStep(Frozen):
    """One step: a share of shadowed or of live requests, and how much must be seen before it is judged."""

    shadow: float | None = Field(default=None, gt=0, le=1, description="share of requests that are asked again, unseen")
    bp: int | None = Field(default=None, ge=1, le=BASIS_POINTS, description="share of live requests, in basis points")
    min_requests: int = Field(default=50, ge=1)
    min_minutes: float = Field(default=5, ge=0)

    @model_validator(mode="after")
    def _one_share(self) -> Self:
        if (self.shadow is None) == (self.bp is None):
            raise ValueError("a step has either 'shadow' or 'bp'")
        return self

    @property
    def words(self) -> str:
        """`1 %` or `shadow 20 %`."""
        return f"shadow {100 * self.shadow:g} %" if self.shadow is not None else f"{(self.bp or 0) / 100:g} %"


class SloRules(Frozen):
    """When a challenger is taken back."""

    significance: float = Field(
        default=0.001, gt=0, lt=1, description="one-sided, Fisher's exact test against the champion"
    )
    max_latency_ratio: float = Field(default=1.5, gt=1, description="of p95 TTFT and TPOT to the champion's")
    min_latency_samples: int = Field(default=50, ge=1, description="on both sides, before latencies are compared")
    max_error_share: float = Field(
        default=0.05, gt=0, lt=1, description="at any time, of at least `min_errors_of` requests"
    )
    min_errors_of: int = Field(default=20, ge=1)


class CanaryPlan(Frozen):
    """A challenger's way to the champion. `auto`: the manager promotes at the end, else a person does."""

    steps: tuple[CanaryStep, ...] = (
        CanaryStep(shadow=0.2, min_requests=100, min_minutes=10),
        CanaryStep(bp=100),
        CanaryStep(bp=1000),
        CanaryStep(bp=5000),
    )
    auto: bool = True
    rules: SloRules = SloRules()

    def to_args(self) -> dict[str, Any]:
        """The arguments of a `start` event."""
        return {
            "plan": [step.model_dump(mode="json", exclude_none=True) for step in self.steps],
            "auto": self.auto,
            "rules": self.rules.model_dump(mode="json"),
        }


AT_ONCE: Final = CanaryPlan(steps=())
