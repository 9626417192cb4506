import base64
import hashlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sightloom.config import validate
from sightloom.errors import UserMistake
from sightloom.evaluation.answerers import LocalAnswerer
from sightloom.evaluation.endpoint import EndpointAnswerer, chat_body
from sightloom.evaluation.examples import Example, suite_digest
from sightloom.evaluation.jsonl import from_jsonl
from sightloom.evaluation.judge import judge
from sightloom.evaluation.report import Subject, render
from sightloom.evaluation.result import Decoding, Statistics
from sightloom.evaluation.runner import summarize
from sightloom.model.chat import Encoder
from sightloom.model.load import load

from .conftest import example, png


def test_a_local_model_answers_the_same_alone_and_in_a_batch_and_survives_a_broken_picture(nano: Path) -> None:
    vlm = load(str(nano))
    examples = [
        example("a", "red", image=png("red", 64)),
        example("broken", image=b"no picture"),
        example("b", "blue", image=png("blue", 32)),
        example("words", image=png("green", 64), task="a longer question about the colour"),
    ]
    ticks: list[int] = []
    batched = LocalAnswerer(vlm).answer(examples, None, 12, ticks.append)
    alone = [LocalAnswerer(vlm, batch_size=1).answer([one], None, 12)[0] for one in examples]
    assert [p.content for p in batched] == [p.content for p in alone]
    assert [p.id for p in batched] == [one.id for one in examples]
    assert sum(ticks) == len(examples)
    assert batched[1].error is not None
    assert "unreadable image" in batched[1].error
    assert not batched[1].well_formed
    assert all(p.num_tokens <= 12 and p.error is None for p in (batched[0], batched[2]))


def test_thinking_that_had_to_be_closed_is_truncated_and_not_well_formed(nano: Path) -> None:
    answerer = LocalAnswerer(load(str(nano)), thinking_budget=4)
    prediction = answerer.answer([example("a", image=png("red", 64))], True, 24)[0]
    assert prediction.thinking is not None
    assert prediction.thinking_outcome == "truncated"
    assert not prediction.well_formed


class Endpoint(BaseHTTPRequestHandler):
    """An OpenAI-compatible edge that is busy at first, and breaks on demand."""

    models = ("sightloom",)
    seen: list[dict[str, Any]]
    busy: set[str]

    def do_GET(self) -> None:
        if self.headers.get("authorization") != "Bearer sl-key":
            return self._send(401, {"error": {"message": "no"}})
        return self._send(200, {"data": [{"id": name} for name in self.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        question = body["messages"][-1]["content"][-1]["text"]
        if question not in self.busy:
            self.busy.add(question)
            return self._send(429, {"error": {"message": "busy"}}, {"retry-after": "0"})
        self.seen.append(body)
        if "fail" in question:
            return self._send(500, {"error": {"message": "engine_error"}})
        if "odd" in question:
            return self._send(200, {"choices": []})
        message = {"content": " red ", "reasoning_content": "it looks red"}
        choice = {"message": message, "finish_reason": "stop", "sightloom": {"thinking": "complete"}}
        return self._send(200, {"choices": [choice], "usage": {"completion_tokens": 9}})

    def _send(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[tuple[str, type[Endpoint]]]:
    handler = type("Handler", (Endpoint,), {"seen": [], "busy": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    thread.join()
    server.server_close()


def asking(id: str, question: str) -> Any:
    one = example(id)
    message = one.conversation.messages[0]
    changed = type(message)(message.role, question, message.image)
    conversation = type(one.conversation)(id, "conversation", "colour", "art", (changed,), one.answer)
    return type(one)(id, "tests", "art", "colour", one.image, conversation, one.answer, id)


def test_an_endpoint_is_asked_with_pictures_and_busy_is_retried(endpoint: tuple[str, type[Endpoint]]) -> None:
    url, handler = endpoint
    answerer = EndpointAnswerer(f"{url}/v1/", key="sl-key", thinking_budget=7)
    assert answerer.model == "sightloom"
    found = answerer.answer([asking("1", "one"), asking("2", "fail"), asking("3", "odd")], True, 50)
    answerer.close()
    assert (found[0].content, found[0].thinking, found[0].num_tokens) == ("red", "it looks red", 9)
    assert found[0].well_formed
    assert [bool(p.error) for p in found] == [False, True, True]
    assert "HTTP 500" in str(found[1].error)
    assert "not a chat completion" in str(found[2].error)
    body = next(body for body in handler.seen if body["messages"][-1]["content"][-1]["text"] == "one")
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert (body["temperature"], body["max_completion_tokens"], body["thinking_token_budget"]) == (0, 50, 7)
    assert body["chat_template_kwargs"] == {"enable_thinking": True}
    assert len(handler.seen) == 3, "a failure is not retried"


def test_a_wrong_address_key_or_model_is_said_before_the_first_question(endpoint: tuple[str, type[Endpoint]]) -> None:
    url, handler = endpoint
    with pytest.raises(UserMistake, match="refuses the key"):
        EndpointAnswerer(url, key="wrong")
    with pytest.raises(UserMistake, match=r"no model .other.; .* serves sightloom"):
        EndpointAnswerer(url, "other", "sl-key")
    assert EndpointAnswerer(url, "sightloom:13", "sl-key").model == "sightloom:13"
    handler.models = ("a", "b")
    with pytest.raises(UserMistake, match=r"no model is named; .* serves a, b"):
        EndpointAnswerer(url, key="sl-key")
    with pytest.raises(UserMistake, match="nothing answers"):
        EndpointAnswerer("http://127.0.0.1:9")


def test_a_budget_opens_thinking_in_process_and_over_http_alike() -> None:
    decoding = validate(Decoding, {"thinking_token_budget": 7}, "test")
    assert decoding.thinking is True, "as the API reads a budget: sent alone it opens a block, too"
    body = chat_body("m", example("a"), decoding.thinking, 50, decoding.thinking_token_budget)
    assert (body["thinking_token_budget"], body["chat_template_kwargs"]) == (7, {"enable_thinking": True})
    assert validate(Decoding, {"thinking": None}, "test").thinking is None
    with pytest.raises(UserMistake, match="leave one of them out"):
        validate(Decoding, {"thinking_token_budget": 7, "thinking": False}, "test")


def pair(folder: Path, *names: str) -> Example:
    """NLVR's form: one question on two pictures."""
    for name in names:
        (folder / f"{name}.png").write_bytes(png(name, 64 if name == "red" else 32))
    line = {"id": "n", "images": [f"{name}.png" for name in names], "question": "Are both red?", "answer": "no",
            "type": "yes_no", "domain": "natural"}  # fmt: skip
    (folder / "q.jsonl").write_text(json.dumps(line))
    return from_jsonl(str(folder / "q.jsonl"))[0]


def test_a_question_on_two_pictures_is_asked_with_both_in_order(tmp_path: Path, nano: Path) -> None:
    asked = pair(tmp_path, "red", "blue")
    sent = chat_body("m", asked, None, 8, None)["messages"][0]["content"]
    urls = [base64.b64decode(part["image_url"]["url"].split(",")[1]) for part in sent[:-1]]
    assert urls == [png("red", 64), png("blue", 32)] and sent[-1] == {"type": "text", "text": "Are both red?"}

    vlm = load(str(nano))
    encoder = Encoder(vlm.processor)
    red, blue = (Image.open(io.BytesIO(image)) for image in asked.images)
    document = encoder.prompt(asked.conversation, red, None, [blue])
    assert document.image_grid_thw is not None and len(document.image_grid_thw) == 2
    assert int((document.input_ids == encoder.image_token_id).sum()) == sum(
        encoder.num_image_tokens(*image.size) for image in (red, blue)
    )
    turned = encoder.prompt(asked.conversation, blue, None, [red])
    assert turned.image_grid_thw is not None
    assert document.image_grid_thw.tolist() == turned.image_grid_thw.flip(0).tolist(), "in the order that is given"
    local = LocalAnswerer(vlm).answer([asked], None, 6)[0]
    assert local.error is None and local.num_tokens > 0

    row = judge([asked], [local])[0]
    assert row.image_sha256.split(",") == [hashlib.sha256(png(*its)).hexdigest() for its in (("red", 64), ("blue", 32))]
    result = summarize([row], [asked], Decoding(), Statistics(resamples=100), 1.0)
    assert render(Subject("two", {}), result, [asked]).count("<img") == 2
    assert suite_digest([asked]) != suite_digest([pair(tmp_path, "blue", "red")])
