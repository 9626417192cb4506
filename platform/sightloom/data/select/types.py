"""Whether a selection fits the types of its columns: told before anything is scored, not after."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from sightloom.data.select.choose import Compiled
from sightloom.errors import UserMistake


def check_types(selection: Compiled, types: Mapping[str, str]) -> None:
    """Compute every expression on one made-up row; UserMistake where that fails or gives what is no answer or score.

    Args:
        selection: with columns that there are.
        types: the type of every stored column, as Arrow names it.
    """
    table = pa.table({name: _anything(kind) for name, kind in _known(types).items()})
    for name, derived in selection.derive.items():
        with_name = f"select.derive '{name}'"
        try:
            table = table.append_column(name, derived(table))
        except UserMistake as error:
            raise UserMistake(f"{with_name}: {error.message}", error.hint) from error
    for name, rule in selection.rules.items():
        try:
            rule.mask(table)
        except UserMistake as error:
            raise UserMistake(f"rule '{name}': {error.message}", error.hint) from error
    scores = {f"select.top.{number}.by": top.by for number, top in enumerate(selection.config.all_tops)}
    scores |= {"select.sample.by": selection.config.sample.by} if selection.config.sample is not None else {}
    for key, name in scores.items():
        require_number(key, name, table.schema.field(name).type)


def require_number(key: str, column: str, kind: pa.DataType | str) -> None:
    """Raise UserMistake where a column that is to rank rows holds no numbers."""
    kind = _known({column: kind}).get(column) if isinstance(kind, str) else kind
    if kind is None or not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise UserMistake(f"{key}: '{column}' holds no numbers", "name a score, or a signal such as sharpness")


def _anything(kind: pa.DataType) -> pa.Array:
    return pa.array(["a" if pa.types.is_string(kind) else 1]).cast(kind)


def _known(types: Mapping[str, str]) -> dict[str, pa.DataType]:
    """Return the types that have a plain name; the others (hashes) are no use in an expression."""
    found: dict[str, pa.DataType] = {}
    for name, kind in types.items():
        try:
            found[name] = pa.type_for_alias(kind)
        except ValueError:
            continue
    return found
