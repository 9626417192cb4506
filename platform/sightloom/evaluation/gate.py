"""The gate: may this candidate become champion? Pure: rows and rules in, a decision with its reasons out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from sightloom.config import Frozen
from sightloom.errors import UserMistake
from sightloom.evaluation.intervals import Difference, grouped_interval, paired_difference
from sightloom.evaluation.result import Decoding, Row, Statistics
from sightloom.metrics import mcnemar

Outcome = Literal["passed", "rejected", "inconclusive"]
ALL_ROWS = ("overall", "format")  # names in `domains` that mean every row


class DomainRule(Frozen):
    """What one domain must show. `overall` and `format` stand for all rows."""

    metric: Literal["accuracy", "well_formed"] = "accuracy"
    floor: float = Field(ge=0, le=1)
    margin: float = Field(default=0.02, ge=0, le=1, description="how much worse than the baseline is still accepted")
    min_n: int = Field(default=100, ge=1)
    blocking: bool = True


class Improvement(Frozen):
    """What must be better than the baseline: nothing, any of the domains, or their mean."""

    require: Literal["none", "any", "mean"] = "any"
    of: tuple[str, ...] = ()


class GateRules(Frozen):
    """pipelines/gates/*.yaml."""

    suites: str
    baseline: str = Field(default="champion", description="champion, none, or name:version")
    decoding: Decoding = Decoding()
    statistics: Statistics = Statistics()
    domains: dict[str, DomainRule] = Field(min_length=1)
    improvement: Improvement = Improvement()


@dataclass(frozen=True, slots=True)
class DomainDecision:
    """One domain's evidence and verdict; `delta` and what follows only against a baseline."""

    metric: str
    value: float
    n: int
    ci: tuple[float, float]
    floor: float
    margin: float
    blocking: bool
    verdict: Literal["passed", "failed", "inconclusive"]
    reason: str
    delta: float | None = None
    delta_bounds: tuple[float, float] | None = None
    p_value: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict over all domains, with one line for everything that stands in the way."""

    outcome: Outcome
    domains: Mapping[str, DomainDecision]
    reasons: tuple[str, ...]
    against_baseline: bool


def decide(candidate: Sequence[Row], baseline: Sequence[Row] | None, rules: GateRules) -> Decision:
    """Judge a candidate by the rules.

    A domain passes if its value reaches the floor and, against a baseline, the one-sided lower bound of the difference
    is above −margin; it fails below the floor or with the upper bound below −margin; otherwise, and with fewer than
    `min_n` examples, it is inconclusive, which is no pass. The gate passes if all blocking domains do and the
    improvement that the rules ask for is shown.

    Args:
        candidate: its rows.
        baseline: the champion's rows over the same examples, None while there is no champion.
        rules: the gate's file.

    Raises:
        UserMistake: the two did not answer the same examples, or a domain of the improvement is not in the rules.
    """
    paired = _paired(candidate, baseline)
    domains = {name: _domain(name, rule, candidate, paired, rules) for name, rule in rules.domains.items()}
    reasons = [f"{name}: {found.reason}" for name, found in domains.items() if found.verdict != "passed"]
    blocking = [found.verdict for found in domains.values() if found.blocking]
    improvement = _missing_improvement(candidate, paired, rules)
    if improvement:
        reasons.append(improvement)
    outcome: Outcome
    if "failed" in blocking:
        outcome = "rejected"
    elif "inconclusive" in blocking or improvement:
        outcome = "inconclusive"
    else:
        outcome = "passed"
    return Decision(outcome, domains, tuple(reasons), baseline is not None)


Pairs = Mapping[str, Row]


def _paired(candidate: Sequence[Row], baseline: Sequence[Row] | None) -> Pairs | None:
    if baseline is None:
        return None
    pairs = {row.id: row for row in baseline}
    if pairs.keys() != {row.id for row in candidate}:
        raise UserMistake(
            f"candidate and baseline did not answer the same examples ({len(candidate)} and {len(pairs)})",
            "evaluate both on the same suite and manifest",
        )
    return pairs


def _domain(name: str, rule: DomainRule, rows: Sequence[Row], pairs: Pairs | None, rules: GateRules) -> DomainDecision:
    statistics = rules.statistics
    chosen = _rows(name, rows)
    if not chosen:
        return DomainDecision(
            rule.metric, 0.0, 0, (0.0, 1.0), rule.floor, rule.margin, rule.blocking, "inconclusive", "no example"
        )
    marks = [_mark(row, rule) for row in chosen]
    groups = [row.group for row in chosen]
    value = sum(marks) / len(marks)
    interval = grouped_interval(marks, groups, statistics.confidence, statistics.resamples, statistics.seed)
    difference, p_value = None, None
    if pairs is not None:
        before = [_mark(pairs[row.id], rule) for row in chosen]
        difference = _difference(marks, before, groups, statistics.confidence, statistics)
        p_value = mcnemar([mark == 1 for mark in marks], [mark == 1 for mark in before])
    verdict, reason = _verdict(value, len(chosen), difference, rule)
    return DomainDecision(
        rule.metric,
        value,
        len(chosen),
        interval,
        rule.floor,
        rule.margin,
        rule.blocking,
        verdict,
        reason,
        None if difference is None else difference.value,
        None if difference is None else (difference.lower, difference.upper),
        p_value,
    )


def _verdict(
    value: float, n: int, difference: Difference | None, rule: DomainRule
) -> tuple[Literal["passed", "failed", "inconclusive"], str]:
    if n < rule.min_n:
        return "inconclusive", f"only {n} examples, {rule.min_n} are needed"
    if value < rule.floor:
        return "failed", f"{rule.metric} {value:.3f} is below the floor of {rule.floor:g}"
    if difference is None or difference.lower > -rule.margin:
        return "passed", "reaches the floor" if difference is None else "not worse than the baseline"
    bounds = f"{difference.value:+.3f} [{difference.lower:+.3f}, {difference.upper:+.3f}]"
    if difference.upper < -rule.margin:
        return "failed", f"worse than the baseline: {bounds}, margin {rule.margin:g}"
    return "inconclusive", f"perhaps worse than the baseline: {bounds}, margin {rule.margin:g}"


def _missing_improvement(rows: Sequence[Row], pairs: Pairs | None, rules: GateRules) -> str:
    wanted = rules.improvement
    if pairs is None or wanted.require == "none":
        return ""
    names = wanted.of or tuple(name for name in rules.domains if name not in ALL_ROWS)
    unknown = [name for name in names if name not in rules.domains]
    if unknown:
        raise UserMistake(f"improvement.of names '{unknown[0]}', which is not among the gate's domains")
    statistics = rules.statistics
    if wanted.require == "mean":
        chosen = [(row, rules.domains[name]) for name in names for row in _rows(name, rows)]
        if not chosen:
            return "no example that could show an improvement"
        found = _compare(chosen, pairs, statistics.confidence, statistics)
        return "" if found.lower > 0 else f"no improvement shown: mean {found.value:+.3f}, lower {found.lower:+.3f}"
    # Any of k domains may show it, so each must do so at the k-th part of the error (Bonferroni).
    confidence = 1 - (1 - statistics.confidence) / len(names)
    best = ""
    for name in names:
        chosen = [(row, rules.domains[name]) for row in _rows(name, rows)]
        if not chosen:
            continue
        found = _compare(chosen, pairs, confidence, statistics)
        if found.lower > 0:
            return ""
        best += f", {name} {found.value:+.3f} (lower {found.lower:+.3f})"
    return f"no improvement shown in any domain{best}"


def _compare(
    chosen: Sequence[tuple[Row, DomainRule]], pairs: Pairs, confidence: float, statistics: Statistics
) -> Difference:
    marks = [_mark(row, rule) for row, rule in chosen]
    before = [_mark(pairs[row.id], rule) for row, rule in chosen]
    return _difference(marks, before, [row.group for row, _ in chosen], confidence, statistics)


def _difference(
    marks: Sequence[float], before: Sequence[float], groups: Sequence[str], confidence: float, statistics: Statistics
) -> Difference:
    return paired_difference(marks, before, groups, confidence, statistics.resamples, statistics.seed)


def _rows(name: str, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if name in ALL_ROWS or row.domain == name]


def _mark(row: Row, rule: DomainRule) -> float:
    return float(row.right if rule.metric == "accuracy" else row.well_formed)
