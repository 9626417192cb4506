from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightloom.errors import UserMistake
from sightloom.evaluation.answerers import Prediction
from sightloom.evaluation.chance import chance_level
from sightloom.evaluation.examples import Example
from sightloom.evaluation.intervals import grouped_interval
from sightloom.evaluation.measures import compare
from sightloom.evaluation.result import Statistics, read_rows, save
from sightloom.evaluation.runner import evaluate
from sightloom.evaluation.scoring import is_right
from sightloom.metrics import wilson
from sightloom.records import Answer

from .conftest import COLOURS, example, row

FAST = Statistics(resamples=500)


class Says:
    """Answers each example by a function of it."""

    def __init__(self, words: Callable[[Example], str | None]) -> None:
        self._words = words

    def answer(
        self, examples: Sequence[Example], thinking: bool | None, max_new_tokens: int, done: Callable[[int], None]
    ) -> list[Prediction]:
        done(len(examples))
        return [
            Prediction(
                e.id, words or "", None, "off" if words else "malformed", "stop", 1, 1.0, None if words else "down"
            )
            for e in examples
            for words in [self._words(e)]
        ]


def some(n: int = 40) -> list[Example]:
    return [
        example(f"e{i}", COLOURS[i % 4], domain="art" if i % 2 else "ui", group=f"g{i // 2}", needs_steps=i % 4 == 0)
        for i in range(n)
    ]


def test_all_right_is_one_with_an_interval_that_still_has_a_width() -> None:
    result = evaluate(some(), Says(lambda e: str(e.answer.value)), statistics=FAST)
    shown = result.to_json()
    assert shown["overall"] == 1.0
    assert set(shown["domains"]) == {"art", "ui"}
    for measure in shown["domains"].values():
        assert {"metric", "value", "n", "ci"} <= set(measure)
        assert (measure["metric"], measure["value"], measure["n"]) == ("accuracy", 1.0, 20)
        assert measure["ci"][0] < 1.0 == measure["ci"][1]
    assert shown["needs_steps"]["n"] == 10
    assert shown["format"]["well_formed"]["value"] == 1.0


def test_what_could_not_be_answered_counts_as_wrong_and_is_listed() -> None:
    result = evaluate(some(), Says(lambda e: None if e.id == "e3" else str(e.answer.value)), statistics=FAST)
    assert result.errors == 1
    assert result.overall.value == pytest.approx(39 / 40)
    assert [row.error for row in result.rows if not row.right] == ["down"]
    assert result.format["well_formed"].value == pytest.approx(39 / 40)


def test_a_constant_answer_is_exactly_at_chance() -> None:
    examples = [example(f"e{i}", COLOURS[0] if i < 7 else COLOURS[i % 4]) for i in range(20)]
    result = evaluate(examples, Says(lambda e: COLOURS[0]), statistics=FAST)
    assert result.overall.value == result.chance_constant
    assert result.chance_uniform == 0.25


@pytest.mark.parametrize(
    ("answer", "others", "uniform"),
    [
        (Answer("point", (0, 0, 500, 200)), [], 0.1),
        (Answer("box", (0, 0, 500, 200)), [], None),
        (Answer("number", 3), [Answer("number", 4), Answer("number", 5)], 1 / 3),
        (Answer("text", "a"), [Answer("text", "b")], 1 / 2),
    ],
)
def test_chance_of_each_kind(answer: Answer, others: list[Answer], uniform: float | None) -> None:
    answers = [answer, *others]
    base = example("x")
    examples = [
        Example(f"e{i}", "s", "art", "t", None, base.conversation, its, f"e{i}") for i, its in enumerate(answers)
    ]
    found = chance_level(examples)
    assert found.uniform == (pytest.approx(uniform) if uniform is not None else None)
    assert found.constant == pytest.approx(1 / len(answers))


def test_right_means_the_full_reward_but_for_boxes_and_bare_points() -> None:
    assert is_right("[0, 0, 100, 100]", Answer("box", (0, 0, 100, 100)))
    assert not is_right("[0, 0, 100, 40]", Answer("box", (0, 0, 100, 100)))
    assert is_right("[30, 30]", Answer("point", (0, 0)))
    assert not is_right("[60, 60]", Answer("point", (0, 0)))
    assert not is_right("colour", Answer("text", "colours"))
    assert not is_right("", Answer("text", "x"))


def test_rows_come_back_from_disk(tmp_path: Path) -> None:
    result = evaluate(some(), Says(lambda e: "red"), statistics=FAST)
    save(result, str(tmp_path))
    assert read_rows(tmp_path) == result.rows
    with pytest.raises(UserMistake):
        read_rows(tmp_path / "gone")


def test_a_suite_without_examples_is_refused() -> None:
    with pytest.raises(UserMistake, match="no example"):
        evaluate([], Says(lambda e: "red"))


def test_questions_that_share_a_picture_widen_the_interval() -> None:
    values = [float(i // 4 % 2) for i in range(200)]
    alone = grouped_interval(values, [str(i) for i in range(200)], 0.95, 2000, 0)
    together = grouped_interval(values, [str(i // 4) for i in range(200)], 0.95, 2000, 0)
    assert together[1] - together[0] > 1.7 * (alone[1] - alone[0])
    interval = wilson(100, 200, 0.95)
    assert alone == (interval.low, interval.high)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), min_size=1, max_size=30))
def test_bounds_of_a_difference_enclose_it_and_turn_with_its_sign(marks: list[tuple[bool, bool, int]]) -> None:
    left = {f"e{i}": row(f"e{i}", a, group=str(g)) for i, (a, _, g) in enumerate(marks)}
    right = {f"e{i}": row(f"e{i}", b, group=str(g)) for i, (_, b, g) in enumerate(marks)}
    statistics = Statistics(resamples=300, seed=3)
    compared = compare("accuracy", list(left.values()), right, 0.95, statistics)
    turned = compare("accuracy", list(right.values()), left, 0.95, statistics)
    assert compared is not None and turned is not None
    found, other = compared.difference, turned.difference
    assert found.lower <= found.value + 1e-12
    assert found.value <= found.upper + 1e-12
    assert (other.value, other.lower, other.upper) == pytest.approx((-found.value, -found.upper, -found.lower))
    assert compared.p_value == turned.p_value
