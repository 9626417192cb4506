from sightloom.evaluation.result import Row
from sightloom.training.curriculum import Rule
from sightloom.training.forgetting import differences, measured_domains, trained
from sightloom.training.gates import decide, missing_at_init, needs_pairs

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


def rows(right: list[bool], domain: str = "ui") -> list[Row]:
    common = {"suite": "s", "domain": domain, "task": "t", "needs_steps": False, "image_sha256": "", "prompt": "?",
              "expected": "x", "prediction": "x", "reasoning": None, "thinking": "off", "well_formed": True,
              "tokens": 1, "latency_ms": 1.0, "finish": "stop", "error": None,
              "kind": "text", "scores": {}, "source": ""}  # fmt: skip
    return [Row(id=f"{domain}{n}", group=f"{domain}{n}", right=value, **common) for n, value in enumerate(right)]  # type: ignore[arg-type]


def test_what_was_kept_is_asked_of_the_lower_bound_on_the_same_questions() -> None:
    before = rows([True] * 60 + [False] * 40)
    after = rows([True] * 55 + [False] * 5 + [True] * 5 + [False] * 35)  # as many right, ten others
    paired = differences(after, before)
    assert paired["eval/ui/accuracy"].value == 0 and -0.08 < paired["eval/ui/accuracy"].lower < -0.03
    metrics = {"eval/ui/accuracy": 0.6}
    rule = [Rule(metric="eval/*/accuracy", not_below="init", margin=0.03)]
    (point,) = decide(rule, metrics, metrics)
    (bound,) = decide(rule, metrics, metrics, paired)
    assert point.passed and not bound.passed and "+0 against the start, with 95 % at least -0.0" in bound.text
    assert decide([Rule(metric="eval/*/accuracy", not_below="init", margin=0.1)], metrics, metrics, paired)[0].passed
    assert needs_pairs(rule) and not needs_pairs([Rule(metric="eval/ui/accuracy", min=0.1)])


def test_only_questions_that_both_were_asked_are_compared() -> None:
    paired = differences(rows([True, True, False]), rows([True, False]))
    assert paired["eval/ui/accuracy"].value == 0.5 and differences(rows([True]), rows([True], "art")) == {}


def test_a_row_of_the_matrix_holds_each_domain_after_and_its_change() -> None:
    assert measured_domains(METRICS | {"eval/all/caption_loss": 1.0}) == ["art", "ui"]
    row = trained("specialize", ["ui"], METRICS, {"eval/ui/accuracy": 0.4}, ["art", "ui"])
    assert row.accuracy == {"ui": 0.5, "art": 0.8} and row.change == {"ui": 0.5 - 0.4}
