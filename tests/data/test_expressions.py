from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightloom.data.select.expressions import compile_expression
from sightloom.errors import UserMistake

TABLE = pa.table(
    {
        "width": [100, 300, None],
        "height": [400, 200, 50],
        "lang": ["en", "de", None],
        "score": [0.1, 0.5, 0.3],
        "text": ["a cat", "IMG_1.jpg", ""],
    }
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("min(width, height) >= 200", [False, True, False]),
        ('lang == "en"', [True, False, False]),
        ("lang not in ['en']", [False, True, False]),
        ("not (lang in ['en'])", [False, True, False]),
        ("is_null(width) or width > 200", [False, True, True]),
        ("100 <= width < 300 and score < 0.2", [True, False, False]),
        ("coalesce(width, 0) == 0", [False, False, True]),
        ("len(text) > 0 and not matches(text, '[.]jpg$')", [True, False, False]),
        ("score >= quantile(score, 0.5)", [False, True, True]),
        ("z(score) > 0.5", [False, True, False]),
        ("width / height > 1", [False, True, False]),
        ("abs(-score) == score", [True, True, True]),
        ("lower(text) == 'img_1.jpg'", [False, True, False]),
    ],
)
def test_an_expression_means_what_it_says_and_null_is_false(text: str, expected: list[bool]) -> None:
    assert compile_expression(text, TABLE.column_names).mask(TABLE).to_pylist() == expected


@pytest.mark.parametrize(
    "text",
    [
        "width.real",
        "(lambda: 1)()",
        "__import__('os')",
        "[width][0]",
        "width if width else 1",
        "f'{width}'",
        "(" * 100_000 + "1" + ")" * 100_000,
        "-" * 500 + "width",
        "width :=",
        "matches(text, '(')",
        "quantile(score, 2)",
        "matches(text, lang)",
        "width ** 100",
        "",
    ],
)
def test_what_is_not_on_the_white_list_is_refused(text: str) -> None:
    with pytest.raises(UserMistake):
        compile_expression(text, TABLE.column_names)


def test_a_missing_column_is_named_with_the_nearest_and_the_ones_there() -> None:
    with pytest.raises(UserMistake) as caught:
        compile_expression("widht > 1", TABLE.column_names)
    assert "'widht'" in caught.value.message
    assert "'width'" in caught.value.hint
    assert "score" in caught.value.hint


def test_types_that_do_not_fit_are_a_mistake_not_a_crash() -> None:
    with pytest.raises(UserMistake, match="cannot be computed"):
        compile_expression("lang > 3", TABLE.column_names)(TABLE)
    with pytest.raises(UserMistake, match="not true or false"):
        compile_expression("width + 1", TABLE.column_names).mask(TABLE)


def test_the_needed_columns_are_listed() -> None:
    assert compile_expression("min(width, height) > 1 and lang == 'en'", TABLE.column_names).columns == (
        "height",
        "lang",
        "width",
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(-1e6, 1e6))
def test_a_threshold_equals_pythons_own_comparison(values: list[float], threshold: float) -> None:
    table = pa.table({"x": values})
    found = compile_expression(f"x >= {threshold!r}", ["x"]).mask(table).to_pylist()
    assert found == [value >= threshold for value in values]


COLUMN = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(-50, 50)),
        st.one_of(st.none(), st.floats(-50, 50)),
        st.one_of(st.none(), st.sampled_from(["a", "A b", "", "img.jpg", "zß"])),
    ),
    min_size=1,
    max_size=25,
)


@pytest.mark.parametrize(
    ("ours", "sql"),
    [
        ("a > 3 and x <= 1.5", "a > 3 and x <= 1.5"),
        ("not (a > 3 or x < 0)", "not (a > 3 or x < 0)"),
        ("a in [1, 2, 3] or t not in ['a', '']", "a in (1, 2, 3) or t not in ('a', '')"),
        ("min(a, x) > 0 or max(a, x) < -5", "a + x is not null and ((a > 0 and x > 0) or (a < -5 and x < -5))"),
        ("abs(a) * 2 - 1 >= a + 3", "abs(a) * 2 - 1 >= a + 3"),
        ("lower(t) == 'a b' or len(t) == 2", "lower(t) = 'a b' or length(t) = 2"),
        ("coalesce(a, 7) == 7 and not is_null(x)", "coalesce(a, 7) = 7 and x is not null"),
        ("matches(t, '[.]jpg$|^A')", "regexp_matches(t, '[.]jpg$|^A')"),
        ("x >= quantile(x, 0.25)", "x >= (select quantile_cont(x, 0.25) from rows)"),
    ],
)
@settings(deadline=None, max_examples=15)
@given(rows=COLUMN)
def test_a_rule_answers_as_the_same_query_in_duckdb(ours: str, sql: str, rows: list[tuple[Any, Any, Any]]) -> None:
    a, x, t = zip(*rows, strict=True)
    table = pa.table(
        {
            "n": list(range(len(rows))),
            "a": pa.array(a, pa.int64()),
            "x": pa.array(x, pa.float64()),
            "t": pa.array(t, pa.string()),
        }
    )
    found = compile_expression(ours, ["a", "x", "t"]).mask(table).to_pylist()
    database = duckdb.connect()
    database.register("rows", table)
    query = f"select coalesce({sql}, false) from rows order by n"
    assert found == [answer for (answer,) in database.execute(query).fetchall()]
