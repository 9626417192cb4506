"""Series of shards: the values of one column, made safe as parts of file names."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

from sightloom.errors import UserMistake

MAX_SERIES = 1000
MAX_NAME = 60
NO_VALUE = "none"


def is_groupable(kind: str) -> bool:
    """Whether a column of this Arrow type can name series: words, whole numbers, yes or no."""
    return kind in ("string", "bool") or kind.startswith(("int", "uint"))


def safe_name(value: object) -> str:
    """Return a value as part of a file name: lower case, `a-z0-9` joined by single hyphens; maybe empty.

    Null is `none`.
    """
    words = NO_VALUE if value is None else str(value).lower()
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def series_of(table: pa.Table, column: str | None) -> pa.Array:
    """Return each row's series [N]; all null where no column is named.

    Raises UserMistake where a value has no safe name, two values have the same one, or there are too many.
    """
    if column is None:
        return pa.nulls(table.num_rows, pa.string())
    values = table.column(column).combine_chunks()
    distinct = pc.unique(values)
    if len(distinct) > MAX_SERIES:
        raise UserMistake(
            f"pack.group_by '{column}' has {len(distinct)} values, and each would be a series of shards",
            f"name a column with at most {MAX_SERIES} values",
        )
    known: dict[str, object] = {}
    for value in distinct.to_pylist():
        name = safe_name(value)
        if not name or len(name) > MAX_NAME:
            raise UserMistake(
                f"pack.group_by: the value {value!r} of '{column}' makes no name of a series",
                f"shards are named by 1 to {MAX_NAME} letters a-z and digits; give such values in the source",
            )
        if name in known:
            raise UserMistake(
                f"pack.group_by: the values {known[name]!r} and {value!r} of '{column}' are both named '{name}'",
                "make them equal in the source, or group by another column",
            )
        known[name] = value
    names = pa.array(list(known), pa.string())
    return names.take(pc.index_in(values, value_set=pa.array(list(known.values()), values.type)))
