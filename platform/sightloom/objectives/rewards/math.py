"""A mathematical expression, in LaTeX or plain signs: equal if it has the same value, however it is written.

Both sides are evaluated in floating point, at drawn points where they have variables: no algebra that could take for
ever, no integer that could fill the memory. An equality that holds at all points is taken for true.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sightloom.objectives.rewards.expression import NotMathematics, Tree, parse, unfinished, value, variables
from sightloom.objectives.rewards.number import EXACT
from sightloom.objectives.rewards.reward import Reward, right_or_wrong
from sightloom.records import Answer

_POINTS: Final = 12  # drawn for variables; where one side has no value there, the other must have none either
_NEEDED: Final = 4  # points with values, to call two expressions equal
_BOXED = re.compile(r"\\boxed\s*\{")
_MARKED = re.compile(r"(?:answer(?: is)?\s*[:=]?|result(?: is)?\s*[:=]?)\s*(.+)$", re.IGNORECASE | re.DOTALL)
_CLOSING: Final = {"(": ")", "[": "]", "{": "}"}
_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3})((?:,\d{3})+)(?![\d,])")


@dataclass(frozen=True, slots=True)
class _Said:
    """Expressions and what holds them together: nothing, the brackets of a tuple or an interval, or those of a set."""

    items: tuple[Tree, ...]
    brackets: str


def score_math(content: str, answer: Answer) -> Reward:
    """Right if the one expression of the content (in `\\boxed{}`, behind `answer:`, or alone) equals the true one.

    Tuples and intervals count item by item, sets in any order; of `x = 3` the right side counts. A sum of numbers is no
    answer unless the true one is: it may be the question's own.
    """
    found = _final(content)
    if found is None:
        return Reward(0.0, "boxes several answers")
    tolerance = EXACT if answer.tolerance is None else answer.tolerance
    truth = _final(str(answer.value))
    assert truth is not None  # the truth boxes nothing
    if _plain(found) == _plain(truth):
        return Reward(1.0, "right")
    try:
        said, wanted = _read(found), _read(truth)
    except NotMathematics as error:
        return Reward(0.0, str(error))
    if said.brackets != wanted.brackets or len(said.items) != len(wanted.items):
        return Reward(0.0, "wrong")
    if any(map(unfinished, said.items)) and not any(map(unfinished, wanted.items)):
        return Reward(0.0, "repeats the task: something is left to be worked out")
    if said.brackets == "{}":
        return right_or_wrong(_same_set(said.items, wanted.items, tolerance))
    pairs = zip(said.items, wanted.items, strict=True)
    return right_or_wrong(all(_equal(left, right, tolerance) for left, right in pairs))


def _final(content: str) -> str | None:
    """The expression that is meant; None where several are boxed."""
    boxed = {_plain(content[match.end() : _end(content, match.end())]): match for match in _BOXED.finditer(content)}
    if len(boxed) > 1:
        return None
    if boxed:
        (match,) = boxed.values()
        return content[match.end() : _end(content, match.end())]
    marked = _MARKED.search(content)
    return marked[1] if marked else content


def _end(text: str, start: int) -> int:
    """Where the brace that was opened before `start` closes."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text)


def _plain(text: str) -> str:
    """Without spaces, dollars and what LaTeX says about size alone."""
    text = re.sub(r"\\(?:left|right|displaystyle|,|;|!|\s|\(|\)|\[|\])|\$", "", text)
    text = re.sub(r"\\(?:d|t)frac", r"\\frac", text)
    return re.sub(r"\s+", "", text).rstrip(".")


def _read(text: str) -> _Said:
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = re.sub(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\$|\\[,;!()]", " ", text)
    text = text.replace("\\{", "{").replace("\\}", "}").strip().rstrip(".").strip()
    brackets = ""
    if text and text[0] in _CLOSING and text[-1] in ")]}" and _closes_last(text):
        inner = _parts(text[1:-1])
        if len(inner) > 1 or text[0] == "{":
            brackets, text = text[0] + text[-1], text[1:-1]
    return _Said(tuple(parse(_right_side(part)) for part in _parts(text)), brackets)


def _closes_last(text: str) -> bool:
    """Whether the bracket that opens the text is closed by its last character."""
    depth = 0
    for place, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if depth == 0:
            return place == len(text) - 1
    return False


def _parts(text: str) -> list[str]:
    """Split at the commas outside all brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _right_side(text: str) -> str:
    """Of `x = 3` the 3: what is left of it must be one letter."""
    left, equals, right = text.partition("=")
    return right if equals and re.fullmatch(r"\s*\\?[a-zA-Z]\w*\s*", left) else text


def _equal(left: Tree, right: Tree, tolerance: float) -> bool:
    names = sorted(variables(left) | variables(right))
    draw = random.Random(0)  # the same points for every pair: a score is a function
    compared = 0
    for _ in range(_POINTS if names else 1):
        point = {name: draw.uniform(0.3, 3.0) for name in names}
        ours, theirs = value(left, point), value(right, point)
        if ours is None or theirs is None:
            if ours is not theirs:
                return False
            continue
        if ours != theirs and not abs(ours - theirs) <= tolerance * max(abs(theirs), EXACT):
            return False
        compared += 1
    return compared >= (_NEEDED if names else 1)


def _same_set(said: Sequence[Tree], wanted: Sequence[Tree], tolerance: float) -> bool:
    left = list(said)
    for item in wanted:
        match = next((other for other in left if _equal(other, item, tolerance)), None)
        if match is None:
            return False
        left.remove(match)
    return True
