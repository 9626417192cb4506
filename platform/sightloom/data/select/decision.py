"""What was decided about each row: six to thirteen bytes a row, whatever the reasons are called."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

INTERNAL = "internal_error"
Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Cut:
    """Where a top fraction cut one group: the lowest score that stayed, None if nothing did."""

    by: str
    group: str | None
    rows: int
    kept: int
    threshold: float | None


class Reasons:
    """One number for each reason, in the order of appearance; 0 means that the row stays."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        """Return the number of a reason, a new one if need be."""
        return self._numbers.setdefault(name, len(self._numbers) + 1)

    @property
    def names(self) -> tuple[str, ...]:
        """The reasons 1, 2, …"""
        return tuple(self._numbers)


@dataclass(frozen=True)
class Decision:
    """For each row [N]: whether and how often it stays, else why not, and a bit for every rule that is false for it.

    Attributes:
        codes: 0 for a row that stays, else one more than the place of its reason in `names`.
        names: the reasons.
        fails: a bit for every false rule, in an unsigned type wide enough for the rules.
        copies: how often the row is packed; 0 for a row that goes.
        cuts: of the top fractions.
        alone: how many usable rows each rule would drop by itself.
    """

    codes: Codes
    names: tuple[str, ...]
    fails: npt.NDArray[np.unsignedinteger]
    copies: npt.NDArray[np.int16]
    cuts: tuple[Cut, ...] = ()
    alone: dict[str, int] = field(default_factory=dict)

    @cached_property
    def keep(self) -> Mask:
        """Whether each row stays."""
        return np.asarray(self.codes == 0)

    @cached_property
    def reason(self) -> npt.NDArray[np.object_]:
        """The reason of each row, None where it stays (a page needs them; a large corpus is better served by codes)."""
        return np.array([None, *self.names], dtype=object)[self.codes]

    @property
    def dropped(self) -> dict[str, int]:
        """Rows by reason, without those that failed inside."""
        found = self._counts()
        return {name: found[name] for name in sorted(found) if name != INTERNAL}

    @property
    def failed(self) -> int:
        """Rows that failed inside."""
        return self._counts().get(INTERNAL, 0)

    def _counts(self) -> dict[str, int]:
        found = np.bincount(self.codes, minlength=len(self.names) + 1)[1:].tolist()
        return {name: count for name, count in zip(self.names, found, strict=True) if count}
