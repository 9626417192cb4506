import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from sightloom.evaluation.measures import compare, counted, imported_means, measure, measures
from sightloom.evaluation.result import Row, Statistics

from .conftest import row

FAST = Statistics(resamples=300)


def yes_no(id: str, truth: str, right: bool) -> Row:
    return dataclasses.replace(row(id, right), kind="yes_no", expected=truth)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_f1_and_yes_rate_are_scikit_learns(pairs: list[tuple[bool, bool]]) -> None:
    truth, said = [a for a, _ in pairs], [b for _, b in pairs]
    rows = [yes_no(f"e{i}", "yes" if a else "no", a == b) for i, (a, b) in enumerate(pairs)]
    found, rate = measure("f1", rows, FAST), measure("yes_rate", rows, FAST)
    assert found is not None and rate is not None
    assert found.value == pytest.approx(f1_score(truth, said, zero_division=0.0))
    assert rate.value == pytest.approx(sum(said) / len(said))
    assert found.ci[0] - 1e-12 <= found.value <= found.ci[1] + 1e-12


def test_a_metric_is_about_rows_of_its_kind_alone() -> None:
    text = dataclasses.replace(row("t", False), kind="text", scores={"reward": 0.75, "relaxed": 0.0})
    box = dataclasses.replace(row("b", True), kind="box", scores={"reward": 0.6, "relaxed": 1.0})
    caption = dataclasses.replace(row("c", False), kind="caption", scores={"cider": 3.0})
    rows = [row("e", True), text, box, caption]
    found = {name: (its.value, its.n) for name, its in measures(rows, FAST).items()}
    assert found == {
        "accuracy": (pytest.approx(2 / 3), 3),
        "relaxed_accuracy": (pytest.approx(2 / 3), 3),
        "score": (pytest.approx((1 + 0.75 + 0.6) / 3), 3),
        "anls": (0.75, 1),
        "iou": (0.6, 1),
        "cider": (3.0, 1),
    }
    assert measure("point_in_box", rows, FAST) is None
    assert [its.id for its in counted("anls", rows)] == ["t"]


def test_a_difference_of_f1_is_drawn_on_the_same_pictures() -> None:
    rows = [yes_no(f"e{i}", "yes" if i % 2 else "no", i % 10 != 0) for i in range(200)]
    worse = {its.id: yes_no(its.id, its.expected, i % 3 != 0) for i, its in enumerate(rows)}
    compared = compare("f1", rows, worse, 0.95, FAST)
    assert compared is not None
    parts = [measure("f1", its, FAST) for its in (rows, list(worse.values()))]
    assert parts[0] is not None and parts[1] is not None
    assert compared.difference.value == pytest.approx(parts[0].value - parts[1].value)
    assert 0 < compared.difference.lower < compared.difference.value < compared.difference.upper
    assert compared.p_value < 0.01
    same = compare("f1", rows, {its.id: its for its in rows}, 0.95, FAST)
    assert same is not None and same.p_value == 1.0 and same.difference.lower < 0 < same.difference.upper


def test_another_tools_scores_keep_their_own_scale() -> None:
    rows = [
        dataclasses.replace(row(f"m{i}", False), scores={"mme": 100.0 * i}, source="lmms_eval 0.7") for i in range(5)
    ]
    found = imported_means(rows, FAST)
    assert found["mme"].value == 200.0
    assert found["mme"].ci[0] < 200.0 < found["mme"].ci[1]
