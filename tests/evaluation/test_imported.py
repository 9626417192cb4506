import json
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from sightloom.errors import UserMistake
from sightloom.evaluation.imported import read_imported
from sightloom.evaluation.result import Statistics
from sightloom.evaluation.runner import summarize
from sightloom.evaluation.suites import Suite

from .conftest import example, row


def suite(path: Path, kind: str, **more: str) -> Suite:
    source = {"kind": kind, "path": str(path), "version": "0.7.3", "domain": "science", **more}
    return Suite.model_validate({"name": "s", "sources": [source]})


def test_lmms_evals_samples_keep_their_own_metrics(tmp_path: Path) -> None:
    # the fields that lmms-eval 0.7 writes with --log_samples, of an exact match and of POPE's metric objects
    lines = [
        {
            "doc_id": 0, "doc": {"question": "Is there a cat?"}, "target": "yes", "arguments": [["x", {}]],
            "resps": [["Yes"]], "filtered_resps": ["Yes"], "doc_hash": "d", "prompt_hash": "p", "target_hash": "t",
            "exact_match": 1.0, "pope_accuracy": {"question_id": 7, "score": 1.0, "prediction": "yes"},
        },
        {
            "doc_id": 1, "doc": {}, "target": "no", "resps": [["Yes"]], "filtered_resps": [["Yes"]],
            "input": "Is there a dog?", "exact_match": 0.0, "pope_accuracy": {"score": 0.0},
        },
    ]  # fmt: skip
    path = tmp_path / "20261128_101500_samples_pope_adv.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    rows = read_imported(suite(path, "lmms_eval"))
    assert [(its.id, its.task, its.prompt, its.expected, its.prediction, its.right) for its in rows] == [
        ("lmms_eval/pope_adv/0", "pope_adv", "Is there a cat?", "yes", "Yes", True),
        ("lmms_eval/pope_adv/1", "pope_adv", "Is there a dog?", "no", "Yes", False),
    ]
    assert rows[0].source == "lmms_eval 0.7.3"
    result = summarize([row("e0", True)], [example("e0")], _decoding(), Statistics(resamples=200), 1.0, rows)
    assert result.overall.n == 1
    assert {name: its.value for name, its in result.imported["science/pope_adv"].items()} == {
        "exact_match": 0.5, "pope_accuracy": 0.5,
    }  # fmt: skip


def _decoding() -> Any:
    from sightloom.evaluation.result import Decoding

    return Decoding()


def test_vlmevalkits_tables_are_read_in_every_form_and_judged(tmp_path: Path) -> None:
    columns = ["index", "question", "A", "B", "answer", "prediction"]
    lines: list[list[Any]] = [
        [1, "Which?", "left", "right", "B", "The answer is B."],
        [2, "Which?", "left", "right", "A", "right"],
        [3, "Is it?", None, None, "Yes", "yes"],
        [4, "Read it", None, None, "total 12", "total 12"],
    ]
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for line in (columns, *lines):
        sheet.append(line)
    book.save(tmp_path / "M_MMBench.xlsx")
    text = "\n".join("\t".join("" if cell is None else str(cell) for cell in line) for line in (columns, *lines))
    (tmp_path / "M_MMBench.tsv").write_text(text + "\n")
    (tmp_path / "M_MMBench.json").write_text(json.dumps([dict(zip(columns, line, strict=True)) for line in lines]))
    for ending in ("xlsx", "tsv", "json"):
        rows = read_imported(suite(tmp_path / f"M_MMBench.{ending}", "vlmevalkit"))
        assert [its.right for its in rows] == [True, False, True, True]
        assert {its.task for its in rows} == {"M_MMBench"}


def test_a_judges_hit_decides(tmp_path: Path) -> None:
    path = tmp_path / "judged.csv"
    path.write_text("index,question,answer,prediction,hit\n1,q,a,completely else,1\n2,q,a,a,0\n")
    assert [its.right for its in read_imported(suite(path, "vlmevalkit"))] == [True, False]


@pytest.mark.parametrize(
    ("kind", "name", "text", "message"),
    [
        ("lmms_eval", "a_samples_b.jsonl", '{"doc_id": 1}', "line 1 is no sample of lmms-eval"),
        ("lmms_eval", "a_samples_b.jsonl", "\n", "holds no answer"),
        ("vlmevalkit", "x.tsv", "index\tquestion\n1\tq\n", "lacks the column 'answer'"),
        ("vlmevalkit", "x.pkl", "", "no xlsx, tsv, csv or json"),
    ],
)
def test_what_is_no_log_is_said(tmp_path: Path, kind: str, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserMistake, match=message):
        read_imported(suite(tmp_path / name, kind))


def test_a_version_must_be_stated(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="version"):
        suite(tmp_path / "x", "lmms_eval", version="")
