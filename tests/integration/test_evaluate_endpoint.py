"""The same questions to a model in this process and through the endpoint that will serve it."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from sightloom.cli import main
from sightloom.evaluation import tracked
from sightloom.evaluation.answerers import LocalAnswerer
from sightloom.evaluation.endpoint import EndpointAnswerer
from sightloom.evaluation.examples import Example
from sightloom.evaluation.result import Identity
from sightloom.model.load import load
from sightloom.model.scratch import build_folder
from sightloom.records import Answer, Conversation, Message
from sightloom.serving.engines.transformers import TransformersEngine
from sightloom.serving.listening import running

QUESTIONS = ("what colour is the circle?", "how many squares are there?", "where is the button?")


def questions(count: int) -> list[Example]:
    examples = []
    for number in range(count):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        answer = Answer("text", "x")
        asked = Message("user", QUESTIONS[number % 3], image=True)
        conversation = Conversation(str(number), "conversation", "t", "ui", (asked,), answer)
        examples.append(Example(str(number), "s", "ui", "t", buffer.getvalue(), conversation, answer, str(number)))
    return examples


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_folder("nano", QUESTIONS * 40, tmp_path_factory.mktemp("endpoint") / "nano", seed=5)


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with running(lambda: TransformersEngine(folder, "private"), name="nano") as served:
        yield served.address


@pytest.mark.parametrize(("thinking", "budget"), [(False, None), (True, 16)])
def test_endpoint_and_process_give_the_same_answers(
    folder: Path, address: str, thinking: bool, budget: int | None
) -> None:
    examples = questions(20)  # more than the 16 that are asked at once
    local = LocalAnswerer(load(str(folder)), thinking_budget=budget).answer(examples, thinking, 80)
    endpoint = EndpointAnswerer(address, thinking_budget=budget)
    assert endpoint.identity() == Identity("nano", "private"), "a folder without a manifest has no digest"
    remote = endpoint.answer(examples, thinking, 80)
    endpoint.close()
    assert [p.error for p in remote] == [None] * 20
    # An untrained model repeats the mark after the forced one; the endpoint shows no marks, the row keeps them.
    assert [p.content for p in remote] == [p.content.replace("</think>", "").strip() for p in local]
    assert [p.thinking or None for p in remote] == [p.thinking or None for p in local]
    assert [p.well_formed for p in remote] == [p.well_formed for p in local]
    assert [p.num_tokens for p in remote] == pytest.approx([p.num_tokens for p in local], abs=2)  # marks, end of turn


def test_a_checkpoint_is_measured_as_it_will_be_served(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = []
    for example in questions(6):
        assert example.image is not None
        (tmp_path / f"{example.id}.png").write_bytes(example.image)
        base = {"id": example.id, "image": f"{example.id}.png", "question": example.question, "domain": "ui"}
        lines.append(base | {"answers": ["one word", "a picture"], "type": "caption"})
        lines.append(base | {"id": f"y{example.id}", "answer": "yes", "type": "yes_no"})
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (tmp_path / "b_samples_t.jsonl").write_text(
        json.dumps({"doc_id": 0, "target": "a", "filtered_resps": ["a"], "exact_match": 1.0})
    )
    (tmp_path / "suite.yaml").write_text(
        yaml.safe_dump({
            "name": "own", "decoding": {"thinking": False, "max_new_tokens": 8},
            "sources": [
                {"kind": "jsonl", "path": str(tmp_path / "own.jsonl")},
                {"kind": "lmms_eval", "path": str(tmp_path / "b_samples_t.jsonl"), "version": "0.7", "domain": "ui"},
            ],
            "perf": {"requests": 12, "clients": [1, 4], "max_new_tokens": 6, "warm_up": 2},
        })
    )  # fmt: skip
    command = ["sightloom", "evaluate", str(tmp_path / "suite.yaml"), "--checkpoint", str(folder)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as refused:
        main()
    assert refused.value.code == 2
    assert "measures speed" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracked, "_PATIENCE_S", 0.0)
    away = ["--store", "http://127.0.0.1:9"]
    monkeypatch.setattr(sys, "argv", [*command, *away, "--serve", "--out", str(tmp_path / "out"), "--json"])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code in (0, None)
    shown = json.loads(capsys.readouterr().out)
    assert shown["errors"] == 0 and shown["run_id"] == "", "without MLflow the result is whole"
    assert "the evaluation is not in MLflow" in caplog.text
    assert shown["n"] == 6  # captions and another tool's answers count in no accuracy
    assert set(shown["domains"]["ui"]["metrics"]) >= {"accuracy", "f1", "yes_rate", "cider"}
    assert shown["imported"]["ui/t"]["exact_match"]["value"] == 1.0
    assert [(its["clients"], its["n"], its["errors"]) for its in shown["perf"]] == [(1, 12, 0), (4, 12, 0)]
    for its in shown["perf"]:
        assert 0 < its["ttft_p50_s"] <= its["ttft_p95_s"]
        assert its["tokens_per_s"] > 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Imported results" in page and "Speed of the endpoint" in page and "cider" in page
