"""The exact best of each group without sorting the corpus: radix selection, 16 bits a pass (data.md §9).

A row's place is a string of 16-bit digits, smallest first: the order-preserving bits of its score, turned round so that
the best comes first, then its uid. Each pass counts one digit of the rows that share the border's digits so far; once
so few rows lie on the border that they can be held, they are sorted. Memory is a table of counts, whatever N.

Shapes: n members of a batch, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 1 << 16
BORDER_ROWS = 2_000_000  # held and sorted at the end
COUNTED_GROUPS = 64  # tables of counts; with more groups the members are held and sorted
UID_DIGITS = 8
Indexes = npt.NDArray[np.int64]
Uids = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]


@dataclass(frozen=True)
class Members:
    """Rows that may stay [n]: number, group 0 … G-1, finite score, and the two halves of the uid where asked for."""

    rows: Indexes
    groups: Indexes
    scores: npt.NDArray[np.float64]
    uids: Uids | None


Scan = Callable[[bool], Iterator[Members]]  # given whether uids are needed


@dataclass(frozen=True)
class Best:
    """The rows that stay, and for each group how many [G] and the lowest score of them [G] (infinite if none)."""

    kept: npt.NDArray[np.int64]
    lowest: npt.NDArray[np.float64]


def keep_best(
    scan: Scan, amounts: Indexes, wide: bool, keep: Callable[[Indexes], None], border_rows: int = BORDER_ROWS
) -> Best:
    """Find the best `amounts` [G] members of each group, ties by ascending uid, then by row.

    Args:
        scan: yields all members, the same each time.
        amounts: how many of each group stay.
        wide: whether scores are told apart as float64 (float32 otherwise).
        keep: called with the rows that stay, part by part.
        border_rows: how many rows may be held and sorted.
    """
    digits = 4 if wide else 2
    borders, need = _borders(scan, amounts, wide, digits, border_rows)
    kept, lowest = np.zeros(len(amounts), np.int64), np.full(len(amounts), np.inf)

    def stay(rows: Indexes, groups: Indexes, scores: npt.NDArray[np.float64]) -> None:
        keep(rows)
        kept[:] += np.bincount(groups, minlength=len(amounts))
        np.minimum.at(lowest, groups, scores)

    held: list[Members] = []
    for members in scan(True):
        inside, border = _walk(members, borders, wide, digits)
        stay(members.rows[inside], members.groups[inside], members.scores[inside])
        held.append(_take(members, border))
    rows, groups, scores = (np.concatenate([getattr(part, name) for part in held] or [np.zeros(0, np.int64)])
                            for name in ("rows", "groups", "scores"))  # fmt: skip
    high, low = (np.concatenate([part.uids[half] for part in held if part.uids] or [np.zeros(0, np.uint64)])
                 for half in (0, 1))  # fmt: skip
    order = np.lexsort((rows, low, high, order_keys(scores, wide), groups))
    place = np.arange(len(order)) - np.searchsorted(groups[order], groups[order])
    best = order[place < need[groups[order]]]
    stay(rows[best], groups[best], scores[best])
    return Best(kept, lowest)


def order_keys(scores: npt.NDArray[np.float64], wide: bool) -> npt.NDArray[np.unsignedinteger]:
    """Return unsigned numbers [n] that ascend as finite scores descend; 0.0 and -0.0 are equal."""
    if wide:
        long = (scores + 0.0).astype(np.float64).view(np.uint64)
        sign = np.uint64(1 << 63)
        return np.where(long & sign, long, ~(long | sign))
    short = (scores + 0.0).astype(np.float32).view(np.uint32)
    mark = np.uint32(1 << 31)
    return np.where(short & mark, short, ~(short | mark))


def _borders(
    scan: Scan, amounts: Indexes, wide: bool, digits: int, border_rows: int
) -> tuple[list[Indexes], npt.NDArray[np.int64]]:
    """Return for each counted digit each group's border [G], and how many rows on the last one stay [G].

    A border is twice the digit up to which rows stay; odd where it falls between digits, so that no row is on it.
    """
    borders: list[Indexes] = []
    need = amounts.copy()
    opened = np.arange(len(amounts))
    if len(amounts) > COUNTED_GROUPS:
        return borders, need
    for depth in range(digits + UID_DIGITS):
        counts = np.zeros((len(amounts), BINS), np.int64)
        for members in scan(depth >= digits):
            _, border = _walk(members, borders, wide, digits)
            cells = members.groups[border] * BINS + _digit(members, depth, border, wide, digits)
            counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
        if depth == 0 and counts.sum() <= border_rows:
            return [], need
        border_of = np.full(len(amounts), -1, np.int64)
        still, waiting = [], 0
        for group in opened:
            reached = np.cumsum(counts[group])
            if need[group] >= reached[-1]:
                border_of[group] = 2 * BINS + 1
                continue
            place = int(np.searchsorted(reached, need[group], "left")) if need[group] else 0
            before = int(reached[place - 1]) if place else 0
            on_border = int(counts[group, place])
            if need[group] == 0:
                continue
            need[group] -= before
            if need[group] == on_border:
                border_of[group] = 2 * place + 1
                continue
            border_of[group] = 2 * place
            still.append(group)
            waiting += on_border
        borders.append(border_of)
        opened = np.array(still, np.int64)
        if waiting <= border_rows:
            break
    return borders, need


def _walk(members: Members, borders: list[Indexes], wide: bool, digits: int) -> tuple[Indexes, Indexes]:
    """Return which members lie inside all borders, and which on the last one."""
    inside: list[Indexes] = []
    live = np.arange(len(members.rows))
    for depth, border_of in enumerate(borders):
        digit, border = 2 * _digit(members, depth, live, wide, digits), border_of[members.groups[live]]
        inside.append(live[digit < border])
        live = live[digit == border]
    return np.concatenate(inside) if inside else np.zeros(0, np.int64), live


def _digit(members: Members, depth: int, which: Indexes, wide: bool, digits: int) -> Indexes:
    """Return one digit of some members: of the score, then of the uid."""
    if depth < digits:
        words, place = order_keys(members.scores[which], wide), digits - 1 - depth
    else:
        assert members.uids is not None
        half, place = divmod(depth - digits, 4)
        words, place = members.uids[half][which], 3 - place
    return ((words >> words.dtype.type(16 * place)) & words.dtype.type(BINS - 1)).astype(np.int64)


def _take(members: Members, which: Indexes) -> Members:
    assert members.uids is not None
    return Members(members.rows[which], members.groups[which], members.scores[which],
                   (members.uids[0][which], members.uids[1][which]))  # fmt: skip
