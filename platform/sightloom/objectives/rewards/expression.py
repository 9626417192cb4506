"""Mathematical expressions in LaTeX or plain signs: read into a tree, evaluated in floating point.

A tree is a number, a name, or (operation, operands …). Length and depth are bounded, so that no text takes long.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

Tree = float | str | tuple[Any, ...]

MAX_CHARS: Final = 300
MAX_DEPTH: Final = 25
_TOKEN = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d{1,2}(?![\d.]))?|\.\d+|\\[a-zA-Z]+|[a-zA-Z]+|\*\*|[-+*/^(){}\[\]|%°!_]")
_ALIASES: Final = {"−": "-", "×": "*", "·": "*", "÷": "/", "π": "\\pi ", "√": "\\sqrt ", "∞": "\\infty ", "**": "^"}
_DROPPED = re.compile(
    r"\\(?:text|mathrm|mbox|textbf|operatorname)\s*\{[^{}]*\}|\^\s*\{?\s*\\circ\s*\}?|\\(?:degree|quad|qquad)"
)
_FUNCTIONS: Final[Mapping[str, Callable[[float], float]]] = {
    "sqrt": math.sqrt, "sin": math.sin, "cos": math.cos, "tan": math.tan, "ln": math.log, "log": math.log10,
    "exp": math.exp, "arcsin": math.asin, "arccos": math.acos, "arctan": math.atan, "abs": abs,
    "%": lambda percent: percent / 100,
}  # fmt: skip
_CONSTANTS: Final = {"pi": math.pi, "e": math.e, "infty": math.inf, "inf": math.inf, "infinity": math.inf}
_OPENING: Final = {"(": ")", "{": "}", "[": "]"}


class NotMathematics(Exception):
    """The text is no expression; the message is the reward's reason."""


def parse(text: str) -> Tree:
    """The tree of one expression; raises NotMathematics."""
    if len(text) > MAX_CHARS:
        raise NotMathematics("too long for an expression")
    for sign, meaning in _ALIASES.items():
        text = text.replace(sign, meaning)
    text = _DROPPED.sub(" ", text)
    tokens = _TOKEN.findall(text)
    if sum(len(token) for token in tokens) != len(re.sub(r"\s", "", text)) or not tokens:
        raise NotMathematics("no expression")
    reader = _Reader([token.removeprefix("\\") if token[0] == "\\" else token for token in tokens])
    tree = reader.sum(0)
    if reader.ahead:
        raise NotMathematics("no expression")
    return tree


def variables(tree: Tree) -> set[str]:
    """The names whose values are free."""
    if isinstance(tree, str):
        return set() if tree in _CONSTANTS else {tree}
    if isinstance(tree, tuple):
        return set().union(*(variables(operand) for operand in tree[1:]))
    return set()


def value(tree: Tree, point: Mapping[str, float]) -> float | None:
    """The value at a point; None where there is none (a division by zero, the root of a negative number, overflow)."""
    try:
        found = _value(tree, point)
    except (ArithmeticError, ValueError):
        return None
    return None if isinstance(found, complex) or math.isnan(found) else found


def unfinished(tree: Tree) -> bool:
    """Whether something in it is left to be worked out: fractions added or multiplied, a division without remainder."""
    if not isinstance(tree, tuple):
        return False
    operation, *operands = tree
    if operation in "+-*/^" and operands[0] != -1.0 and all(map(_is_fraction, operands)):
        result = value(tree, {})
        if operation in "+-*" or (result is not None and result == round(result)):
            return True
    return any(map(unfinished, operands))


def _is_fraction(tree: Tree) -> bool:
    """Whether it is written as a number or a fraction of two, with any sign."""
    if isinstance(tree, tuple) and (tree[0] == "/" or tree[:2] == ("*", -1.0)):
        return all(map(_is_fraction, tree[1:]))
    return isinstance(tree, float)


def _value(tree: Tree, point: Mapping[str, float]) -> float:
    if isinstance(tree, float):
        return tree
    if isinstance(tree, str):
        return _CONSTANTS[tree] if tree in _CONSTANTS else point[tree]
    operation, *rest = tree
    operands = [_value(operand, point) for operand in rest]
    if operation in _FUNCTIONS:
        return float(_FUNCTIONS[operation](operands[0]))
    left, right = operands
    if operation == "^":
        return float(left**right) if left >= 0 or right == round(right) else -((-left) ** right) * _odd_root(right)
    return {"+": left + right, "-": left - right, "*": left * right}[operation] if operation != "/" else left / right


def _odd_root(power: float) -> float:
    """1 for the power 1/n of a negative number with an odd n; raises ValueError for others."""
    if power != 0 and abs(1 / power - round(1 / power)) < 1e-9 and round(1 / power) % 2:
        return 1.0
    raise ValueError("a root of a negative number")


class _Reader:
    """Reads tokens by recursive descent; two operands side by side are multiplied."""

    def __init__(self, tokens: list[str]) -> None:
        self.ahead = tokens

    def sum(self, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            raise NotMathematics("too deep for an expression")
        tree = self._product(depth)
        while self.ahead and self.ahead[0] in "+-":
            sign = self.ahead.pop(0)
            tree = (sign, tree, self._product(depth))
        return tree

    def _product(self, depth: int) -> Tree:
        sign = 1.0
        while self.ahead and self.ahead[0] in "+-":
            sign = -sign if self.ahead.pop(0) == "-" else sign
        tree = self._power(depth)
        while self.ahead and self.ahead[0] not in "+-)}]|":
            operation = self.ahead[0]
            if operation in ("*", "/", "cdot", "times", "div"):
                self.ahead.pop(0)
                negative = self._sign()
                right: Tree = self._power(depth)
                right = ("*", -1.0, right) if negative else right
                tree = ("/" if operation in ("/", "div") else "*", tree, right)
            elif operation == "%":
                self.ahead.pop(0)
                tree = ("%", tree)
            elif operation == "°":
                self.ahead.pop(0)
            else:
                if isinstance(tree, float) and _is_number(operation):
                    raise NotMathematics("several numbers")
                tree = ("*", tree, self._power(depth))
        return tree if sign > 0 else ("*", -1.0, tree)

    def _sign(self) -> bool:
        if self.ahead and self.ahead[0] in "+-":
            return self.ahead.pop(0) == "-"
        return False

    def _power(self, depth: int) -> Tree:
        tree = self._atom(depth + 1)
        if self.ahead and self.ahead[0] in ("^", "**"):
            self.ahead.pop(0)
            negative = self._sign()
            power = self._power(depth + 1)
            return ("^", tree, ("*", -1.0, power) if negative else power)
        return tree

    def _atom(self, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            raise NotMathematics("too deep for an expression")
        if not self.ahead:
            raise NotMathematics("no expression")
        token = self.ahead.pop(0)
        if _is_number(token):
            return float(token)
        if token in _OPENING:
            tree = self.sum(depth + 1)
            self._expect(_OPENING[token])
            return tree
        if token == "|":
            tree = self.sum(depth + 1)
            self._expect("|")
            return ("abs", tree)
        if token in ("frac", "dfrac", "tfrac", "cfrac"):
            return ("/", self._part(depth), self._part(depth))
        if token in _FUNCTIONS:
            return self._function(token, depth)
        if token in _CONSTANTS:
            return token
        if token.isalpha():
            return self._name(token)
        raise NotMathematics("no expression")

    def _function(self, name: str, depth: int) -> Tree:
        if name == "sqrt" and self.ahead and self.ahead[0] == "[":
            self.ahead.pop(0)
            index = self.sum(depth + 1)
            self._expect("]")
            return ("^", self._atom(depth + 1), ("/", 1.0, index))
        if name == "log" and self.ahead[:1] == ["_"]:
            self.ahead.pop(0)
            base = self._part(depth)
            return ("/", ("ln", self._power(depth + 1)), ("ln", base))
        if self.ahead[:1] == ["^"] and name != "sqrt":  # sin^2 x
            self.ahead.pop(0)
            power = self._part(depth)
            return ("^", (name, self._power(depth + 1)), power)
        return (name, self._power(depth + 1))

    def _part(self, depth: int) -> Tree:
        """What stands in braces, or one sign: of `\\frac12` the digits are told apart."""
        if self.ahead and self.ahead[0].isdigit() and len(self.ahead[0]) > 1:
            digits = self.ahead[0]
            self.ahead[0] = digits[1:]
            return float(digits[0])
        return self._atom(depth + 1)

    def _name(self, token: str) -> Tree:
        if len(token) == 1:
            if self.ahead[:1] == ["_"]:
                self.ahead.pop(0)
                opened = self.ahead[:1] == ["{"]
                index = self.ahead.pop(1 if opened else 0) if len(self.ahead) > opened else ""
                del self.ahead[: 2 if opened else 0]
                return f"{token}_{index}"
            return token
        if len(token) > 3:
            raise NotMathematics("words, no expression")
        self.ahead[:0] = list(token[1:])  # xy is x times y
        return token[0]

    def _expect(self, token: str) -> None:
        if not self.ahead or self.ahead.pop(0) != token:
            raise NotMathematics("a bracket is missing")


def _is_number(token: str) -> bool:
    return token[0].isdigit() or token[0] == "."
