from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightloom.data.dedup import semantic
from sightloom.data.dedup.config import DedupConfig
from sightloom.data.dedup.find import columns_needed, find_duplicates
from sightloom.data.dedup.semantic import find_alike
from sightloom.data.embeddings import Embeddings, Part

DIM = 8


def stored(folder: Path, vectors: np.ndarray[Any, Any]) -> Embeddings:
    """Embeddings in chunks of seven rows."""
    folder.mkdir(exist_ok=True)
    parts = []
    for start in range(0, len(vectors), 7):
        chunk = vectors[start : start + 7].astype(np.float16)
        np.save(folder / f"{start}.npy", chunk)
        parts.append(Part(str(folder / f"{start}.npy"), start, len(chunk)))
    return Embeddings(len(vectors), tuple(parts))


def unit(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def on_a_circle(*degrees: float) -> np.ndarray[Any, Any]:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles), *[0 * angles] * (DIM - 2)], 1)


def by_hand(vectors: np.ndarray[Any, Any], rows: np.ndarray[Any, Any], cosine: float) -> dict[int, int]:
    """A row goes if it is alike to a better one that stays: the definition, a row at a time."""
    whole = unit(vectors.astype(np.float16).astype(np.float64))
    stays: list[int] = []
    found = {}
    for row in rows.tolist():
        first = next((one for one in stays if whole[one] @ whole[row] >= cosine - 1e-6), None)
        if first is None:
            stays.append(row)
        else:
            found[row] = first
    return found


def pairs_of(vectors: np.ndarray[Any, Any], score: list[float], **more: Any) -> pa.Table:
    size = len(vectors)
    columns = {
        "uid": pa.array([bytes(12) + n.to_bytes(4, "big") for n in range(size)], pa.binary(16)),
        "status": ["ok"] * size, "kind": ["pair"] * size, "src": ["a"] * size, "src_pos": list(range(size)),
        "width": [10] * size, "height": [10] * size, "sha256": [str(n) for n in range(size)], "score": score,
    }  # fmt: skip
    return pa.table({**columns, **more})


def test_the_best_stays_a_chain_does_not_drag_and_only_living_scored_pairs_are_compared(tmp_path: Path) -> None:
    vectors = on_a_circle(0, 15, 30, 90, 0, 0, 0, 0)
    vectors[6] = 0
    config = DedupConfig(prefer="score", semantic={"scorer": "x"})
    statuses = ["ok"] * 5 + ["truncated_image", "ok", "ok"]
    table = pairs_of(vectors, [0.9, 0.8, 0.7, 0.1, 0.2, 1.0, 1.0, 1.0], status=statuses)
    table = table.set_column(2, "kind", pa.array(["pair"] * 7 + ["conversation"]))
    found = find_duplicates(table.select(columns_needed(config)), config, {"x": stored(tmp_path, vectors)})
    # 15 degrees: 0.966. Row 1 is like 0 and 2, which are not alike: with 1 gone for 0, 2 stays.
    assert dict(zip(found.rows.tolist(), found.winners.tolist(), strict=True)) == {1: 0, 4: 0}
    assert set(found.reasons) == {"dup_semantic"}
    stored_rows = found.table(table.column("uid").combine_chunks()).to_pylist()
    assert [(row["row"], row["method"], row["of"][-1]) for row in stored_rows] == [
        (1, "semantic", 0),
        (4, "semantic", 0),
    ]
    better = pairs_of(vectors, [0.1, 0.8, 0.7, 0.1, 0.2, 0, 0, 0], status=statuses)
    better = better.set_column(2, "kind", table.column("kind"))
    turned = find_duplicates(better.select(columns_needed(config)), config, {"x": stored(tmp_path, vectors)})
    assert dict(zip(turned.rows.tolist(), turned.winners.tolist(), strict=True)) == {0: 1, 2: 1, 4: 1}


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 90), st.floats(0.5, 1.0), st.integers(1, 8))
def test_blocks_of_any_size_find_what_the_definition_says(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rows: int, cosine: float, block: int
) -> None:
    draw = np.random.default_rng(seed)
    vectors = unit(draw.normal(size=(6, DIM)))[draw.integers(0, 6, rows)] + draw.normal(size=(rows, DIM)) * 0.15
    vectors = unit(vectors)
    whole = unit(vectors.astype(np.float16).astype(np.float64))
    if np.abs(whole @ whole.T - cosine + 1e-6).min() < 1e-6:
        return  # on the border fp32 may say either
    order = draw.permutation(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(semantic, "BLOCK", block)
        lost, stays = find_alike(stored(tmp_path_factory.mktemp("emb"), vectors), order, cosine)
    assert dict(zip(lost.tolist(), stays.tolist(), strict=True)) == by_hand(vectors, order, cosine)


@settings(max_examples=10)
@given(st.integers(0, 2**32))
def test_the_order_of_rows_does_not_matter_in_many_clusters_either(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    size = 300
    vectors = unit(unit(draw.normal(size=(40, DIM)))[draw.integers(0, 40, size)] + draw.normal(size=(size, DIM)) * 0.1)
    vectors[draw.integers(0, size, 9)] = 0
    table = pairs_of(vectors, draw.integers(0, 5, size).tolist())
    config = DedupConfig(prefer="score", semantic={"scorer": "x", "cosine": 0.9})
    outcomes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(semantic, "ONE_CLUSTER", 50)
        patch.setattr(semantic, "CLUSTER_ROWS", 40)
        patch.setattr(semantic, "ASSIGNED", 64)
        for order in (np.arange(size), draw.permutation(size)):
            emb = stored(tmp_path_factory.mktemp("emb"), vectors[order])
            found = find_duplicates(table.take(pa.array(order)), config, {"x": emb})
            outcomes.append(dict(zip(order[found.rows].tolist(), order[found.winners].tolist(), strict=True)))
    assert outcomes[0] == outcomes[1] and len(outcomes[0]) > 50
    assert not set(outcomes[0].values()) & outcomes[0].keys()  # who stays for others stays


def test_clusters_lose_no_close_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "ONE_CLUSTER", 100)
    monkeypatch.setattr(semantic, "CLUSTER_ROWS", 100)
    draw = np.random.default_rng(0)
    first = unit(draw.normal(size=(600, 32)))
    vectors = np.concatenate([first, unit(first + draw.normal(size=first.shape) * 0.004)])
    lost, stays = find_alike(stored(tmp_path, vectors), np.arange(1200), 0.95)
    caught = {(a, b) for a, b in zip(lost.tolist(), stays.tolist(), strict=True)}
    assert all(a == b + 600 for a, b in caught) and len(caught) >= 0.95 * 600  # copies that a border parts are missed


def test_no_rows_and_no_embeddings_are_no_duplicates(tmp_path: Path) -> None:
    nothing = np.zeros(0, np.int64)
    assert len(find_alike(Embeddings(0, ()), nothing, 0.95)[0]) == 0
    assert len(find_alike(stored(tmp_path, np.zeros((5, DIM))), np.arange(5), 0.95)[0]) == 0
    assert len(find_alike(stored(tmp_path, on_a_circle(0, 0)), nothing, 0.95)[0]) == 0
