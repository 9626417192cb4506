"""Expressions over columns, such as `min(width, height) >= 200`, read through a white list and run by Arrow.

The text is Python syntax, parsed by `ast`; nothing of it is ever run as Python. Allowed are column names, literals,
lists, `and or not in`, comparisons, `+ - * /` and the functions of `FUNCTIONS`. Null is false at the end.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from sightloom.data.signals.config import origin_of
from sightloom.errors import UserMistake

MAX_TEXT = 4000
MAX_DEPTH = 60

Value = Any  # pa.Array, pa.ChunkedArray or pa.Scalar
Node = Callable[[pa.Table], Value]

COMPARISONS: dict[type[ast.cmpop], Callable[[Value, Value], Value]] = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}
ARITHMETIC: dict[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: pc.add,
    ast.Sub: pc.subtract,
    ast.Mult: pc.multiply,
    ast.Div: lambda left, right: pc.divide(pc.cast(left, pa.float64()), pc.cast(right, pa.float64())),
}


def _z(column: Value) -> Value:
    """Return (column - mean) / standard deviation over the rows at hand; zero where all values are equal."""
    values = pc.cast(column, pa.float64())
    spread = pc.stddev(values)
    if not spread.is_valid or spread.as_py() == 0.0:
        return pc.multiply(values, 0.0)
    return pc.divide(pc.subtract(values, pc.mean(values)), spread)


def _quantile(column: Value, share: Value) -> Value:
    """Return one quantile (linear interpolation) of a column as a scalar."""
    return pc.quantile(pc.cast(column, pa.float64()), q=float(share.as_py()))[0]


def _length(column: Value) -> Value:
    """Return the number of characters of strings, or of elements of lists."""
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return pc.utf8_length(column) if is_text else pc.list_value_length(column)


FUNCTIONS: dict[str, tuple[int, int, Callable[..., Value]]] = {  # name: (fewest, most arguments, function)
    "min": (2, 16, lambda *values: pc.min_element_wise(*values, skip_nulls=False)),
    "max": (2, 16, lambda *values: pc.max_element_wise(*values, skip_nulls=False)),
    "abs": (1, 1, pc.abs),
    "len": (1, 1, _length),
    "lower": (1, 1, pc.utf8_lower),
    "coalesce": (2, 16, pc.coalesce),
    "is_null": (1, 1, lambda value: pc.is_null(value, nan_is_null=True)),
    "z": (1, 1, _z),
    "quantile": (2, 2, _quantile),
    "matches": (2, 2, lambda column, pattern: pc.match_substring_regex(column, pattern.as_py())),
}
OVER_ALL = frozenset({"z", "quantile"})  # their values depend on all rows


@dataclass(frozen=True)
class Expression:
    """A checked expression: its text, the columns that it needs, how to compute it, and whether it needs all rows."""

    text: str
    columns: tuple[str, ...]
    node: Node
    whole: bool = False

    def __call__(self, table: pa.Table) -> pa.Array:
        """Return one value a row of `table` [N]; a boolean result has its nulls made false.

        Raises UserMistake when the columns' types do not fit the operations.
        """
        try:
            value = self.node(table)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise UserMistake(
                f"`{self.text}` cannot be computed: {reason}", "compare numbers with numbers and text with text"
            ) from error
        if isinstance(value, pa.Scalar):
            value = pa.array([value.as_py()] * table.num_rows, type=value.type)
        if isinstance(value, pa.ChunkedArray):
            value = value.combine_chunks()
        return pc.fill_null(value, False) if pa.types.is_boolean(value.type) else value

    def mask(self, table: pa.Table) -> pa.BooleanArray:
        """Return the rows for which the expression is true [N]; UserMistake if it is not a yes-or-no question."""
        return self.as_mask(self(table))

    def as_mask(self, value: pa.Array) -> pa.BooleanArray:
        """Return a value of this expression as an answer; UserMistake if it is not a yes-or-no question."""
        if not pa.types.is_boolean(value.type):
            raise UserMistake(
                f"`{self.text}` gives {value.type}, not true or false", "write a comparison, such as `width >= 200`"
            )
        return value


def compile_expression(text: str, available: Sequence[str]) -> Expression:
    """Check `text` against the white list and the `available` columns.

    Raises UserMistake naming what is not allowed, or the missing column and the columns there are.
    """
    if len(text) > MAX_TEXT:
        raise UserMistake(f"an expression of {len(text)} characters is too long (at most {MAX_TEXT})")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "nested too deeply"
        raise UserMistake(f"`{text[:200]}` is not an expression: {reason}", "see select.rules in a recipe") from error
    compiler = _Compiler(text, available)
    node = compiler.node(tree, 0)
    return Expression(text, tuple(sorted(compiler.columns)), node, compiler.whole)


class _Compiler:
    """One walk over the syntax tree; each allowed node becomes a function of the table."""

    def __init__(self, text: str, available: Sequence[str]) -> None:
        self.text = text
        self.available = available
        self.columns: set[str] = set()
        self.whole = False

    def refuse(self, what: str) -> NoReturn:
        """Raise the mistake that `what` is not part of an expression."""
        raise UserMistake(
            f"`{self.text[:200]}`: {what} is not allowed",
            "allowed are columns, literals, lists, and or not in, comparisons, + - * / and " + ", ".join(FUNCTIONS),
        )

    def node(self, tree: ast.expr, depth: int) -> Node:
        """Translate one node of the syntax tree."""
        if depth > MAX_DEPTH:
            self.refuse(f"nesting over {MAX_DEPTH} deep")
        match tree:
            case ast.Constant(value=bool() | int() | float() | str() as literal):
                scalar = pa.scalar(literal)
                return lambda table: scalar
            case ast.Name(id=name):
                return self.column(name)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self.node(operand, depth + 1)
                return lambda table: pc.invert(inner(table))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                inner = self.node(operand, depth + 1)
                return lambda table: pc.negate(inner(table))
            case ast.BoolOp(op=operator, values=values):
                join = pc.and_kleene if isinstance(operator, ast.And) else pc.or_kleene
                return self.fold(join, [self.node(value, depth + 1) for value in values])
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in ARITHMETIC:
                apply = ARITHMETIC[type(operator)]
                return self.fold(apply, [self.node(left, depth + 1), self.node(right, depth + 1)])
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                return self.comparison([left, *comparators], ops, depth)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return self.call(name, args, depth)
        self.refuse(type(tree).__name__)

    def column(self, name: str) -> Node:
        """Translate a column's name."""
        if name not in self.available:
            near = difflib.get_close_matches(name, self.available, n=1)
            guess = f"did you mean '{near[0]}'? " if near else ""
            have = f"{guess}have: {', '.join(sorted(self.available))}"
            todo = origin_of(name)
            raise UserMistake(f"`{self.text[:200]}` needs column '{name}'", f"{have}; {todo}" if todo else have)
        self.columns.add(name)
        return lambda table: table.column(name)

    @staticmethod
    def fold(join: Callable[[Value, Value], Value], nodes: list[Node]) -> Node:
        """Join two or more nodes from the left."""

        def folded(table: pa.Table) -> Value:
            value = nodes[0](table)
            for node in nodes[1:]:
                value = join(value, node(table))
            return value

        return folded

    def comparison(self, operands: list[ast.expr], ops: list[ast.cmpop], depth: int) -> Node:
        """Translate `a < b <= c` and membership in a list of literals."""
        parts: list[Node] = []
        for left, operator, right in zip(operands, ops, operands[1:], strict=False):
            if isinstance(operator, ast.In | ast.NotIn):
                parts.append(self.membership(left, right, isinstance(operator, ast.NotIn), depth))
            elif type(operator) in COMPARISONS:
                compare = COMPARISONS[type(operator)]
                parts.append(self.fold(compare, [self.node(left, depth + 1), self.node(right, depth + 1)]))
            else:
                self.refuse(type(operator).__name__)
        return self.fold(pc.and_kleene, parts)

    def membership(self, left: ast.expr, right: ast.expr, negated: bool, depth: int) -> Node:
        """Translate `column in [literals]`; null stays null."""
        if not isinstance(right, ast.List | ast.Tuple):
            self.refuse("`in` without a list of literals")
        literals = [item.value for item in right.elts if isinstance(item, ast.Constant)]
        if len(literals) != len(right.elts):
            self.refuse("a list with anything but literals")
        inner = self.node(left, depth + 1)

        def member(table: pa.Table) -> Value:
            value = inner(table)
            found = pc.is_in(value, value_set=pa.array(literals, type=value.type))
            found = pc.invert(found) if negated else found
            return pc.if_else(pc.is_null(value), pa.scalar(None, pa.bool_()), found)

        return member

    def call(self, name: str, args: list[ast.expr], depth: int) -> Node:
        """Translate a call of one of `FUNCTIONS`."""
        if name not in FUNCTIONS:
            self.refuse(f"function '{name}'")
        fewest, most, function = FUNCTIONS[name]
        if not fewest <= len(args) <= most:
            raise UserMistake(f"`{self.text[:200]}`: {name} takes {fewest} to {most} arguments, got {len(args)}")
        nodes = [self.node(arg, depth + 1) for arg in args]
        self.whole |= name in OVER_ALL
        if name in ("quantile", "matches"):
            literal = args[1]
            if not isinstance(literal, ast.Constant):
                self.refuse(f"a second argument of {name} that is not a literal")
            self.check_literal(name, literal.value)
        return lambda table: function(*(node(table) for node in nodes))

    def check_literal(self, name: str, literal: object) -> None:
        """Find a bad pattern or share now rather than after hours of scoring."""
        if name == "quantile":
            if not isinstance(literal, int | float) or not 0 <= literal <= 1:
                self.refuse(f"quantile with {literal!r}, which is not between 0 and 1, ")
            return
        try:
            pc.match_substring_regex(pa.array([""]), str(literal))
        except pa.ArrowInvalid as error:
            raise UserMistake(
                f"`{self.text[:200]}`: {literal!r} is not a pattern: {error}", "patterns are RE2"
            ) from error
