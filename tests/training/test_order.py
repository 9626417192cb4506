import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightloom.training.order import Order, OrderSource, epoch_order, given_after


def source(name: str, weight: float, size: int, per_shard: int = 7, start: int = 0) -> OrderSource:
    rows = np.arange(start, start + size, dtype=np.int64)
    return OrderSource(name, weight, rows, rows // per_shard)


@given(st.integers(1, 300), st.integers(0, 2**31), st.integers(0, 5))
def test_an_epoch_visits_every_row_once(size: int, seed: int, epoch: int) -> None:
    order = epoch_order(source("a", 1.0, size), seed, 0, epoch)
    assert sorted(order.tolist()) == list(range(size))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(1, 200), st.integers(20, 64))
def test_the_mixture_is_within_one_sample_and_never_goes_back(parts: list[int], windows: int, window: int) -> None:
    weights = {f"s{number}": part / sum(parts) for number, part in enumerate(parts)}
    if min(weights.values()) * window < 1:
        return
    before, after = given_after(weights, window, windows - 1), given_after(weights, window, windows)
    assert sum(after.values()) == window * windows
    for name, weight in weights.items():
        assert abs(after[name] - weight * window * windows) <= 1
        assert after[name] >= before[name]


def test_windows_follow_the_endless_stream_of_epochs() -> None:
    order = Order([source("a", 1.0, 10)], seed=3, window=7)
    stream = np.concatenate([order.window(index) for index in range(10)])
    assert sorted(np.bincount(stream, minlength=10).tolist()) == [7] * 10


def test_a_window_is_the_same_asked_for_alone_or_in_a_row() -> None:
    sources = [source("a", 0.75, 40), source("b", 0.25, 11, start=100)]
    walked = Order(sources, seed=5, window=16)
    expected = [walked.window(index).tolist() for index in range(6)][5]
    assert Order(list(reversed(sources)), seed=5, window=16).window(5).tolist() == expected
    assert Order(sources, seed=6, window=16).window(5).tolist() != expected


def test_a_source_too_light_for_the_window_or_empty_is_refused() -> None:
    with pytest.raises(ValueError, match="below 1"):
        Order([source("a", 0.99, 5), source("b", 0.01, 5)], seed=1, window=50)
    with pytest.raises(ValueError, match="no sample"):
        Order([source("a", 1.0, 0)], seed=1, window=50)
