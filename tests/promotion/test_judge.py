from dataclasses import replace

import pytest
from scipy import stats

from sightloom.metrics import more_often
from sightloom.promotion.canary import CanaryPlan, CanaryStep
from sightloom.promotion.judge import judge
from sightloom.promotion.states import ModelState, Trial
from sightloom.serving.observe import Row

THEN, LATER = "2026-01-01T00:00:00+00:00", "2026-01-01T00:05:00+00:00"
STEP = CanaryStep(bp=100)
TRIAL = Trial(plan=(STEP, STEP), at=THEN, number=7)
ON_TRIAL = ModelState(stages={1: "champion", 2: "challenger"}, trial=TRIAL)
GOOD = Row("m", 1, 7, False, requests=1000, ttft_s=[0.1] * 100, tpot_s=[0.01] * 100)


def seen(**counts: object) -> Row:
    fields: dict[str, object] = {"requests": 60, "ttft_s": [0.1] * 60, "tpot_s": [0.01] * 60}
    return Row("m", 2, 7, False, **{**fields, **counts})  # type: ignore[arg-type]


def kind(challenger: Row, now: str = LATER, failure: str = "", state: ModelState = ON_TRIAL) -> str:
    found = judge(state, challenger, GOOD, failure, now)
    return "wait" if found is None else found.kind


def test_a_good_challenger_steps_when_it_was_seen_enough_and_long_enough() -> None:
    assert kind(seen()) == "step"
    assert kind(seen(requests=49)) == "wait"
    assert kind(seen(), now="2026-01-01T00:04:59+00:00") == "wait"
    assert judge(ModelState(stages={1: "champion"}), seen(), GOOD, "", LATER) is None


def test_at_the_end_of_its_plan_it_is_promoted_unless_a_person_shall_do_it() -> None:
    done = replace(ON_TRIAL, trial=replace(TRIAL, step=2))
    assert kind(seen(requests=0), state=done) == "promote"
    assert kind(seen(), state=replace(done, trial=replace(TRIAL, step=2, auto=False))) == "wait"


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (seen(errors=6), "errors"),
        (seen(empty=6), "empty"),
        (seen(malformed=6), "malformed"),
        (seen(ttft_s=[0.16] * 60), "TTFT"),
        (seen(tpot_s=[0.016] * 60), "TPOT"),
    ],
)
def test_a_bad_challenger_is_taken_back_with_the_figures_of_both(row: Row, named: str) -> None:
    found = judge(ON_TRIAL, row, GOOD, "", LATER)
    assert found is not None
    assert found.kind == "abort"
    assert named in found.reason or "errors in" in found.reason
    assert found.evidence["challenger"].startswith("60 requests")
    assert found.evidence["champion"].startswith("1000 requests")


def test_what_is_no_worse_than_the_champion_or_too_little_to_tell_does_not_abort() -> None:
    weak = replace_row(GOOD, malformed=300)
    found = judge(ON_TRIAL, seen(malformed=18), weak, "", LATER)
    assert found is not None and found.kind == "step"
    assert kind(seen(empty=1)) == "step"
    assert kind(seen(ttft_s=[9.0] * 49)) == "step", "49 latencies are too few to compare"
    assert kind(seen(ttft_s=[0.149] * 60)) == "step"


def test_many_errors_abort_before_the_time_is_up_and_few_requests_do_not() -> None:
    assert kind(seen(requests=20, errors=2), now=THEN) == "abort"
    assert kind(seen(requests=20, errors=1), now=THEN) == "wait"
    assert kind(seen(requests=19, errors=19), now=THEN) == "wait"


def test_an_app_that_does_not_come_up_aborts_and_says_why() -> None:
    found = judge(ON_TRIAL, seen(requests=0), GOOD, "file 'x' is not the one", THEN)
    assert found is not None and (found.kind, "file 'x'" in found.reason) == ("abort", True)


@pytest.mark.parametrize("counts", [(5, 60, 1, 1000), (0, 50, 3, 900), (50, 50, 0, 50), (3, 40, 30, 400)])
def test_the_test_is_fishers(counts: tuple[int, int, int, int]) -> None:
    hits, of, base_hits, base_of = counts
    table = [[hits, of - hits], [base_hits, base_of - base_hits]]
    assert more_often(*counts) == pytest.approx(stats.fisher_exact(table, alternative="greater").pvalue, rel=1e-9)


def test_a_plan_is_read_strictly_and_the_usual_one_is_that_of_the_design() -> None:
    usual = CanaryPlan()
    assert [step.words for step in usual.steps] == ["shadow 20 %", "1 %", "10 %", "50 %"]
    for wrong in ({}, {"bp": 100, "shadow": 0.1}, {"bp": 0}, {"bp": 10_001}):
        with pytest.raises(ValueError):
            CanaryStep.model_validate(wrong)


def replace_row(row: Row, **counts: int) -> Row:
    return replace(row, **counts)  # type: ignore[arg-type]
