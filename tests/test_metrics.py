import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from sightloom.metrics import accuracy, auc, bootstrap_ci, mcnemar, paired_bootstrap, recall_at_k, wilson


@given(st.lists(st.tuples(st.floats(-5, 5).map(lambda x: round(x, 1)), st.booleans()), min_size=2, max_size=40))
def test_auc_equals_scikit_learn(rows: list[tuple[float, bool]]) -> None:
    scores, labels = zip(*rows, strict=True)
    if len(set(labels)) == 1:
        assert math.isnan(auc(scores, labels))
    else:
        assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


@given(st.integers(0, 50), st.integers(1, 50))
def test_wilson_equals_scipy(successes: int, n: int) -> None:
    successes = min(successes, n)
    theirs = stats.binomtest(successes, n).proportion_ci(method="wilson")
    ours = wilson(successes, n)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert ours.low <= ours.value <= ours.high or ours.value in (0, 1)


def test_mcnemar_is_the_exact_binomial_test_of_the_rows_that_differ() -> None:
    gained, lost = [True] * 9 + [False] * 2 + [True] * 5, [False] * 9 + [True] * 2 + [True] * 5
    assert mcnemar(gained, lost) == pytest.approx(stats.binomtest(9, 11).pvalue)
    assert mcnemar([True, False], [True, False]) == 1
    with pytest.raises(ValueError, match="same rows"):
        mcnemar([True], [True, False])


def test_the_bootstrap_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        interval = bootstrap_ci(generator.binomial(1, 0.7, 100), seed, num_resamples=500)
        hits += interval.low <= 0.7 <= interval.high
    assert 180 <= hits <= 198


def test_the_bootstrap_is_a_function_of_its_seed_and_draws_groups_whole() -> None:
    scores = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert bootstrap_ci(scores, 1) == bootstrap_ci(scores, 1)
    alone, grouped = bootstrap_ci(scores, 1), bootstrap_ci(scores, 1, groups=list("aaaabbbb"))
    assert alone.value == grouped.value == 0.5
    assert grouped.high - grouped.low > alone.high - alone.low
    assert (grouped.low, grouped.high) == (0, 1)
    with pytest.raises(ValueError, match="groups"):
        bootstrap_ci(scores, 1, groups=["a"])


def test_paired_differences_are_sharper_than_their_parts() -> None:
    baseline = np.random.default_rng(0).binomial(1, 0.5, 300)
    candidate = np.maximum(baseline, np.arange(300) % 10 == 0)
    interval = paired_bootstrap(candidate, baseline, seed=0)
    assert interval.low > 0 and interval.value == pytest.approx(candidate.mean() - baseline.mean())
    with pytest.raises(ValueError, match="same rows"):
        paired_bootstrap([1], [1, 0], seed=0)


def test_recall_counts_the_own_column_and_not_luck() -> None:
    assert recall_at_k(np.eye(4), 1) == 1
    assert recall_at_k(np.ones((4, 4)), 1) == 0
    assert recall_at_k(np.ones((4, 4)), 4) == 1
    assert recall_at_k([[2, 3, 0], [0, 1, 0], [9, 9, 0]], 1) == pytest.approx(1 / 3)
    assert recall_at_k([[2, 3, 0], [0, 1, 0], [9, 9, 0]], 2) == pytest.approx(2 / 3)


def test_of_nothing_the_scores_are_not_numbers() -> None:
    assert math.isnan(accuracy([])) and math.isnan(bootstrap_ci([], 0).value) and math.isnan(wilson(0, 0).low)
    assert accuracy([1, 0, 0.5]) == 0.5
