"""The gate: may this candidate become champion? Pure: rows and rules in, a decision with its reasons out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from sightloom.config import Frozen
from sightloom.errors import UserMistake
from sightloom.evaluation.intervals import Difference
from sightloom.evaluation.measures import Metric, compare, counted, measure
from sightloom.evaluation.result import Decoding, Perf, Row, Statistics
from sightloom.metrics import holm

Outcome = Literal["passed", "rejected", "inconclusive"]
ALL_ROWS = ("overall", "format")  # names in `domains` that mean every row


class DomainRule(Frozen):
    """What one domain must show. `overall` and `format` stand for all rows."""

    metric: Metric = "accuracy"
    floor: float = Field(ge=0, le=10, description="least value that is accepted; CIDEr-D reaches 10, all others 1")
    margin: float = Field(default=0.02, ge=0, le=1, description="how much worse than the baseline is still accepted")
    min_n: int = Field(default=100, ge=1)
    blocking: bool = True


class PerfRule(Frozen):
    """How slow the endpoint may be under a number of clients that the suite's `perf` measures."""

    metric: Literal["ttft_p95_s", "tpot_p95_s"]
    clients: int = Field(ge=1)
    ceiling: float = Field(gt=0, description="seconds")
    max_ratio: float | None = Field(default=None, ge=1, description="to the baseline's, measured beside it")
    min_n: int = Field(default=100, ge=10)
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
    perf: tuple[PerfRule, ...] = ()
    improvement: Improvement = Improvement()


@dataclass(frozen=True, slots=True)
class DomainDecision:
    """One domain's evidence and verdict; `delta` and what follows only against a baseline.

    `p_adjusted` is Holm's over all domains of the gate.
    """

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
    p_adjusted: float | None = None


@dataclass(frozen=True, slots=True)
class PerfDecision:
    """One measure of speed and its verdict; `baseline` is the champion's."""

    metric: str
    clients: int
    value: float | None
    baseline: float | None
    n: int
    blocking: bool
    verdict: Literal["passed", "failed", "inconclusive"]
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict over all domains, with one line for everything that stands in the way."""

    outcome: Outcome
    domains: Mapping[str, DomainDecision]
    reasons: tuple[str, ...]
    against_baseline: bool
    perf: tuple[PerfDecision, ...] = ()


def decide(
    candidate: Sequence[Row],
    baseline: Sequence[Row] | None,
    rules: GateRules,
    perf: Sequence[Perf] = (),
    baseline_perf: Sequence[Perf] = (),
) -> Decision:
    """Judge a candidate by the rules.

    A domain passes if its value reaches the floor and, against a baseline, the one-sided lower bound of the difference
    is above −margin; it fails below the floor or with the upper bound below −margin; otherwise, and with fewer than
    `min_n` examples, it is inconclusive, which is no pass. The gate passes if all blocking domains do and the
    improvement that the rules ask for is shown.

    Args:
        candidate: its rows.
        baseline: the champion's rows over the same examples, None while there is no champion.
        rules: the gate's file.
        perf: the candidate's speed, where the rules ask for it.
        baseline_perf: the champion's.

    Raises:
        UserMistake: the two did not answer the same examples, or a domain of the improvement is not in the rules.
    """
    paired = _paired(candidate, baseline)
    candidate = [row for row in candidate if not row.source]
    domains = _adjusted({name: _domain(name, rule, candidate, paired, rules) for name, rule in rules.domains.items()})
    reasons = [f"{name}: {found.reason}" for name, found in domains.items() if found.verdict != "passed"]
    speeds = tuple(_speed(rule, perf, baseline_perf) for rule in rules.perf)
    reasons += [f"{its.metric} at {its.clients} clients: {its.reason}" for its in speeds if its.verdict != "passed"]
    judged: list[DomainDecision | PerfDecision] = [*domains.values(), *speeds]
    blocking = [found.verdict for found in judged if found.blocking]
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
    return Decision(outcome, domains, tuple(reasons), baseline is not None, speeds)


Pairs = Mapping[str, Row]


def _paired(candidate: Sequence[Row], baseline: Sequence[Row] | None) -> Pairs | None:
    if baseline is None:
        return None
    pairs = {row.id: row for row in baseline if not row.source}
    if pairs.keys() != {row.id for row in candidate if not row.source}:
        raise UserMistake(
            f"candidate and baseline did not answer the same examples ({len(candidate)} and {len(pairs)})",
            "evaluate both on the same suite and manifest",
        )
    return pairs


def _domain(name: str, rule: DomainRule, rows: Sequence[Row], pairs: Pairs | None, rules: GateRules) -> DomainDecision:
    statistics = rules.statistics
    chosen = _rows(name, rows)
    found = measure(rule.metric, chosen, statistics)
    if found is None:
        return DomainDecision(
            rule.metric, 0.0, 0, (0.0, 1.0), rule.floor, rule.margin, rule.blocking, "inconclusive", "no example"
        )
    compared = None
    if pairs is not None:
        compared = compare(rule.metric, chosen, pairs, statistics.confidence, statistics)
    difference = None if compared is None else compared.difference
    verdict, reason = _verdict(found.value, found.n, difference, rule)
    return DomainDecision(
        rule.metric,
        found.value,
        found.n,
        found.ci,
        rule.floor,
        rule.margin,
        rule.blocking,
        verdict,
        reason,
        None if difference is None else difference.value,
        None if difference is None else (difference.lower, difference.upper),
        None if compared is None else compared.p_value,
    )


def _adjusted(domains: Mapping[str, DomainDecision]) -> dict[str, DomainDecision]:
    compared = {name: found.p_value for name, found in domains.items() if found.p_value is not None}
    adjusted = dict(zip(compared, holm(list(compared.values())), strict=True))
    return {name: replace(found, p_adjusted=adjusted.get(name)) for name, found in domains.items()}


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


def _speed(rule: PerfRule, perf: Sequence[Perf], baseline: Sequence[Perf]) -> PerfDecision:
    found = next((its for its in perf if its.clients == rule.clients), None)
    before = next((getattr(its, rule.metric) for its in baseline if its.clients == rule.clients), None)
    if found is None:
        reason = f"not measured: the suite's `perf` needs {rule.clients} among its clients, and an endpoint"
        return PerfDecision(rule.metric, rule.clients, None, before, 0, rule.blocking, "inconclusive", reason)
    value = getattr(found, rule.metric)
    verdict: Literal["passed", "failed", "inconclusive"] = "passed"
    reason = "fast enough"
    if found.n < rule.min_n:
        verdict, reason = "inconclusive", f"only {found.n} requests, {rule.min_n} are needed"
    elif value > rule.ceiling:
        verdict, reason = "failed", f"{value:.3f} s is above the ceiling of {rule.ceiling:g} s"
    elif rule.max_ratio is not None and before is not None and value > rule.max_ratio * before:
        verdict, reason = "failed", f"{value:.3f} s is more than {rule.max_ratio:g} times the baseline's {before:.3f} s"
    return PerfDecision(rule.metric, rule.clients, value, before, found.n, rule.blocking, verdict, reason)


def _missing_improvement(rows: Sequence[Row], pairs: Pairs | None, rules: GateRules) -> str:
    wanted = rules.improvement
    if pairs is None or wanted.require == "none":
        return ""
    names = wanted.of or tuple(name for name in rules.domains if name not in ALL_ROWS)
    unknown = [name for name in names if name not in rules.domains]
    if unknown:
        raise UserMistake(f"improvement.of names '{unknown[0]}', which is not among the gate's domains")
    if wanted.require == "mean":
        return _mean_improvement(names, rows, pairs, rules)
    if not names:
        raise UserMistake(
            f"improvement.require: {wanted.require} asks for a domain that improves, and the gate has none but "
            f"{', '.join(rules.domains)}",
            "name domains, or write improvement: {require: none}",
        )
    # Any of k domains may show it, so each must do so at the k-th part of the error (Bonferroni).
    confidence = 1 - (1 - rules.statistics.confidence) / len(names)
    best = ""
    for name in names:
        compared = compare(rules.domains[name].metric, _rows(name, rows), pairs, confidence, rules.statistics)
        if compared is None:
            continue
        if compared.difference.lower > 0:
            return ""
        best += f", {name} {compared.difference.value:+.3f} (lower {compared.difference.lower:+.3f})"
    return f"no improvement shown in any domain{best}"


def _mean_improvement(names: Sequence[str], rows: Sequence[Row], pairs: Pairs, rules: GateRules) -> str:
    """The mean over the domains' questions, each by its own domain's metric."""
    chosen = [row for name in names for row in counted(rules.domains[name].metric, _rows(name, rows))]
    metrics = {rules.domains[name].metric for name in names}
    if not chosen:
        return "no example that could show an improvement"
    if len(metrics) > 1:
        raise UserMistake(
            f"improvement.require: mean needs one metric for its domains, they have {', '.join(sorted(metrics))}",
            "name domains of one metric in improvement.of, or require: any",
        )
    compared = compare(metrics.pop(), chosen, pairs, rules.statistics.confidence, rules.statistics)
    assert compared is not None  # the rows were chosen by the metric
    found = compared.difference
    return "" if found.lower > 0 else f"no improvement shown: mean {found.value:+.3f}, lower {found.lower:+.3f}"


def _rows(name: str, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if name in ALL_ROWS or row.domain == name]
