import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightloom.data.decisions import subset_bytes
from sightloom.data.select.config import Sample, SelectConfig
from sightloom.data.select.presets import PRESETS
from sightloom.data.select.sample import soft_cap


def uids_of(rows: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(7)
    return tuple(draw.integers(0, 2**63, rows, dtype=np.uint64) for _ in range(2))  # type: ignore[return-value]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.integers(0, 600), st.integers(1, 90), st.integers(-5, 5))
def test_exactly_count_rows_are_drawn_in_whatever_order_they_come(rows: int, count: int, batch: int, seed: int) -> None:
    scores, (high, low) = np.random.default_rng(1).normal(size=rows), uids_of(rows)
    config = Sample(by="x", count=count, temperature=0.5, batch=batch)
    copies = soft_cap(scores, (high, low), config, seed)
    assert copies.sum() == count
    order = np.random.default_rng(2).permutation(rows)
    again = soft_cap(scores[order], (high[order], low[order]), config, seed)
    assert (again == copies[order]).all()


def test_better_rows_are_drawn_more_often_and_a_penalty_spreads_the_draws() -> None:
    scores, uids = np.linspace(0, 1, 1000), uids_of(1000)
    drawn = [
        soft_cap(scores, uids, Sample(by="x", count=2000, temperature=0.1, penalty=penalty, batch=100), 0)
        for penalty in (0.0, 0.15, 1.0)
    ]
    assert all(copies[500:].sum() > copies[:500].sum() for copies in drawn)
    assert drawn[0].max() > drawn[1].max() > drawn[2].max()
    other = soft_cap(scores, uids, Sample(by="x", count=2000, temperature=0.1, batch=100), 1)
    assert (other != drawn[1]).any()


def test_the_subset_file_holds_the_kept_uids_in_datacomps_form() -> None:
    halves = np.array([[3, 1], [1, 2**64 - 1], [3, 0]], np.uint64)
    found = np.load(io.BytesIO(subset_bytes(halves)))
    assert found.dtype == np.dtype("u8,u8")
    assert found.tolist() == [(1, 2**64 - 1), (3, 0), (3, 1)]
    assert len(np.load(io.BytesIO(subset_bytes(np.zeros((0, 2), np.uint64))))) == 0


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_rules_come_first_and_own_ones_are_added(name: str) -> None:
    config = SelectConfig.model_validate({"preset": name, "rules": {"own": "width > 1"}})
    assert list(config.all_rules) == [*PRESETS[name].get("rules", {}), "own"]
    assert len(config.all_tops) == len(PRESETS[name].get("top", ()))


def test_an_own_rule_cannot_hide_a_presets() -> None:
    with pytest.raises(ValueError, match="has a rule 'short_side' already"):
        SelectConfig.model_validate({"preset": "datacomp-basic", "rules": {"short_side": "width > 1"}})
