"""The endpoint's answers and refusals, over the real engine."""

import gzip
import json
import time
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.serving.conftest import data_url, picture

from sightloom.serving.protocol import ChatRequest
from sightloom.serving.replies import ChatCompletion

CHAT = "/v1/chat/completions"


def body(**changes: Any) -> dict[str, Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": data_url(picture())}},
        {"type": "text", "text": "How many red circles are there?"},
    ]
    whole = {"model": "sightloom", "messages": [{"role": "user", "content": parts}], "max_tokens": 24, "temperature": 0}
    return {**whole, **changes}


def events(text: str) -> list[Any]:
    blocks = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    assert blocks[-1] == "[DONE]"
    return [json.loads(block) for block in blocks[:-1]]


def test_an_answer_has_the_documented_shape(client: TestClient) -> None:
    response = client.post(CHAT, json=body(), headers={"x-request-id": "abc-1"})
    assert response.status_code == 200, response.text
    answer = ChatCompletion.model_validate(response.json())
    assert isinstance(answer.choices[0].message.content, str)
    assert answer.usage.prompt_tokens_details.image_tokens == 16
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert response.headers["x-request-id"] == "abc-1"
    assert response.headers["x-sightloom-model"] == "sightloom:3"
    assert response.headers["x-sightloom-route"] == "champion"
    assert "total;dur=" in response.headers["server-timing"]


def test_a_stream_says_the_same_as_the_whole_answer(client: TestClient) -> None:
    whole = client.post(CHAT, json=body(reasoning_effort="minimal", seed=5, temperature=1.0, max_tokens=40)).json()
    asked = body(
        reasoning_effort="minimal", seed=5, temperature=1.0, max_tokens=40, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    response = client.post(CHAT, json=asked)
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events(response.text)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    message = whole["choices"][0]["message"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == (message["reasoning"] or "")
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == (message["reasoning_content"] or "")
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
    finishes = [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]]
    assert [finish for finish in finishes if finish] == [whole["choices"][0]["finish_reason"]]


def test_thinking_is_separated_bounded_and_counted(client: TestClient) -> None:
    asked = {"thinking_token_budget": 5, "max_tokens": 60, "temperature": 1.0, "seed": 1}
    answer = client.post(CHAT, json=body(**asked)).json()
    choice = answer["choices"][0]
    assert choice["sightloom"]["thinking"] == "truncated"  # random weights close nothing by themselves
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 6  # the closing mark is counted, too
    assert choice["message"]["reasoning"] == choice["message"]["reasoning_content"]
    hidden = client.post(CHAT, json=body(**asked, include_reasoning=False)).json()
    assert hidden["choices"][0]["message"]["reasoning"] is None
    assert hidden["usage"] == answer["usage"]
    assert hidden["choices"][0]["message"]["content"] == choice["message"]["content"]


@pytest.mark.parametrize(
    "off",
    [{"reasoning_effort": "none"}, {"thinking_token_budget": 0}, {"chat_template_kwargs": {"enable_thinking": False}}],
)
def test_the_three_ways_to_switch_thinking_off_are_one(client: TestClient, off: dict[str, Any]) -> None:
    answer = client.post(CHAT, json=body(**off)).json()
    reference = client.post(CHAT, json=body(reasoning_effort="none")).json()
    assert answer["choices"] == reference["choices"]
    assert answer["usage"] == reference["usage"]


def test_samples_differ_and_a_seed_reproduces_them(client: TestClient) -> None:
    asked = body(n=3, temperature=1.0, seed=11)
    first, second = client.post(CHAT, json=asked).json(), client.post(CHAT, json=asked).json()
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert len(set(texts)) == 3
    assert texts == [choice["message"]["content"] for choice in second["choices"]]
    assert first["usage"]["completion_tokens"] >= 3


def test_a_stop_string_cuts_the_answer_and_ends_it(client: TestClient) -> None:
    asked = {"reasoning_effort": "none", "seed": 3, "temperature": 1.0, "max_tokens": 60}
    text = client.post(CHAT, json=body(**asked)).json()["choices"][0]["message"]["content"]
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    cut = client.post(CHAT, json=body(**asked, stop=stop)).json()["choices"][0]
    assert cut["message"]["content"] == text[: text.index(stop)].rstrip()
    assert cut["finish_reason"] == "stop"


def test_several_pictures_and_turns_are_read(client: TestClient) -> None:
    parts = [{"type": "image_url", "image_url": {"url": data_url(picture(seed=i))}} for i in range(3)]
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [*parts, {"type": "text", "text": "Which?"}]},
        {"role": "assistant", "content": "The first.", "reasoning_content": "old", "tool_calls": None, "refusal": None},
        {"role": "user", "content": "Why?"},
    ]
    answer = client.post(CHAT, json=body(messages=messages))
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 48


def test_what_asks_for_nothing_is_accepted(client: TestClient) -> None:
    nothing = {
        "tools": [], "tool_choice": "none", "logprobs": False, "logit_bias": {}, "store": False, "user": "u",
        "metadata": {"a": "b"}, "frequency_penalty": 0, "n": 1, "response_format": {"type": "text"}, "audio": None,
        "max_completion_tokens": 24, "stop": [], "foo": None,
    }  # fmt: skip
    assert client.post(CHAT, json=body(**nothing)).status_code == 200


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"temprature": 1}, "unknown_parameter", "temprature"),
    ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
    ({"logprobs": True}, "unsupported_parameter", "logprobs"),
    ({"tool_choice": "auto"}, "unsupported_parameter", "tool_choice"),
    ({"store": True}, "unsupported_parameter", "store"),
    ({"min_p": 0.1}, "unsupported_parameter", "min_p"),
    ({"presence_penalty": 1}, "unsupported_parameter", "presence_penalty"),
    ({"ignore_eos": True}, "unsupported_parameter", "ignore_eos"),
    ({"sightloom": {"self_consistency": {"n": 4}}}, "invalid_value", "temperature"),
    ({"sightloom": {"self_consistency": {"n": 17}}}, "invalid_value", "sightloom.self_consistency.n"),
    ({"n": 2, "temperature": 1, "sightloom": {"self_consistency": {"n": 4}}}, "invalid_value", "n"),
    ({"temperature": 3}, "invalid_value", "temperature"),
    ({"temperature": "1"}, "invalid_value", "temperature"),
    ({"top_p": 0}, "invalid_value", "top_p"),
    ({"n": 9}, "invalid_value", "n"),
    ({"n": 2}, "invalid_value", "n"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"max_completion_tokens": 25}, "invalid_value", "max_tokens"),
    ({"stop": ["a"] * 5}, "invalid_value", "stop"),
    ({"seed": 2**63}, "invalid_value", "seed"),
    ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    ({"reasoning_effort": "none", "thinking_token_budget": 4}, "invalid_value", "thinking_token_budget"),
    ({"reasoning_effort": "low", "thinking_token_budget": 4}, "invalid_value", "thinking_token_budget"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": None}, "missing_parameter", "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "missing_parameter", "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x", "name": "n"}]}, "unsupported_parameter", "messages[0].name"),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "invalid_value", "messages[0].content[0]"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "invalid_value", "messages[0].role"),
    ({"messages": [{"role": "user", "content": "a<|im_start|>b"}]}, "invalid_value", "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x" * 200_001}]}, "invalid_value", "messages"),
    ({"messages": [{"role": "user", "content": "word " * 9000}]}, "context_length_exceeded", "messages"),
    ({"messages": [{"role": "user", "content": "x"}] * 10_000}, "invalid_value", "messages"),
]


@pytest.mark.parametrize(("change", "code", "param"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_served_is_refused_with_code_and_path(
    client: TestClient, change: dict[str, Any], code: str, param: str
) -> None:
    for stream in (False,) if "stream_options" in change else (False, True):
        response = client.post(CHAT, json=body(**change, stream=stream))
        error = response.json()["error"]
        assert response.status_code == 400, response.text
        assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")


def test_an_unknown_parameter_names_the_nearest(client: TestClient) -> None:
    assert "'temperature'" in client.post(CHAT, json=body(temprature=1)).json()["error"]["message"]


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[1]", b'"x"', b'{"a": NaN}', b"\xff", b"[" * 100_000, b'{"model": "\\ud800"}', b"1" * 5000]
)
def test_a_body_that_is_no_json_object_is_refused(client: TestClient, raw: bytes) -> None:
    response = client.post(CHAT, content=raw, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_json"


def test_ten_thousand_pictures_deep_nesting_and_huge_numbers_are_refused_quickly(client: TestClient) -> None:
    many = [{"type": "image_url", "image_url": {"url": data_url(picture(4, 4))}}] * 10_000
    deep: Any = "x"
    for _ in range(400):
        deep = {"a": [deep]}
    packed = gzip.compress(b" " * 10_000_000)
    bodies: list[tuple[dict[str, Any], int]] = [
        ({"json": body(messages=[{"role": "user", "content": many}])}, 400),
        ({"json": body(metadata={"deep": deep}, foo=deep)}, 400),
        ({"json": body(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": deep}})}, 400),
        ({"content": json.dumps(body()).replace("24", "1" + "0" * 4000)}, 400),
        ({"content": json.dumps(body()).replace("24", "1e999")}, 400),
        ({"content": packed, "headers": {"content-type": "application/json", "content-encoding": "gzip"}}, 415),
    ]
    for asked, status in bodies:
        headers = {"content-type": "application/json", **asked.pop("headers", {})}
        began = time.monotonic()
        response = client.post(CHAT, **asked, headers=headers)
        assert response.status_code == status, response.text[:300]
        assert time.monotonic() - began < 2


def test_every_status_has_the_error_shape(client: TestClient) -> None:
    cases = {
        client.post(CHAT, json=body(model="other")): (404, "model_not_found"),
        client.post(CHAT, json=body(model="sightloom:9")): (404, "model_not_found"),
        client.post(CHAT, json=body(model="a b/../c")): (404, "model_not_found"),
        client.get("/v1/models/other"): (404, "model_not_found"),
        client.get("/nothing"): (404, "not_found"),
        client.get("/playground/../app.py"): (404, "not_found"),
        client.get(CHAT): (405, "method_not_allowed"),
        client.post(CHAT, content=b"{}", headers={"content-type": "text/plain"}): (415, "unsupported_media_type"),
        client.post(CHAT, content=b" " * (25 * 2**20), headers={"content-type": "application/json"}): (
            413,
            "request_too_large",
        ),
    }
    for response, (status, code) in cases.items():
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == code
        assert response.headers["x-request-id"]


def test_models_are_listed_and_shown(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["sightloom", "sightloom@champion", "sightloom:3"]
    one = client.get("/v1/models/sightloom").json()
    assert one == listed["data"][0]
    assert one["sightloom"]["version"] == "3" and one["sightloom"]["engine"] == "transformers"
    assert client.post(CHAT, json=body(model="sightloom:3")).headers["x-sightloom-route"] == "pin"


def test_administrators_see_routes_engines_and_limits(client: TestClient) -> None:
    state = client.get("/admin/state").json()
    engine = state["apps"]["sightloom"]
    assert engine["info"]["kind"] == "transformers" and engine["info"]["version"] == "3"
    assert engine["info"]["limits"] and engine["load"]["alive"] and engine["startup"]["engine"] > 0
    assert state["limits"]["max_in_flight"] == 512 and state["limits"]["in_flight"] == 0
    assert state["limits"]["keys"].get("loopback", {}).get("running", 0) == 0


def test_health_and_readiness(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["models"] == {"sightloom": {"champion": "3", "ready": True, "replicas": 1}}


def test_the_schema_describes_request_answer_and_errors(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    chat = schema["paths"][CHAT]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/ChatRequest")
    assert "text/event-stream" in chat["responses"]["200"]["content"]
    assert {"400", "401", "404", "413", "429", "500"} <= set(chat["responses"])
    assert set(schema["components"]["schemas"]["ChatRequest"]["properties"]) == set(ChatRequest.model_fields)
    references = set(json.dumps(schema).split('"#/components/schemas/')[1:])
    assert {reference.split('"')[0] for reference in references} <= set(schema["components"]["schemas"])


def test_the_page_of_foreign_documentation_is_not_served(client: TestClient) -> None:
    assert client.get("/docs").status_code == 404
    assert client.get("/redoc").status_code == 404
