"""Which rows stay, and the one reason of each row that goes: status, duplicates, rules, top fractions, sample.

The rows are read table by table, once for the rules and a few times for each top fraction; what is held for a row is
its reason's number and the bits of its rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sightloom.data.dedup.duplicates import Duplicates, mask_of, numbers, uid_halves
from sightloom.data.select.config import SelectConfig, Top
from sightloom.data.select.decision import Codes, Cut, Decision, Mask, Reasons
from sightloom.data.select.expressions import Expression, compile_expression
from sightloom.data.select.radix import BORDER_ROWS, Members, keep_best
from sightloom.data.select.rows import Batch, Rows
from sightloom.data.select.sample import MOST_COPIES, soft_cap
from sightloom.data.signals.config import origin_of
from sightloom.data.sources.records import OK
from sightloom.errors import UserMistake

HIDDEN = frozenset({"phash", "phash256", "thumb", "text_hash", "uid"})  # no use in a rule
NARROW = (pa.float16(), pa.float32(), pa.int8(), pa.int16(), pa.uint8(), pa.uint16())  # float32 tells them all apart


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
        names |= {name for top in self.config.all_tops for name in (top.by, top.per) if name is not None}
        names |= {self.config.sample.by} if self.config.sample is not None else set()
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
    rules = {name: _named(f"rule '{name}'", text, available) for name, text in config.all_rules.items()}
    asked = [(f"top.{n}.{key}", getattr(top, key)) for n, top in enumerate(config.all_tops) for key in ("by", "per")]
    asked += [("sample.by", config.sample.by)] if config.sample is not None else []
    for key, column in asked:
        if column is not None and column not in available:
            have = f"have: {', '.join(sorted(available))}"
            todo = origin_of(column)
            raise UserMistake(f"select.{key} names no column '{column}'", f"{have}; {todo}" if todo else have)
    return Compiled(config, derive, rules)


def _named(what: str, text: str, available: list[str]) -> Expression:
    try:
        return compile_expression(text, available)
    except UserMistake as error:
        raise UserMistake(f"{what}: {error.message}", error.hint) from error


def choose(
    rows: Rows, duplicates: Duplicates, selection: Compiled, seed: int = 0, border_rows: int = BORDER_ROWS
) -> Decision:
    """Decide about every row [N].

    Args:
        rows: with the selection's derived columns.
        duplicates: the losers among them.
        selection: what stays.
        seed: of a sample.
        border_rows: how many rows a top fraction may hold and sort.
    """
    reasons = Reasons()
    codes = np.zeros(rows.num_rows, np.uint16)
    fails = np.zeros(rows.num_rows, np.min_scalar_type((1 << len(selection.rules)) - 1))
    alone = dict.fromkeys(selection.rules, 0)
    columns = sorted({name for expression in selection.rules.values() for name in expression.columns})
    for batch in rows.batches(columns):
        part = slice(batch.start, batch.start + batch.table.num_rows)
        _of_status(batch, codes[part], reasons)
        _of_duplicates(duplicates, part, codes, reasons)
        usable, table = part.start + np.flatnonzero(batch.ok), batch.usable_table()
        for bit, (name, rule) in enumerate(selection.rules.items()):
            answers = rule.as_mask(rows.values(f"rule {name}", rule, batch, table))
            false = usable[~mask_of(answers)]
            alone[name] += len(false)
            fails[false] |= fails.dtype.type(1 << bit)
            codes[false[codes[false] == 0]] = reasons.number(name)
    cuts: list[Cut] = []
    for top in selection.config.all_tops:
        cuts += _apply_top(rows, top, codes, reasons.number(f"top_{top.by}"), border_rows)
    copies = _apply_sample(rows, selection.config, seed, codes, reasons)
    return Decision(codes, reasons.names, fails, copies, tuple(cuts), alone)


def _of_status(batch: Batch, codes: Codes, reasons: Reasons) -> None:
    """Give each row that is not usable its status as reason."""
    if batch.ok.all():
        return
    status = pc.fill_null(batch.table.column("status"), "internal_error").combine_chunks().dictionary_encode()
    known = [0 if name == OK else reasons.number(name) for name in status.dictionary.to_pylist()]
    codes[:] = np.array(known, np.uint16)[status.indices.to_numpy()]


def _of_duplicates(duplicates: Duplicates, part: slice, codes: Codes, reasons: Reasons) -> None:
    lost, names, which = duplicates.coded(part.start, part.stop)
    if len(lost):
        codes[lost] = np.array([reasons.number(name) for name in names], np.uint16)[which]


class _Groups:
    """The groups of a top fraction, numbered as they appear."""

    def __init__(self, top: Top) -> None:
        self.top = top
        self.numbers: dict[str | None, int] = {} if top.per is not None else {None: 0}

    def of(self, table: pa.Table) -> npt.NDArray[np.int64]:
        """Return each row's group [n]."""
        if self.top.per is None:
            return np.zeros(table.num_rows, np.int64)
        values = pc.cast(table.column(self.top.per), pa.string()).combine_chunks()
        encoded = values.dictionary_encode(null_encoding="encode")
        known = [self.numbers.setdefault(name, len(self.numbers)) for name in encoded.dictionary.to_pylist()]
        return np.array(known, np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]


def _apply_top(rows: Rows, top: Top, codes: Codes, reason: int, border_rows: int) -> list[Cut]:
    """Drop all but the best of each group; rows without a score go."""
    groups = _Groups(top)
    extra = [name for name in (top.per, "kind" if top.kinds is not None else None) if name is not None]
    members, counted = np.zeros(0, np.int64), np.zeros(0, np.int64)
    wide = True
    for batch in rows.batches([*extra, top.by]):
        own, scope, all_counted = groups.of(batch.table), *_scopes(batch, top, codes)
        members = _plus(members, own[scope], len(groups.numbers))
        counted = _plus(counted, own[all_counted], len(groups.numbers))
        wide = batch.table.schema.field(top.by).type not in NARROW
    amounts = np.array([_amount(top, name, int(n)) for name, n in zip(groups.numbers, counted, strict=True)], np.int64)

    def scan(with_uids: bool) -> Iterator[Members]:
        for batch in rows.batches([*extra, top.by, *(["uid"] if with_uids else [])]):
            scope, _ = _scopes(batch, top, codes_before)
            score = numbers(batch.table, top.by)
            live = np.flatnonzero(scope & np.isfinite(score))
            halves = uid_halves(batch.table.column("uid")) if with_uids else None
            uids = (halves[0][live], halves[1][live]) if halves is not None else None
            yield Members(batch.start + live, groups.of(batch.table)[live], score[live], uids)

    codes_before = codes.copy()
    for batch in rows.batches(extra):
        scope, _ = _scopes(batch, top, codes_before)
        codes[batch.start + np.flatnonzero(scope)] = reason

    def keep(kept: npt.NDArray[np.int64]) -> None:
        codes[kept] = 0

    best = keep_best(scan, amounts, wide, keep, border_rows)
    return [
        Cut(top.by, name, int(members[n]), int(best.kept[n]), float(best.lowest[n]) if best.kept[n] else None)
        for name, n in sorted(groups.numbers.items(), key=lambda item: str(item[0]))
        if members[n]
    ]


def _scopes(batch: Batch, top: Top, codes: Codes) -> tuple[Mask, Mask]:
    """Return which rows the top fraction judges, and of which it is a fraction."""
    scope = codes[batch.start : batch.start + batch.table.num_rows] == 0
    counted = scope if top.of == "survivors" else np.ones(len(scope), np.bool_)
    if top.kinds is None:
        return scope, counted
    of_kind = mask_of(pc.is_in(batch.table.column("kind"), value_set=pa.array(top.kinds)))
    return scope & of_kind, counted & of_kind


def _plus(counts: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    found = np.bincount(groups, minlength=size)
    found[: len(counts)] += counts
    return found


def _amount(top: Top, group: str | None, rows: int) -> int:
    if top.count is not None:
        return top.count if isinstance(top.count, int) else top.count.get(str(group), 0)
    fraction = top.fraction.get(str(group), 0.0) if isinstance(top.fraction, dict) else top.fraction
    return int(np.floor((fraction or 0.0) * rows + 0.5))


def _apply_sample(rows: Rows, config: SelectConfig, seed: int, codes: Codes, reasons: Reasons) -> npt.NDArray[np.int16]:
    """Return how often each row is packed [N]; rows that are not drawn go."""
    copies = (codes == 0).astype(np.int16)
    sample = config.sample
    if sample is None:
        return copies
    alive: list[npt.NDArray[np.int64]] = []
    found: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.uint64], npt.NDArray[np.uint64]]] = []
    for batch in rows.batches([sample.by, "uid"]):
        score = numbers(batch.table, sample.by)
        live = np.flatnonzero((codes[batch.start : batch.start + len(score)] == 0) & np.isfinite(score))
        high, low = uid_halves(batch.table.column("uid"))
        alive.append(batch.start + live)
        found.append((score[live], high[live], low[live]))
    members = np.concatenate(alive) if alive else np.zeros(0, np.int64)
    if sample.count > MOST_COPIES * len(members):
        raise UserMistake(
            f"select.sample.count {sample.count} is more than {MOST_COPIES} times the {len(members)} rows that are left"
        )
    codes[codes == 0] = reasons.number("sample")
    copies[:] = 0
    if len(members):
        score, high, low = (np.concatenate(column) for column in zip(*found, strict=True))
        copies[members] = soft_cap(score, (high, low), sample, seed)
    codes[copies > 0] = 0
    return copies
