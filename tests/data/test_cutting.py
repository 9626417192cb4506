import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightloom.data.shards.cutting import assign
from sightloom.data.shards.series import safe_name, series_of
from sightloom.errors import UserMistake

BOUNDS = st.lists(st.integers(1, 100), min_size=1, max_size=60)


@settings(max_examples=200)
@given(BOUNDS, st.integers(100, 400), st.integers(1, 20), st.integers(1, 4), st.booleans())
def test_no_shard_is_over_either_cap_or_empty_and_order_is_kept(
    bounds: list[int], cap: int, most: int, multiple: int, by_bytes: bool
) -> None:
    sizes = np.array(bounds)
    try:
        shard = assign(sizes, sizes if by_bytes else np.ones_like(sizes), cap, most, multiple)
    except UserMistake:
        finest = np.arange(len(bounds)) // -(-len(bounds) // multiple)
        assert multiple > 1 and (len(bounds) < multiple or np.bincount(finest).max() > 1)
        return
    assert (np.diff(shard) >= 0).all() and set(shard.tolist()) == set(range(shard.max() + 1))
    assert (shard.max() + 1) % multiple == 0
    for number in set(shard.tolist()):
        chosen = sizes[shard == number]
        assert chosen.sum() <= cap and len(chosen) <= most


@given(st.integers(1, 500), st.integers(1, 40))
def test_shards_of_equal_samples_differ_by_one(number: int, most: int) -> None:
    counts = np.bincount(assign(np.ones(number, np.int64), np.ones(number, np.int64), number, most))
    assert counts.max() - counts.min() <= 1 and len(counts) == -(-number // most)


def test_shards_of_equal_bytes_are_within_one_percent() -> None:
    sizes = np.sort(np.random.default_rng(0).integers(500, 60_000, 20_000))  # small pictures first: the worst order
    sums = np.bincount(assign(sizes, sizes, 40_000_000, 20_000, 8), sizes)
    assert len(sums) == 16 and sums.max() <= 40_000_000 and sums.min() >= 0.99 * sums.max()


def test_a_dense_stretch_needs_few_steps_and_still_holds_the_caps() -> None:
    sizes = np.concatenate([np.ones(100_000, np.int64), np.full(1000, 1_000_000)])
    counts = np.bincount(assign(sizes, sizes, 10**9, 1000))
    assert counts.max() <= 1000


def test_too_few_samples_for_the_multiple_is_a_mistake() -> None:
    three = np.ones(3, np.int64)
    with pytest.raises(UserMistake, match="the 3 samples of 'art' cannot fill"):
        assign(three, three, 100, 100, 8, "art")


@given(st.text(max_size=30))
def test_names_of_series_are_safe_and_stay_what_they_are(value: str) -> None:
    name = safe_name(value)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and safe_name(name) == name
    assert not name.startswith("-") and not name.endswith("-") and "--" not in name


def test_values_become_series_and_clashes_are_mistakes() -> None:
    def named(values: list[object]) -> list[str]:
        found: list[str] = series_of(pa.table({"x": pa.array(values)}), "x").to_pylist()
        return found

    assert named(["Natural", "a/b c", None, "Natural"]) == ["natural", "a-b-c", "none", "natural"]
    assert named([1, -2, None]) == ["1", "2", "none"] and named([True]) == ["true"]
    with pytest.raises(UserMistake, match="'A b' and 'a-b' of 'x' are both named 'a-b'"):
        named(["A b", "a-b"])
    with pytest.raises(UserMistake, match="makes no name of a series"):
        named(["文書"])
    with pytest.raises(UserMistake, match="has 1001 values"):
        named(list(range(1001)))
    assert series_of(pa.table({"x": [1]}), None).to_pylist() == [None]
