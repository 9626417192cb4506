import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sightloom.data.dedup.semantic import number_of_clusters, semantic_pairs


def embeddings(seed: int, rows: int, centres: int) -> np.ndarray:
    """Return rows float16 [rows, 32] around random directions, tight enough that most of a direction are near."""
    draw = np.random.default_rng(seed)
    middle = draw.normal(size=(centres, 32))
    found = middle[draw.integers(0, centres, rows)] + draw.normal(size=(rows, 32)) * 0.15
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16)


def expected(features: np.ndarray, cosine: float) -> list[int]:
    """Go through the rows one by one: a row goes if one that stays is near."""
    stay: list[int] = []
    lost = []
    wide = features.astype(np.float32)
    for row in range(len(wide)):
        near = bool(stay) and float((wide[stay] @ wide[row]).max()) >= cosine
        (lost if near else stay).append(row)
    return lost


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 120), st.integers(1, 12))
def test_a_row_goes_if_it_is_near_to_a_better_one_that_stays(seed: int, rows: int, centres: int) -> None:
    features = embeddings(seed, rows, centres)
    winners, losers = semantic_pairs(lambda which: features[which], rows, 0.95)
    assert losers.tolist() == expected(features, 0.95)
    wide = features.astype(np.float32)
    assert all(float(wide[a] @ wide[b]) >= 0.95 for a, b in zip(winners, losers, strict=True))
    assert not set(winners.tolist()) & set(losers.tolist())
    assert (winners < losers).all()


def test_blocks_and_clusters_find_what_a_full_comparison_finds() -> None:
    features = embeddings(3, 5000, 40)
    whole = expected(features, 0.95)
    assert semantic_pairs(lambda which: features[which], 5000, 0.95)[1].tolist() == whole
    clustered = set(semantic_pairs(lambda which: features[which], 5000, 0.95, clusters=8)[1].tolist())
    assert len(clustered & set(whole)) >= 0.97 * len(whole)


def test_rows_without_an_embedding_are_near_to_nothing() -> None:
    features = np.zeros((5, 8), np.float16)
    assert semantic_pairs(lambda which: features[which], 5, 0.95)[1].tolist() == []
    assert semantic_pairs(lambda which: features[which], 0, 0.95)[1].tolist() == []


def test_the_number_of_clusters_follows_the_rows() -> None:
    assert [number_of_clusters(n) for n in (0, 20_000, 20_001, 1_000_000, 10**9)] == [1, 1, 3, 100, 50_000]
