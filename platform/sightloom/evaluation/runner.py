"""The evaluation itself: ask, judge, and state each share with its uncertainty."""

import time
from collections.abc import Sequence

from sightloom.errors import UserMistake
from sightloom.evaluation.answerers import Answerer
from sightloom.evaluation.captions import Cosines
from sightloom.evaluation.chance import Chance, chance_level
from sightloom.evaluation.examples import Example, suite_digest
from sightloom.evaluation.judge import judge
from sightloom.evaluation.measures import imported_means, measure, measures
from sightloom.evaluation.result import Decoding, DomainMeasure, Measure, Result, Row, Statistics, by_domain
from sightloom.progress import NullProgress, Progress


def evaluate(
    examples: Sequence[Example],
    answerer: Answerer,
    decoding: Decoding | None = None,
    statistics: Statistics | None = None,
    progress: Progress | None = None,
    cosines: Cosines | None = None,
    imported: Sequence[Row] = (),
) -> Result:
    """Ask all examples and measure them overall, per domain and per task.

    An example that could not be asked or whose answer could not be read counts as wrong and is listed.

    Args:
        examples: what is asked.
        answerer: who answers.
        decoding: how.
        statistics: how uncertainty is stated.
        progress: told as answers come in.
        cosines: scores captions without references (judge.judge).
        imported: rows of other tools' logs, shown beside and counted nowhere else.

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
    return summarize(judge(examples, predictions, cosines), examples, decoding, statistics, seconds, imported)


def summarize(
    rows: Sequence[Row],
    examples: Sequence[Example],
    decoding: Decoding,
    statistics: Statistics,
    seconds: float,
    imported: Sequence[Row] = (),
) -> Result:
    """The measures of judged rows; `rows` and `examples` in the same order."""
    whole = chance_level(examples)
    return Result(
        overall=_main(rows, statistics),
        domains={
            name: _domain(part, chance_level([example for example in examples if example.domain == name]), statistics)
            for name, part in by_domain(rows).items()
        },
        tasks={
            name: _main([row for row in rows if f"{row.domain}/{row.task}" == name], statistics)
            for name in sorted({f"{row.domain}/{row.task}" for row in rows})
        },
        needs_steps=_steps(rows, statistics),
        format={
            name: found
            for name in ("well_formed", "answered", "budget_kept")
            if (found := measure(name, rows, statistics)) is not None
        },
        imported={
            name: imported_means([row for row in imported if f"{row.domain}/{row.task}" == name], statistics)
            for name in sorted({f"{row.domain}/{row.task}" for row in imported})
        },
        chance_constant=whole.constant,
        chance_uniform=whole.uniform,
        errors=sum(row.error is not None for row in rows),
        suite=examples[0].suite,
        suite_digest=suite_digest(examples),
        decoding=decoding,
        statistics=statistics,
        seconds=seconds,
        rows=(*rows, *imported),
    )


def _domain(rows: Sequence[Row], chance: Chance, statistics: Statistics) -> DomainMeasure:
    main = _main(rows, statistics)
    return DomainMeasure(
        main.metric,
        main.value,
        main.n,
        main.ci,
        chance.constant,
        chance.uniform,
        _steps(rows, statistics),
        measures(rows, statistics),
    )


def _main(rows: Sequence[Row], statistics: Statistics) -> Measure:
    """Accuracy, or CIDEr-D where there are captions alone."""
    found = measure("accuracy", rows, statistics) or measure("cider", rows, statistics)
    assert found is not None  # a row is an answer or a caption
    return found


def _steps(rows: Sequence[Row], statistics: Statistics) -> Measure | None:
    hard = [row for row in rows if row.needs_steps and row.kind != "caption"]
    return measure("accuracy", hard, statistics) if hard else None
