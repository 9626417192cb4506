"""Where the selection cuts the columns, and what each cut would cost alone."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sightloom.data.dedup.duplicates import mask_of, numbers
from sightloom.data.select.config import Top
from sightloom.data.sources.records import OK


def rule_cuts(rules: Iterable[str]) -> dict[str, list[float]]:
    """Return the numbers that rules compare columns with, by column: `min(width, height) >= 200` cuts both at 200."""
    cuts: dict[str, list[float]] = {}
    for rule in rules:
        for node in ast.walk(ast.parse(rule, mode="eval")):
            if isinstance(node, ast.Compare):
                for pair in itertools.pairwise([node.left, *node.comparators]):
                    for one, other in (pair, pair[::-1]):
                        value = _number(other)
                        for name in _columns(one) if value is not None else ():
                            cuts.setdefault(name, []).append(value or 0.0)
    return {name: sorted(set(values)) for name, values in cuts.items()}


def _number(node: ast.expr) -> float | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _number(node.operand)
        return None if value is None else -value
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    return None


def _columns(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
        return [name for argument in node.args for name in _columns(argument)]
    return []


def tops_alone(table: pa.Table, tops: Iterable[Top]) -> dict[str, int]:
    """Return how many usable rows each top would drop if nothing else dropped any."""
    usable = mask_of(pc.equal(table.column("status"), OK))
    alone: dict[str, int] = {}
    for top in tops:
        scope = usable.copy()
        if top.kinds is not None:
            scope &= mask_of(pc.is_in(table.column("kind"), value_set=pa.array(top.kinds)))
        scored = np.isfinite(numbers(table, top.by))
        groups = np.full(table.num_rows, "", dtype=object)
        if top.per is not None:
            groups[:] = [str(value) for value in table.column(top.per).to_pylist()]
        dropped = 0
        for group in set(groups[scope]):
            members = scope & (groups == group)
            counted = members if top.of == "survivors" else groups == group
            rows = int(counted.sum())
            best = min(_amount(top, group, rows), int((members & scored).sum()))
            dropped += int(members.sum()) - best
        alone[f"top_{top.by}"] = alone.get(f"top_{top.by}", 0) + dropped
    return alone


def _amount(top: Top, group: str, rows: int) -> int:
    given = top.count if top.count is not None else top.fraction
    value = given.get(group, 0) if isinstance(given, Mapping) else given
    return int(value or 0) if top.count is not None else int(np.floor((value or 0.0) * rows + 0.5))
