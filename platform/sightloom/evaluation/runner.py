"""The evaluation itself: ask, judge, and state each share with its uncertainty."""

import time
from collections.abc import Sequence

from sightloom.errors import UserMistake
from sightloom.evaluation.answerers import Answerer, Prediction
from sightloom.evaluation.chance import Chance, chance_level, said
from sightloom.evaluation.intervals import grouped_interval
from sightloom.evaluation.result import Decoding, DomainMeasure, Measure, Result, Row, Statistics, by_domain
from sightloom.evaluation.scoring import is_right
from sightloom.evaluation.suites import Example, suite_digest
from sightloom.progress import NullProgress, Progress


def evaluate(
    examples: Sequence[Example],
    answerer: Answerer,
    decoding: Decoding | None = None,
    statistics: Statistics | None = None,
    progress: Progress | None = None,
) -> Result:
    """Ask all examples and measure accuracy overall, per domain and per task.

    An example that could not be asked or whose answer could not be read counts as wrong and is listed.

    Raises:
        UserMistake: no examples.
    """
    if not examples:
        raise UserMistake("the suite holds no example")
    decoding, statistics = decoding or Decoding(), statistics or Statistics()
    began = time.perf_counter()
    with (progress or NullProgress()).step("evaluate", total=len(examples), unit="questions") as step:
        predictions = answerer.answer(examples, decoding.thinking, decoding.max_new_tokens, step.advance)
    seconds = time.perf_counter() - began
    rows = tuple(_judge(example, prediction) for example, prediction in zip(examples, predictions, strict=True))
    return summarize(rows, examples, decoding, statistics, seconds)


def summarize(
    rows: Sequence[Row], examples: Sequence[Example], decoding: Decoding, statistics: Statistics, seconds: float
) -> Result:
    """The measures of judged rows; `rows` and `examples` in the same order."""
    chances = {
        name: chance_level([example for example in examples if example.domain == name]) for name in by_domain(rows)
    }
    whole = chance_level(examples)
    return Result(
        overall=_accuracy(rows, statistics),
        domains={name: _domain(part, chances[name], statistics) for name, part in by_domain(rows).items()},
        tasks={
            name: _accuracy([row for row in rows if f"{row.domain}/{row.task}" == name], statistics)
            for name in sorted({f"{row.domain}/{row.task}" for row in rows})
        },
        needs_steps=_steps(rows, statistics),
        format=_share("well_formed", [(row.group, row.well_formed) for row in rows], statistics),
        chance_constant=whole.constant,
        chance_uniform=whole.uniform,
        errors=sum(row.error is not None for row in rows),
        suite=examples[0].suite,
        suite_digest=suite_digest(examples),
        decoding=decoding,
        statistics=statistics,
        seconds=seconds,
        rows=tuple(rows),
    )


def _judge(example: Example, prediction: Prediction) -> Row:
    answers = (example.answer, *example.also)
    return Row(
        suite=example.suite,
        id=example.id,
        domain=example.domain,
        task=example.task,
        group=example.group,
        needs_steps=example.needs_steps,
        image_sha256=example.image_sha256,
        prompt=example.question,
        expected=" | ".join(said(answer) for answer in answers),
        prediction=prediction.content,
        reasoning=prediction.thinking,
        right=prediction.error is None and any(is_right(prediction.content, answer) for answer in answers),
        thinking=prediction.thinking_outcome,
        well_formed=prediction.well_formed,
        tokens=prediction.num_tokens,
        latency_ms=round(prediction.latency_ms, 3),
        finish=prediction.finish,
        error=prediction.error,
    )


def _domain(rows: Sequence[Row], chance: Chance, statistics: Statistics) -> DomainMeasure:
    measure = _accuracy(rows, statistics)
    return DomainMeasure(
        measure.metric,
        measure.value,
        measure.n,
        measure.ci,
        chance.constant,
        chance.uniform,
        _steps(rows, statistics),
    )


def _steps(rows: Sequence[Row], statistics: Statistics) -> Measure | None:
    hard = [row for row in rows if row.needs_steps]
    return _accuracy(hard, statistics) if hard else None


def _accuracy(rows: Sequence[Row], statistics: Statistics) -> Measure:
    return _share("accuracy", [(row.group, row.right) for row in rows], statistics)


def _share(metric: str, marks: Sequence[tuple[str, bool]], statistics: Statistics) -> Measure:
    values = [float(mark) for _, mark in marks]
    interval = grouped_interval(
        values, [group for group, _ in marks], statistics.confidence, statistics.resamples, statistics.seed
    )
    return Measure(metric, sum(values) / len(values), len(values), interval)
