"""Which rows stay, and the one reason of each row that goes: status, duplicates, rules, top fractions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sightloom.data.dedup.duplicates import Duplicates, mask_of, numbers, uid_halves
from sightloom.data.select.config import SelectConfig, Top
from sightloom.data.select.expressions import Expression, compile_expression
from sightloom.data.sources.records import OK
from sightloom.errors import UserMistake

INTERNAL = "internal_error"
HIDDEN = frozenset({"phash", "phash256", "thumb", "text_hash", "uid"})  # no use in a rule
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Cut:
    """Where a top fraction cut one group: the lowest score that stayed, None if nothing did."""

    by: str
    group: str | None
    rows: int
    kept: int
    threshold: float | None


@dataclass(frozen=True)
class Decision:
    """For each row [N]: whether it stays, else why not, and a bit for every rule that is false for it."""

    keep: Mask
    reason: npt.NDArray[np.object_]
    fails: npt.NDArray[np.uint64]
    cuts: tuple[Cut, ...] = ()
    alone: dict[str, int] = field(default_factory=dict)

    @property
    def dropped(self) -> dict[str, int]:
        """Rows by reason, without those that failed inside."""
        found = Counter(str(reason) for reason in self.reason[~self.keep])
        found.pop(INTERNAL, None)
        return dict(sorted(found.items()))

    @property
    def failed(self) -> int:
        """Rows that failed inside."""
        return int((self.reason == INTERNAL).sum())


def with_counts(table: pa.Table) -> pa.Table:
    """Add `text_count`: how many usable rows of the same kind have an equal text."""
    ok = pc.equal(table.column("status"), OK)
    keys = pc.if_else(ok, table.column("text_hash"), pa.scalar(None, pa.uint64())).combine_chunks()
    is_pair = pc.equal(table.column("kind"), "pair").combine_chunks()
    codes = np.where(mask_of(is_pair), 0, 1)
    values = pc.fill_null(keys, 0).to_numpy(zero_copy_only=False)
    _, place, count = np.unique(np.stack([values, codes.astype(np.uint64)], 1), axis=0, return_inverse=True,
                                return_counts=True)  # fmt: skip
    counted = pa.array(count[place.reshape(-1)], pa.int32())
    return table.append_column("text_count", pc.if_else(ok, counted, pa.scalar(None, pa.int32())))


@dataclass(frozen=True)
class Compiled:
    """A selection whose expressions were checked against the columns there will be."""

    config: SelectConfig
    derive: dict[str, Expression]
    rules: dict[str, Expression]

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that deciding reads, derived ones left out."""
        names = {name for expression in (*self.derive.values(), *self.rules.values()) for name in expression.columns}
        names |= {name for top in self.config.top for name in (top.by, top.per) if name is not None}
        return tuple(sorted({"uid", "status", "kind", "domain", *names} - set(self.derive)))


def compile_selection(config: SelectConfig, columns: list[str]) -> Compiled:
    """Check all expressions before anything is scored; UserMistake names the rule, the column and the ones there."""
    available = [name for name in columns if name not in HIDDEN]
    derive: dict[str, Expression] = {}
    for name, text in config.derive.items():
        if name in available:
            raise UserMistake(f"select.derive '{name}' hides a column of that name", "choose another name")
        derive[name] = _named(f"select.derive '{name}'", text, available)
        available.append(name)
    rules = {name: _named(f"rule '{name}'", text, available) for name, text in config.rules.items()}
    for number, top in enumerate(config.top):
        for key, column in (("by", top.by), ("per", top.per)):
            if column is not None and column not in available:
                raise UserMistake(f"select.top.{number}.{key} names no column '{column}'",
                                  f"have: {', '.join(sorted(available))}")  # fmt: skip
    return Compiled(config, derive, rules)


def _named(what: str, text: str, available: list[str]) -> Expression:
    try:
        return compile_expression(text, available)
    except UserMistake as error:
        raise UserMistake(f"{what}: {error.message}", error.hint) from error


def choose(table: pa.Table, duplicates: Duplicates, selection: Compiled) -> tuple[pa.Table, Decision]:
    """Decide about every row [N].

    Returns:
        The table with the derived columns (null where a row is not usable), and the decision.
    """
    size = table.num_rows
    reason = np.full(size, None, dtype=object)
    status = np.array(table.column("status").to_pylist(), dtype=object)
    usable = np.flatnonzero(status == OK)
    reason[status != OK] = status[status != OK]
    usable_table = table.take(pa.array(usable))
    for name, expression in selection.derive.items():
        values = expression(usable_table)
        usable_table = usable_table.append_column(name, values)
        table = table.append_column(name, _spread(values, usable, size))
    reason[duplicates.rows] = np.array(duplicates.reasons, dtype=object)
    fails = np.zeros(size, np.uint64)
    alone: dict[str, int] = {}
    for bit, (name, expression) in enumerate(selection.rules.items()):
        true = mask_of(expression.mask(usable_table))
        false_rows = usable[~true]
        alone[name] = len(false_rows)
        fails[false_rows] |= np.uint64(1 << bit)
        fresh = false_rows[reason[false_rows] == None]  # noqa: E711 - elementwise
        reason[fresh] = name
    cuts: list[Cut] = []
    for top in selection.config.top:
        cuts += _apply_top(table, top, reason, status == OK)
    return table, Decision(reason == None, reason, fails, tuple(cuts), alone)  # noqa: E711


def _spread(values: pa.Array, rows: npt.NDArray[np.int64], size: int) -> pa.Array:
    place = np.full(size, -1, np.int64)
    place[rows] = np.arange(len(rows))
    return values.take(pa.array(place, mask=place < 0))


def _apply_top(table: pa.Table, top: Top, reason: npt.NDArray[np.object_], ok: Mask) -> list[Cut]:
    """Drop all but the best of each group; rows without a score go."""
    score = numbers(table, top.by)
    high, low = uid_halves(table.column("uid"))
    scope = ok & (reason == None)  # noqa: E711
    counted = scope if top.of == "survivors" else np.ones(len(ok), bool)
    if top.kinds is not None:
        of_kind = mask_of(pc.is_in(table.column("kind"), value_set=pa.array(top.kinds)))
        scope, counted = scope & of_kind, counted & of_kind
    groups = np.full(len(ok), None, dtype=object)
    if top.per is not None:
        groups[:] = [None if value is None else str(value) for value in table.column(top.per).to_pylist()]
    cuts = []
    for group in sorted(set(groups[scope]), key=str):
        members = np.flatnonzero(scope & (groups == group))
        amount = _amount(top, group, int((counted & (groups == group)).sum()))
        best = members[np.lexsort((low[members], high[members], -score[members]))]
        best = best[np.isfinite(score[best])][:amount]
        gone = members[~np.isin(members, best)]
        reason[gone] = f"top_{top.by}"
        threshold = float(score[best].min()) if len(best) else None
        cuts.append(Cut(top.by, group, len(members), len(best), threshold))
    return cuts


def _amount(top: Top, group: str | None, rows: int) -> int:
    if top.count is not None:
        return top.count if isinstance(top.count, int) else top.count.get(str(group), 0)
    fraction = top.fraction.get(str(group), 0.0) if isinstance(top.fraction, dict) else top.fraction
    return int(np.floor((fraction or 0.0) * rows + 0.5))
