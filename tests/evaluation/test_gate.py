import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sightloom.config import load
from sightloom.errors import UserMistake
from sightloom.evaluation.gate import GateRules, PerfRule, decide
from sightloom.evaluation.result import Perf, Row, Statistics
from sightloom.metrics import holm

from .conftest import row


def rules(improvement: str = "none", floor: float = 0.5, margin: float = 0.05, **more: object) -> GateRules:
    domain = {"floor": floor, "margin": margin, "min_n": 100} | more
    return GateRules.model_validate({
        "suites": "x.yaml", "statistics": {"resamples": 1000}, "domains": {"art": domain},
        "improvement": {"require": improvement, "of": ["art"]},
    })  # fmt: skip


def rows(n: int, right: int) -> list[Row]:
    return [row(f"e{i}", i < right) for i in range(n)]


def test_the_first_version_needs_only_the_floor() -> None:
    assert decide(rows(200, 120), None, rules("any")).outcome == "passed"
    below = decide(rows(200, 99), None, rules())
    assert below.outcome == "rejected"
    assert below.reasons == ("art: accuracy 0.495 is below the floor of 0.5",)


def test_too_few_examples_are_no_pass() -> None:
    found = decide(rows(99, 99), None, rules())
    assert found.outcome == "inconclusive"
    assert "only 99 examples" in found.reasons[0]


def test_a_clear_win_passes_and_shows_its_improvement() -> None:
    found = decide(rows(300, 240), rows(300, 180), rules("any"))
    assert found.outcome == "passed"
    art = found.domains["art"]
    assert art.delta == pytest.approx(0.2)
    assert art.delta_bounds is not None
    assert art.p_value is not None
    assert 0 < art.delta_bounds[0] < 0.2 < art.delta_bounds[1]
    assert art.p_value < 1e-6


def test_a_clear_loss_is_rejected_and_noise_is_inconclusive() -> None:
    assert decide(rows(300, 180), rows(300, 240), rules()).outcome == "rejected"
    candidate = [row(f"e{i}", i % 10 < 6) for i in range(120)]
    baseline = [row(f"e{i}", i % 10 > 3) for i in range(120)]
    assert decide(candidate, baseline, rules()).outcome == "inconclusive"


def test_equal_answers_pass_the_margin_but_show_no_improvement() -> None:
    assert decide(rows(300, 200), rows(300, 200), rules()).outcome == "passed"
    for require in ("any", "mean"):
        found = decide(rows(300, 200), rows(300, 200), rules(require))
        assert found.outcome == "inconclusive"
        assert "no improvement" in found.reasons[0]


def test_an_improvement_that_no_domain_could_show_is_a_mistake_in_the_gate() -> None:
    overall = {"metric": "accuracy", "floor": 0, "margin": 1, "min_n": 1}
    asked = GateRules.model_validate({"suites": "x.yaml", "domains": {"overall": overall}})
    with pytest.raises(UserMistake, match="the gate has none but overall"):
        decide(rows(10, 5), rows(10, 5), asked)


def test_a_domain_that_does_not_block_is_told_but_does_not_stop() -> None:
    found = decide(rows(200, 20), None, rules(blocking=False))
    assert found.outcome == "passed"
    assert found.domains["art"].verdict == "failed"
    assert found.reasons


def test_well_formed_is_judged_over_all_rows() -> None:
    config = GateRules.model_validate({
        "suites": "x", "domains": {"format": {"metric": "well_formed", "floor": 0.95, "min_n": 100}},
        "improvement": {"require": "none"},
    })  # fmt: skip
    good = [row(f"e{i}", False, domain="art" if i % 2 else "ui", well_formed=i % 50 > 0) for i in range(200)]
    bad = [row(f"e{i}", True, well_formed=i % 10 > 0) for i in range(200)]
    assert decide(good, None, config).outcome == "passed"
    assert decide(bad, None, config).outcome == "rejected"


def test_a_domain_without_examples_is_inconclusive() -> None:
    assert decide([row("e0", True, domain="ui")], None, rules()).outcome == "inconclusive"


def test_other_examples_than_the_baseline_are_refused() -> None:
    with pytest.raises(UserMistake, match="same examples"):
        decide(rows(200, 100), rows(199, 100), rules())


def pass_rate(worse: float, grouped: bool, simulations: int = 400, margin: float = 0.05) -> tuple[float, float]:
    """How often a candidate passes that is truly worse by `worse`, and how often the gate's p-value is below 0.05:
    McNemar's, or the bootstrap's over pictures where questions share them.

    300 questions; grouped: 4 on a picture, which are right or wrong together in half of the pictures.
    """
    draw = np.random.default_rng(7)
    config = rules(floor=0.3, margin=margin).model_copy(update={"statistics": Statistics(resamples=200)})
    blank = [row(f"e{i}", True, group=f"g{i // 4}" if grouped else "") for i in range(300)]
    passed = seen = 0
    for _ in range(simulations):
        luck = draw.random((2, 300))
        if grouped:
            together = np.repeat(draw.random((2, 75)) < 0.5, 4, axis=1)
            luck = np.where(together, np.repeat(luck[:, ::4], 4, axis=1), luck)
        sides = [
            [dataclasses.replace(one, right=bool(its)) for one, its in zip(blank, marks, strict=True)]
            for marks in (luck[0] < 0.70 - worse, luck[1] < 0.70)
        ]
        found = decide(*sides, config)
        p_value = found.domains["art"].p_value
        passed += found.outcome == "passed"
        seen += p_value is not None and p_value < 0.05
    return passed / simulations, seen / simulations


@pytest.mark.parametrize("grouped", [False, True])
def test_a_model_truly_worse_by_two_margins_rarely_passes(grouped: bool) -> None:
    passed, seen = pass_rate(0.10, grouped)
    assert (
        passed < 0.05
    )  # 400 simulations each: 0.0025 alone, 0.0075 grouped; 0.0475 both at one margin, 0.05 nominally
    assert seen > 0.3  # 0.70 alone, 0.39 grouped: as many questions on fewer pictures say less


def test_questions_that_share_pictures_raise_no_more_false_alarms() -> None:
    _, seen = pass_rate(0.0, grouped=True)
    assert seen < 0.09  # 0.0575, at 0.05 + 3 standard errors 0.083; McNemar's test over the rows: 0.19


def test_the_gates_that_are_shipped_are_valid_and_find_their_suite() -> None:
    for path in (Path(__file__).parents[2] / "pipelines" / "gates").glob("*.yaml"):
        found = load(GateRules, path)
        assert (path.parent / found.suites).is_file()
        assert found.improvement.require == "none" or set(found.improvement.of) <= set(found.domains)


def test_p_values_over_domains_are_holms() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # worked by hand
    config = GateRules.model_validate({
        "suites": "x", "domains": {name: {"floor": 0, "margin": 1, "min_n": 10} for name in ("art", "ui")},
        "improvement": {"require": "none"},
    })  # fmt: skip
    candidate = [row(f"e{i}", i % 4 > 0, domain="art" if i % 2 else "ui") for i in range(80)]
    baseline = [row(f"e{i}", i % 2 > 0, domain="art" if i % 2 else "ui") for i in range(80)]
    found = decide(candidate, baseline, config).domains
    raw = {name: its.p_value for name, its in found.items()}
    assert {name: its.p_adjusted for name, its in found.items()} == dict(
        zip(raw, holm([value for value in raw.values() if value is not None]), strict=True)
    )


def perf(ttft: float, n: int = 200, clients: int = 8) -> Perf:
    return Perf(clients, n, 0, ttft / 2, ttft, 0.01, 0.02, 500.0)


@pytest.mark.parametrize(
    ("candidate", "baseline", "outcome", "reason"),
    [
        ([perf(1.0)], [perf(0.9)], "passed", ""),
        ([perf(1.0)], [], "passed", ""),
        ([perf(1.6)], [perf(1.6)], "rejected", "above the ceiling of 1.5 s"),
        ([perf(1.2)], [perf(0.9)], "rejected", "more than 1.2 times the baseline's 0.900 s"),
        ([perf(1.0, n=50)], [perf(1.0)], "inconclusive", "only 50 requests"),
        ([perf(1.0, clients=1)], [], "inconclusive", "not measured"),
        ([], [], "inconclusive", "not measured"),
    ],
)
def test_a_slower_endpoint_does_not_pass(
    candidate: list[Perf], baseline: list[Perf], outcome: str, reason: str
) -> None:
    config = rules().model_copy(
        update={"perf": (PerfRule(metric="ttft_p95_s", clients=8, ceiling=1.5, max_ratio=1.2),)}
    )
    found = decide(rows(200, 150), None, config, candidate, baseline)
    assert found.outcome == outcome
    assert reason in " ".join(found.reasons)


def test_imported_rows_never_count_at_the_gate() -> None:
    wrong = [dataclasses.replace(row(f"m{i}", False), source="lmms_eval 0.7") for i in range(300)]
    found = decide([*rows(200, 150), *wrong], rows(200, 140), rules())
    assert found.outcome == "passed"
    assert found.domains["art"].n == 200
