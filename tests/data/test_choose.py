import hashlib
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightloom.data.dedup.duplicates import Duplicates
from sightloom.data.select.choose import choose, compile_selection
from sightloom.data.select.config import SelectConfig
from sightloom.data.select.decision import Decision
from sightloom.data.select.rows import Rows
from sightloom.data.select.types import check_types, require_number
from sightloom.errors import UserMistake

NONE = Duplicates(np.zeros(0, np.int64), (), np.zeros(0, np.int64))


def table_of(scores: list[float | None], **columns: list[Any]) -> pa.Table:
    size = len(scores)
    given = {
        "uid": pa.array([hashlib.sha256(str(n).encode()).digest()[:16] for n in range(size)], pa.binary(16)),
        "status": pa.array(columns.pop("status", ["ok"] * size)),
        "kind": pa.array(columns.pop("kind", ["pair"] * size)),
        "domain": pa.array(columns.pop("domain", ["art"] * size)),
        "score": pa.array(scores, pa.float64()),
    }
    return pa.table({**given, **{name: pa.array(values) for name, values in columns.items()}})


def run(
    table: pa.Table, config: dict[str, Any], duplicates: Duplicates = NONE, batch: int = 7, border: int = 100
) -> tuple[Rows, Decision]:
    selection = compile_selection(SelectConfig.model_validate(config), table.column_names)
    rows = Rows.of(table, selection.derive, batch)
    return rows, choose(rows, duplicates, selection, border_rows=border)


def test_each_row_that_goes_has_the_first_reason_and_a_bit_for_every_false_rule() -> None:
    table = table_of(
        [0.9, 0.8, 0.7, 0.6, 0.5, None],
        status=["ok", "truncated_image", "ok", "ok", "internal_error", "ok"],
        width=[100, 100, 10, 10, 10, 100],
        lang=["en", "en", "de", "en", "en", None],
    )
    duplicates = Duplicates(np.array([3]), ("dup_image",), np.array([0]))
    _, decision = run(table, {"rules": {"small": "width >= 50", "not_english": "lang == 'en'"}}, duplicates)
    assert decision.reason.tolist() == [None, "truncated_image", "small", "dup_image", "internal_error", "not_english"]
    assert decision.fails.tolist() == [0, 0, 3, 1, 0, 2]
    assert decision.dropped == {"dup_image": 1, "not_english": 1, "small": 1, "truncated_image": 1}
    assert decision.failed == 1 and decision.alone == {"small": 2, "not_english": 2}
    assert len(table) == decision.keep.sum() + sum(decision.dropped.values()) + decision.failed


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.one_of(st.none(), st.just(math.nan), st.floats(-1, 1), st.just(0.5)), st.integers(0, 2)),
             min_size=1, max_size=40),
    st.floats(0, 1),
    st.booleans(),
    st.booleans(),
    st.integers(0, 6),
)  # fmt: skip
def test_a_top_fraction_is_exact_with_ties_by_uid(
    rows: list[tuple[Any, int]], fraction: float, per: bool, narrow: bool, border: int
) -> None:
    rows = [(float(np.float32(s)) if narrow and s is not None else s, group) for s, group in rows]
    scores, groups = [score for score, _ in rows], [f"g{group}" for _, group in rows]
    table = table_of(scores, domain=groups)
    if narrow:
        place = table.column_names.index("score")
        table = table.set_column(place, "score", table.column("score").cast(pa.float32()))
    top = {"by": "score", "fraction": fraction} | ({"per": "domain"} if per else {})
    _, decision = run(table, {"top": [top]}, border=border)
    uids = table.column("uid").to_pylist()
    expected: set[int] = set()
    for group in set(groups) if per else {None}:
        members = [n for n in range(len(rows)) if group is None or groups[n] == group]
        scored = [n for n in members if scores[n] is not None and not math.isnan(scores[n])]
        scored.sort(key=lambda n: (-scores[n], uids[n]))
        expected |= set(scored[: math.floor(fraction * len(members) + 0.5)])
    assert set(np.flatnonzero(decision.keep).tolist()) == expected


def test_a_top_of_pairs_leaves_dialogues_as_they_are() -> None:
    table = table_of([0.9, 0.1, None, None], kind=["pair", "pair", "conversation", "conversation"])
    _, decision = run(table, {"top": [{"by": "score", "fraction": 0.5, "kinds": ["pair"]}]})
    assert decision.reason.tolist() == [None, "top_score", None, None]
    assert [(cut.rows, cut.kept, cut.threshold) for cut in decision.cuts] == [(2, 1, 0.9)]


def test_quotas_are_given_by_group_and_a_group_without_one_goes() -> None:
    table = table_of([0.1, 0.2, 0.3, 0.4], domain=["a", "a", "b", "c"])
    _, decision = run(table, {"top": [{"by": "score", "count": {"a": 1, "b": 5}, "per": "domain"}]})
    assert decision.keep.tolist() == [False, True, True, False]


def test_a_fraction_of_the_input_counts_what_was_dropped_before() -> None:
    table = table_of([0.1, 0.2, 0.3, 0.4], width=[1, 1, 9, 9])
    config = {"rules": {"small": "width > 5"}, "top": [{"by": "score", "fraction": 0.25, "of": "input"}]}
    assert run(table, config)[1].keep.tolist() == [False, False, False, True]


def test_a_derived_score_can_be_used_and_is_returned() -> None:
    table = table_of([0.2, 0.4, None], status=["ok", "ok", "empty_text"], width=[300, 100, 1])
    config = {"derive": {"quality": "score * 10 - width / 100"}, "top": [{"by": "quality", "count": 1}]}
    rows, decision = run(table, config, batch=2)
    found = [value for part in rows.batches(["quality"]) for value in part.table.column("quality").to_pylist()]
    assert found == [-1.0, 3.0, None]
    assert decision.keep.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rules": {"nsfw": "nsfw_unsafe < 0.5"}}, "rule 'nsfw'.*'nsfw_unsafe'"),
        ({"top": [{"by": "clip_x", "fraction": 0.5}]}, "clip_x"),
        ({"derive": {"score": "1 + 1"}}, "hides a column"),
    ],
)
def test_a_selection_that_cannot_work_is_refused_before_anything_is_scored(config: Any, words: str) -> None:
    with pytest.raises(UserMistake, match=words):
        run(table_of([0.1]), config)


def test_equal_texts_are_counted_among_usable_rows_of_a_kind() -> None:
    table = table_of([0.1] * 5, status=["ok", "ok", "ok", "empty_text", "ok"], text_hash=[7, 7, 8, 7, 7],
                     kind=["pair", "pair", "pair", "pair", "conversation"])  # fmt: skip
    hashes = pa.array([7, 7, 8, 7, 7], pa.uint64())
    table = table.set_column(table.column_names.index("text_hash"), "text_hash", hashes)
    parts = Rows.of(table, {}, 2).batches(["text_count"])
    assert [n for part in parts for n in part.table.column("text_count").to_pylist()] == [2, 2, 1, None, 1]


@pytest.mark.parametrize(
    ("select", "words"),
    [
        ({"rules": {"a": "domain > 3"}}, "rule 'a': `domain > 3` cannot be computed"),
        ({"rules": {"a": "width + height"}}, "rule 'a': `width [+] height` gives"),
        ({"derive": {"q": "z(domain)"}}, "select.derive 'q': `z.domain.` cannot be computed"),
        ({"top": [{"by": "domain", "fraction": 0.5}]}, "select.top.0.by: 'domain' holds no numbers"),
        ({"derive": {"q": "lower(domain)"}, "sample": {"by": "q", "count": 1, "temperature": 1}}, "select.sample.by"),
    ],
)
def test_what_does_not_fit_the_types_of_columns_is_told_before_anything_is_scored(
    select: dict[str, Any], words: str
) -> None:
    types = {"domain": "string", "width": "int32", "height": "int32", "phash": "fixed_size_binary[8]"}
    with pytest.raises(UserMistake, match=words):
        check_types(compile_selection(SelectConfig.model_validate(select), list(types)), types)


def test_what_fits_is_not_refused() -> None:
    types = {"domain": "string", "width": "int32", "alpha": "bool", "score": "float"}
    select = {
        "rules": {
            "a": "quantile(score, 0.1) < score",
            "b": "domain in ['art'] and not alpha",
            "c": "matches(domain, 'a') or alpha",
            "d": "width / 2 > 3 or is_null(score)",
            "e": "coalesce(q, 0.0) > min(width, 3)",
        },
        "derive": {"q": "0.5 * z(score) + abs(width)"},
        "top": [{"by": "q", "fraction": 0.5, "per": "domain"}, {"by": "width", "count": 3}],
    }
    check_types(compile_selection(SelectConfig.model_validate(select), list(types)), types)
    with pytest.raises(UserMistake, match=r"dedup\.prefer: 'domain' holds no numbers"):
        require_number("dedup.prefer", "domain", "string")
