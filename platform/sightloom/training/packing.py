"""First-fit decreasing packing of a window, and which bins a rank takes (training.md §5): pure functions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sightloom.training.order import Order, Rows, keyed

_BIN_ORDER = 4  # purpose of the keyed draw
Bin = tuple[int, ...]
Lengths = npt.NDArray[np.int32] | npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Limits:
    """What fits into one pack."""

    max_tokens: int
    max_patches: int


def pack_window(tokens: Sequence[int], patches: Sequence[int], limits: Limits) -> list[Bin]:
    """First-fit decreasing over both limits, ties by position.

    Returns bins of positions into the window; a document that is over a limit alone is in no bin.
    """
    order = sorted(range(len(tokens)), key=lambda i: (-tokens[i], -patches[i], i))
    bins: list[list[int]] = []
    left_tokens, left_patches = (np.zeros(len(tokens), dtype=np.int64) for _ in range(2))
    for position in order:
        need_tokens, need_patches = tokens[position], patches[position]
        if need_tokens > limits.max_tokens or need_patches > limits.max_patches:
            continue
        fits = (left_tokens[: len(bins)] >= need_tokens) & (left_patches[: len(bins)] >= need_patches)
        number = int(fits.argmax()) if fits.any() else len(bins)
        if number == len(bins):
            bins.append([])
            left_tokens[number], left_patches[number] = limits.max_tokens, limits.max_patches
        bins[number].append(position)
        left_tokens[number] -= need_tokens
        left_patches[number] -= need_patches
    return [tuple(members) for members in bins]


class StepPlan:
    """Which index rows each step takes: the same for every number of workers.

    Args:
        order: windows of index rows.
        tokens, patches: per index row.
        limits: of a pack.
        packs: bins a step.
        seed: of the run; it shuffles the bins of a window.
    """

    def __init__(self, order: Order, tokens: Lengths, patches: Lengths, limits: Limits, packs: int, seed: int) -> None:
        self._order, self._tokens, self._patches = order, tokens, patches
        self._limits, self._packs, self._seed = limits, packs, seed
        self._window, self._pack = 0, 0
        self._bins: list[Rows] = []
        self._loaded = -1

    def state(self) -> dict[str, int]:
        """Where the next step begins."""
        return {"window": self._window, "pack": self._pack}

    def restore(self, state: dict[str, int]) -> None:
        """Go on from a saved place."""
        self._window, self._pack = state["window"], state["pack"]

    def next_step(self) -> list[Rows]:
        """The bins of the next step, each an array of index rows; windows follow each other without a gap."""
        bins: list[Rows] = []
        while len(bins) < self._packs:
            self._load()
            if self._pack >= len(self._bins):
                self._window, self._pack = self._window + 1, 0
                continue
            taken = self._bins[self._pack : self._pack + self._packs - len(bins)]
            bins += taken
            self._pack += len(taken)
        return bins

    def _load(self) -> None:
        if self._loaded == self._window:
            return
        rows = self._order.window(self._window)
        bins = pack_window(self._tokens[rows].tolist(), self._patches[rows].tolist(), self._limits)
        shuffled = keyed(self._seed, _BIN_ORDER, self._window).permutation(len(bins))
        self._bins = [rows[np.array(bins[number])] for number in shuffled]
        self._loaded = self._window
        if not self._bins:
            raise ValueError("no sample of the window fits into a pack")


def share_of(rank: int, world: int, bins: Sequence[Rows]) -> Iterator[Rows | None]:
    """The bins of one rank: r, r+R, …; None where others have one more, so that all run equally many."""
    for start in range(0, len(bins), world):
        yield bins[start + rank] if start + rank < len(bins) else None
