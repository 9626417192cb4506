"""Data order as a pure function of (sources, seed, position): no state beside `{window, pack, step}` (training.md §5).

Legend: W samples a window, C_d(k) samples that source d has given after k windows, w_d its weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

_SHARDS_PER_BLOCK = 8
_SHARD_ORDER, _SAMPLE_ORDER, _WINDOW_ORDER = 1, 2, 3  # purposes of the keyed draws


@dataclass(frozen=True, slots=True)
class OrderSource:
    """One source of the mixture: for each of its samples the index row and the shard it lies in."""

    name: str
    weight: float
    rows: Rows
    shards: Rows


def keyed(*key: int) -> np.random.Generator:
    """A Philox generator keyed by whole numbers: the same key gives the same draws anywhere."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([abs(part) for part in key])))


def epoch_order(source: OrderSource, seed: int, number: int, epoch: int) -> Rows:
    """One epoch of a source: shards permuted, samples shuffled inside blocks of eight shards; each row once."""
    shards = np.unique(source.shards)
    shuffled = keyed(seed, _SHARD_ORDER, number, epoch).permutation(shards)
    parts = []
    for start in range(0, len(shuffled), _SHARDS_PER_BLOCK):
        block = shuffled[start : start + _SHARDS_PER_BLOCK]
        rows = source.rows[np.isin(source.shards, block)]
        parts.append(keyed(seed, _SAMPLE_ORDER, number, epoch, start).permutation(rows))
    return np.concatenate(parts)


def given_after(weights: Mapping[str, float], window: int, windows: int) -> dict[str, int]:
    """C_d(k): samples that each source has given after `windows` windows of `window` samples.

    Floors of w_d·W·k, and one more for the largest remainders so that they sum to W·k; ties go by name. Monotone in k
    as long as w_d·W ≥ 1.
    """
    exact = {name: weight * window * windows for name, weight in weights.items()}
    counts = {name: int(np.floor(round(value, 6))) for name, value in exact.items()}
    missing = window * windows - sum(counts.values())
    by_remainder = sorted(exact, key=lambda name: (-round(exact[name] - counts[name], 6), name))
    for name in by_remainder[:missing]:
        counts[name] += 1
    return counts


class Order:
    """The endless stream of windows of a mixture.

    Args:
        sources: at least one, none empty, weights summing to 1, w_d·W ≥ 1.
        seed: of the run.
        window: W.

    Raises:
        ValueError: a source is empty or too light for the window.
    """

    def __init__(self, sources: Sequence[OrderSource], seed: int, window: int) -> None:
        self._sources = sorted(sources, key=lambda source: source.name)
        for source in self._sources:
            if len(source.rows) == 0:
                raise ValueError(f"source '{source.name}' holds no sample")
            if source.weight * window < 1:
                raise ValueError(f"source '{source.name}': weight {source.weight:g} times window {window} is below 1")
        self._seed, self._size = seed, window
        self._weights = {source.name: source.weight for source in self._sources}
        self._epochs: dict[tuple[int, int], Rows] = {}

    def window(self, index: int) -> Rows:
        """The index rows of window `index`, shuffled: int64[W]."""
        start, end = (given_after(self._weights, self._size, k) for k in (index, index + 1))
        parts = [
            self._stream(number, source, start[source.name], end[source.name])
            for number, source in enumerate(self._sources)
        ]
        return keyed(self._seed, _WINDOW_ORDER, index).permutation(np.concatenate(parts))

    def _stream(self, number: int, source: OrderSource, start: int, end: int) -> Rows:
        size = len(source.rows)
        positions = np.arange(start, end)
        out = np.empty(end - start, dtype=np.int64)
        for epoch in range(start // size, (max(end, 1) - 1) // size + 1):
            mask = positions // size == epoch
            out[mask] = self._epoch(number, source, epoch)[positions[mask] % size]
        return out

    def _epoch(self, number: int, source: OrderSource, epoch: int) -> Rows:
        key = (number, epoch)
        if key not in self._epochs:
            # two epochs may meet in one window; older ones never come back
            self._epochs = {k: v for k, v in self._epochs.items() if k[0] != number or k[1] >= epoch - 1}
            self._epochs[key] = epoch_order(source, self._seed, number, epoch)
        return self._epochs[key]
