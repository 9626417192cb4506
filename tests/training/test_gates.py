from sightloom.training.curriculum import Rule
from sightloom.training.gates import decide, missing_at_init

METRICS = {"eval/all/accuracy": 0.6, "eval/ui/accuracy": 0.5, "eval/art/accuracy": 0.8, "eval/steps/accuracy": 0.1}
INIT = {"eval/all/accuracy": 0.55, "eval/ui/accuracy": 0.4, "eval/art/accuracy": 0.9, "eval/steps/accuracy": 0.9}


def passed(**rule: object) -> list[bool]:
    return [verdict.passed for verdict in decide([Rule.model_validate(rule)], METRICS, INIT)]


def test_bounds_and_comparisons_with_the_start_are_applied() -> None:
    assert passed(metric="eval/all/accuracy", min=0.6) == [True]
    assert passed(metric="eval/all/accuracy", max=0.5) == [False]
    assert passed(metric="eval/all/accuracy", above="init", by=0.06) == [False]
    assert passed(metric="eval/all/accuracy", above="init", by=0.05) == [True]
    assert passed(metric="eval/ui/accuracy", below="init") == [False]


def test_a_star_stands_for_every_domain_and_for_nothing_else() -> None:
    assert passed(metric="eval/*/accuracy", not_below="init", margin=0.03) == [True, False]
    assert passed(metric="eval/*/accuracy", not_below="init", margin=0.1) == [True, True]


def test_a_metric_that_was_not_measured_does_not_pass() -> None:
    assert passed(metric="eval/science/accuracy", min=0.0) == [False]
    assert missing_at_init([Rule(metric="eval/science/accuracy", above="init")], INIT)
    assert not missing_at_init([Rule(metric="eval/all/accuracy", above="init")], INIT)
