"""Whether a challenger goes on, is taken back or becomes champion: pure (serving.md §10)."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sightloom.metrics import more_often
from sightloom.promotion.canary import CanaryStep, SloRules
from sightloom.promotion.states import ModelState
from sightloom.serving.observe import Row


@dataclass(frozen=True, slots=True)
class Judgement:
    """An event that the manager should write: step, promote or abort, why, and the figures behind it."""

    kind: str
    version: int
    reason: str
    evidence: Mapping[str, str] = field(default_factory=dict)


def judge(its: ModelState, challenger: Row, champion: Row, app_failure: str, now: str) -> Judgement | None:
    """What follows for the challenger, None: wait.

    Args:
        its: where the model's versions stand.
        challenger: what was seen of it since its step began.
        champion: the champion's live requests in the same time.
        app_failure: why its app will not come up, empty if that is not so.
        now: ISO 8601, with time zone.
    """
    version, trial = its.challenger, its.trial
    if version is None:
        return None
    figures = evidence(challenger, champion)
    if app_failure:
        return Judgement("abort", version, f"its app does not come up: {app_failure}", figures)
    if why := _breach_at_any_time(challenger, trial.rules):
        return Judgement("abort", version, why, figures)
    if trial.done:
        return Judgement("promote", version, "its canary plan is done", figures) if trial.auto else None
    step = trial.plan[trial.step]
    if not _seen_enough(step, challenger, trial.at, now):
        return None
    if why := _breach(challenger, champion, trial.rules):
        return Judgement("abort", version, why, figures)
    return Judgement("step", version, f"{step.words} done", figures)


def evidence(challenger: Row, champion: Row) -> dict[str, str]:
    """The figures of both, as an event keeps them."""
    found = {}
    for who, row in (("challenger", challenger), ("champion", champion)):
        words = [f"{row.requests} requests", f"{row.errors} errors", f"{row.empty} empty", f"{row.malformed} malformed"]
        for name, values in (("ttft", row.ttft_s), ("tpot", row.tpot_s)):
            if values:
                words.append(f"{name} p95 {p95(values):.4f} s")
        if row.compared:
            words.append(f"{row.agreed}/{row.compared} agree")
        found[who] = ", ".join(words)
    return found


def figures(row: Row) -> dict[str, Any]:
    """The same as plain numbers, for displays."""
    return {
        "requests": row.requests,
        "errors": row.errors,
        "empty": row.empty,
        "malformed": row.malformed,
        "ttft_p95_s": round(p95(row.ttft_s), 4) if row.ttft_s else None,
        "tpot_p95_s": round(p95(row.tpot_s), 5) if row.tpot_s else None,
        "agreement": round(row.agreed / row.compared, 3) if row.compared else None,
    }


def p95(values: list[float]) -> float:
    """The 95th percentile."""
    return float(np.percentile(values, 95))


def _seen_enough(step: CanaryStep, challenger: Row, since: str, now: str) -> bool:
    then, at = (datetime.datetime.fromisoformat(text) for text in (since, now))
    return challenger.requests >= step.min_requests and (at - then).total_seconds() >= 60 * step.min_minutes


def _breach_at_any_time(challenger: Row, rules: SloRules) -> str:
    if challenger.requests >= rules.min_errors_of and challenger.errors > rules.max_error_share * challenger.requests:
        return f"{challenger.errors} errors in {challenger.requests} requests"
    return ""


def _breach(challenger: Row, champion: Row, rules: SloRules) -> str:
    for name in ("errors", "empty", "malformed"):
        here, there = getattr(challenger, name), getattr(champion, name)
        p = more_often(here, challenger.requests, there, champion.requests)
        if p < rules.significance:
            return (
                f"{name}: {here} of {challenger.requests} requests, the champion's {there} of {champion.requests} "
                f"(p = {p:.1e})"
            )
    for name, here_s, there_s in (
        ("TTFT", challenger.ttft_s, champion.ttft_s),
        ("TPOT", challenger.tpot_s, champion.tpot_s),
    ):
        if min(len(here_s), len(there_s)) < rules.min_latency_samples:
            continue
        ratio = p95(here_s) / p95(there_s)
        if ratio > rules.max_latency_ratio:
            return f"p95 of {name} is {ratio:.1f} times the champion's ({p95(here_s):.3f} s and {p95(there_s):.3f} s)"
    return ""
