"""Gates between stages: pure decisions on a stage's metrics against bounds or against the model it started from."""

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sightloom.evaluation.intervals import Difference
from sightloom.training.curriculum import Rule

_SLACK: Final = 1e-9  # 0.55 + 0.05 is not 0.6 in floating point


@dataclass(frozen=True, slots=True)
class Verdict:
    """One rule on one metric; `text` reads like `eval/all/accuracy 0.62 >= 0.70`."""

    metric: str
    passed: bool
    text: str


def decide(
    rules: Sequence[Rule],
    metrics: Mapping[str, float],
    init: Mapping[str, float],
    paired: Mapping[str, Difference] | None = None,
) -> list[Verdict]:
    """Apply the rules; a metric that is missing or not a number does not pass.

    A `*` in a rule's metric stands for every domain that both sides measured. Where the same questions were asked
    before and after (`paired`, by metric), `not_below` asks for the lower bound of the difference, not for its value.
    """
    return [
        _one(rule, name, metrics, init, paired or {})
        for rule in rules
        for name in (_names(rule.metric, metrics) if "*" in rule.metric else [rule.metric])
    ]


def missing_at_init(rules: Sequence[Rule], init: Mapping[str, float]) -> bool:
    """Whether a rule compares with the start in a metric that the start was not measured in."""
    relative = [rule for rule in rules if rule.above or rule.below or rule.not_below]
    return any(not _names(rule.metric, init) for rule in relative)


def needs_pairs(rules: Sequence[Rule]) -> bool:
    """Whether a rule asks whether an accuracy was kept: the start then answers the same questions."""
    return any(rule.not_below is not None and rule.metric.endswith("/accuracy") for rule in rules)


def _names(pattern: str, metrics: Mapping[str, float]) -> list[str]:
    names = fnmatch.filter(metrics, pattern)
    return [name for name in names if "*" not in pattern or name.split("/")[1] not in ("all", "steps", "format")]


def _one(
    rule: Rule, name: str, metrics: Mapping[str, float], init: Mapping[str, float], paired: Mapping[str, Difference]
) -> Verdict:
    if rule.not_below is not None and name in paired:
        found = paired[name]
        text = (
            f"{name} {metrics[name]:.4g}: {found.value:+.4g} against the start, with 95 % at least {found.lower:+.4g}"
        )
        return Verdict(name, found.lower >= -rule.margin - _SLACK, f"{text} >= {-rule.margin:+.4g}")
    value = metrics.get(name, math.nan)
    start = init.get(name, math.nan)
    if rule.min is not None:
        sign, bound, passed = ">=", rule.min, value >= rule.min
    elif rule.max is not None:
        sign, bound, passed = "<=", rule.max, value <= rule.max
    elif rule.above is not None:
        sign, bound, passed = ">=", start + rule.by, value >= start + rule.by - _SLACK
    elif rule.below is not None:
        sign, bound, passed = "<", start - rule.by, value < start - rule.by
    else:
        sign, bound, passed = ">=", start - rule.margin, value >= start - rule.margin - _SLACK
    relative = rule.min is None and rule.max is None
    against = f" (started at {start:.4g})" if relative else ""
    return Verdict(name, passed, f"{name} {value:.4g} {sign} {bound:.4g}{against}")
