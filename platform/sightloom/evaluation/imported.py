"""Logs of lmms-eval and VLMEvalKit as rows: what another tool asked and judged, shown beside our own questions.

Such rows carry the tool and its version, are never asked again, count in no measure of ours and never block a gate.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import openpyxl

from sightloom import storage
from sightloom.errors import UserMistake
from sightloom.evaluation.result import Row
from sightloom.evaluation.suites import LogSource, Suite
from sightloom.objectives.rewards import score
from sightloom.records import Answer

_SAMPLES = "_samples_"
_LETTERS: Final = "ABCDEFGHIJ"
_KNOWN: Final = {  # fields of an lmms-eval sample that are no metric
    "doc_id", "doc", "doc_hash", "prompt_hash", "target", "target_hash", "arguments", "resps", "filtered_resps",
    "input", "schema_version",
}  # fmt: skip


def read_imported(suite: Suite) -> tuple[Row, ...]:
    """The rows of every log that a suite names.

    Raises:
        UserMistake: a log is missing or is not what its kind says, with the line.
    """
    rows: list[Row] = []
    for source in suite.sources:
        if isinstance(source, LogSource):
            found = list((_lmms_eval if source.kind == "lmms_eval" else _vlmevalkit)(suite.name, source))
            if not found:
                raise UserMistake(f"'{source.path}' holds no answer")
            rows += found
    return tuple(rows)


def _lmms_eval(suite: str, source: LogSource) -> Iterator[Row]:
    """Lines of `*_samples_<task>.jsonl`, as `--log_samples` writes them; its own metrics are kept as they are."""
    name = source.path.rsplit("/", 1)[-1].removesuffix(".jsonl")
    task = source.task or (name.split(_SAMPLES, 1)[1] if _SAMPLES in name else name)
    for number, line in enumerate(storage.read_text(source.path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            sample = json.loads(line)
            answer = _first(sample["filtered_resps"])
            target = _first(sample["target"])
            id = str(sample["doc_id"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserMistake(
                f"'{source.path}' line {number} is no sample of lmms-eval: {type(error).__name__}: {error}",
                "give the file *_samples_<task>.jsonl that `--log_samples` writes",
            ) from error
        scores = {
            key: value for key, given in sample.items() if key not in _KNOWN and (value := _metric(given)) is not None
        }
        asked = sample.get("input") or (sample.get("doc") or {}).get("question") or ""
        yield _row(suite, source, task, id, str(asked), target, answer, scores)


def _vlmevalkit(suite: str, source: LogSource) -> Iterator[Row]:
    """A prediction file (xlsx, tsv, csv or json) with the columns index, question, answer, prediction.

    Its `hit` column decides where a judge has written one; otherwise the answer is judged by our own rewards, among the
    columns A, B, C … where the question has options.
    """
    name = source.path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    for number, line in enumerate(_table(source.path), start=1):
        missing = [column for column in ("index", "question", "answer", "prediction") if column not in line]
        if missing:
            raise UserMistake(
                f"'{source.path}' row {number} lacks the column '{missing[0]}'; it has {', '.join(line) or 'none'}",
                "give the prediction file that VLMEvalKit writes",
            )
        truth, said = str(line["answer"]), str(line["prediction"] if line["prediction"] is not None else "")
        hit = _metric(line.get("hit"))
        if hit is None:
            hit = score(said, _answer(line, truth)).value
        yield _row(
            suite,
            source,
            source.task or name,
            str(line["index"]),
            str(line["question"]),
            truth,
            said,
            {"accuracy": hit},
        )


def _answer(line: dict[str, Any], truth: str) -> Answer:
    options = [str(line[letter]) for letter in _LETTERS if line.get(letter) not in (None, "")]
    if options and truth in _LETTERS[: len(options)]:
        return Answer("choice", options[_LETTERS.index(truth)], tuple(options))
    if truth.casefold() in ("yes", "no"):
        return Answer("choice", truth.casefold(), ("yes", "no"))
    return Answer("text", truth)


def _table(path: str) -> Iterator[dict[str, Any]]:
    ending = path.rsplit(".", 1)[-1].lower()
    if ending == "xlsx":
        book = openpyxl.load_workbook(io.BytesIO(storage.read_bytes(path)), read_only=True, data_only=True)
        lines = book.worksheets[0].iter_rows(values_only=True)
        names = [str(name) for name in next(lines, ())]
        for line in lines:
            yield dict(zip(names, line, strict=True))
    elif ending in ("tsv", "csv"):
        text = io.StringIO(storage.read_text(path), newline="")
        yield from csv.DictReader(text, delimiter="\t" if ending == "tsv" else ",")
    elif ending == "json":
        found = json.loads(storage.read_text(path))
        if not isinstance(found, list) or not all(isinstance(line, dict) for line in found):
            raise UserMistake(f"'{path}' is no list of objects")
        yield from found
    else:
        raise UserMistake(
            f"'{path}' is no xlsx, tsv, csv or json file", "VLMEvalKit's prediction files are one of these"
        )


def _row(
    suite: str, source: LogSource, task: str, id: str, asked: str, target: str, answer: str, scores: dict[str, float]
) -> Row:
    return Row(
        suite=suite,
        id=f"{source.kind}/{task}/{id}",
        domain=source.domain,
        task=task,
        kind="imported",
        group=f"{source.kind}/{task}/{id}",
        needs_steps=False,
        image_sha256="",
        prompt=asked,
        expected=target,
        prediction=answer,
        reasoning=None,
        right=bool(scores) and next(iter(scores.values())) >= 1.0,
        scores=scores,
        thinking="off",
        well_formed=bool(answer.strip()),
        tokens=0,
        latency_ms=0.0,
        finish="",
        error=None,
        source=f"{source.kind} {source.version}",
    )


def _metric(given: Any) -> float | None:
    """A number, a truth value, or the `score` of an object; None for anything else."""
    if isinstance(given, dict):
        given = given.get("score")
    if isinstance(given, str):
        try:
            given = float(given)
        except ValueError:
            return None
    return float(given) if isinstance(given, (bool, int, float)) else None


def _first(given: Any) -> str:
    while isinstance(given, Sequence) and not isinstance(given, str):
        given = given[0] if given else ""
    return str(given)
