"""What is right by chance: the score of a model that never looks at the picture."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sightloom.evaluation.examples import Example
from sightloom.evaluation.scoring import is_right
from sightloom.records import Answer

_CANDIDATES = 25  # the best constant answer is among a task's most frequent ones


@dataclass(frozen=True, slots=True)
class Chance:
    """Expected accuracy without looking.

    `constant`: the best single answer for each task, chosen with the answers in hand (so the strictest of the two).
    `uniform`: an answer drawn evenly from the options, from the task's distinct answers, or a point from the picture;
    None where that is not defined (boxes, bare points).
    """

    constant: float
    uniform: float | None


def chance_level(examples: Sequence[Example]) -> Chance:
    """The chance level of one or more examples; captions have none and count nowhere."""
    tasks: defaultdict[tuple[str, str], list[Answer]] = defaultdict(list)
    examples = [example for example in examples if example.kind != "caption"]
    if not examples:
        return Chance(0.0, None)
    for example in examples:
        tasks[example.domain, example.task].append(example.answer)
    constant = sum(_best_constant(answers) for answers in tasks.values())
    uniform = [_uniform(answer, answers) for answers in tasks.values() for answer in answers]
    known = [value for value in uniform if value is not None]
    total = len(examples)
    return Chance(constant / total, sum(known) / total if len(known) == total else None)


def _best_constant(answers: Sequence[Answer]) -> int:
    """How many of a task's questions the best constant answer gets right."""
    candidates = Counter(said(answer) for answer in answers).most_common(_CANDIDATES)
    return max(sum(is_right(content, answer) for answer in answers) for content, _ in candidates)


def _uniform(answer: Answer, task: Sequence[Answer]) -> float | None:
    if answer.options:
        return 1 / len(answer.options)
    if answer.kind == "point" and len(answer.value) == 4:
        x1, y1, x2, y2 = answer.value
        return abs(x2 - x1) * abs(y2 - y1) / 1e6
    if answer.kind in ("point", "box"):
        return None
    return 1 / len({said(other) for other in task})


def said(answer: Answer) -> str:
    """A right answer in words, as a model would say it."""
    value = answer.value
    if answer.kind == "point":
        x, y = ((value[0] + value[2]) / 2, (value[1] + value[3]) / 2) if len(value) == 4 else value
        return f"[{x:g}, {y:g}]"
    if answer.kind == "box":
        return "[" + ", ".join(f"{side:g}" for side in value) + "]"
    if answer.kind == "list":
        return ", ".join(str(item) for item in value)
    return f"{value:g}" if answer.kind == "number" else str(value)
