import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sightloom.training.order import Order, OrderSource
from sightloom.training.packing import Limits, StepPlan, pack_window, share_of

LIMITS = Limits(max_tokens=100, max_patches=64)


@given(st.lists(st.tuples(st.integers(1, 120), st.integers(0, 80)), max_size=200))
def test_bins_hold_every_document_that_fits_once_and_none_is_over_a_limit(documents: list[tuple[int, int]]) -> None:
    tokens, patches = [t for t, _ in documents], [p for _, p in documents]
    bins = pack_window(tokens, patches, LIMITS)
    fits = [i for i, (t, p) in enumerate(documents) if t <= 100 and p <= 64]
    assert sorted(i for members in bins for i in members) == fits
    for members in bins:
        assert sum(tokens[i] for i in members) <= 100
        assert sum(patches[i] for i in members) <= 64


def test_packs_are_well_filled_where_patches_do_not_bind() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 2000).tolist()
    bins = pack_window(lengths, [0] * 2000, LIMITS)
    assert sum(lengths) / (100 * len(bins)) > 0.95


def plan() -> StepPlan:
    rows = np.arange(50, dtype=np.int64)
    order = Order([OrderSource("a", 1.0, rows, rows // 10)], seed=1, window=20)
    lengths = np.random.default_rng(1).integers(10, 60, 50)
    return StepPlan(order, lengths, np.full(50, 4), LIMITS, packs=3, seed=1)


def test_a_restored_plan_goes_on_with_the_same_steps() -> None:
    walked = plan()
    for _ in range(7):
        walked.next_step()
    state = walked.state()
    expected = [[rows.tolist() for rows in walked.next_step()] for _ in range(5)]
    again = plan()
    again.restore(state)
    assert [[rows.tolist() for rows in again.next_step()] for _ in range(5)] == expected


def test_a_step_has_the_same_rows_for_any_number_of_workers() -> None:
    walked = plan()
    for _ in range(10):
        bins = walked.next_step()
        assert len(bins) == 3
        whole = sorted(row for rows in bins for row in rows.tolist())
        for world in (1, 2, 3, 8):
            shares = [list(share_of(rank, world, bins)) for rank in range(world)]
            assert len({len(share) for share in shares}) == 1
            assert sorted(row for share in shares for rows in share if rows is not None for row in rows) == whole
