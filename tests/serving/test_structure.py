"""Answers bound to a JSON Schema, and the schemas that are not taken."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from sightloom.serving.errors import ApiError
from sightloom.serving.protocol import ResponseFormat
from sightloom.serving.structure import MAX_DEPTH, grammar_of

from .test_app import CHAT, body

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["colour", "count", "parts"],
    "additionalProperties": False,
    "$defs": {"part": {"type": "boolean"}},
}


def formatted(schema: Any, **changes: Any) -> dict[str, Any]:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    return body(response_format=wanted, max_tokens=120, **changes)


def answer(client: TestClient, asked: dict[str, Any]) -> dict[str, Any]:
    response = client.post(CHAT, json=asked)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


@pytest.mark.parametrize("seed", range(4))
def test_even_random_weights_answer_by_the_schema_and_compactly(client: TestClient, seed: int) -> None:
    text = answer(client, formatted(SCHEMA, temperature=1.5, seed=seed))["message"]["content"]
    value = json.loads(text)
    assert list(value) == ["colour", "count", "parts"] and value["colour"] in ("red", "green", "blue")
    assert 0 <= value["count"] <= 99 and 1 <= len(value["parts"]) <= 2
    assert text.replace(", ", ",") == json.dumps(value, separators=(",", ":"))


def test_thinking_is_free_and_the_answer_behind_it_is_bound(client: TestClient) -> None:
    choice = answer(client, formatted(SCHEMA, thinking_token_budget=6, temperature=1, seed=1))
    assert choice["message"]["reasoning"] and choice["sightloom"]["thinking"] == "truncated"
    assert set(json.loads(choice["message"]["content"])) == {"colour", "count", "parts"}


def test_any_object_is_one(client: TestClient) -> None:
    asked = body(
        response_format={"type": "json_object"}, max_tokens=200, temperature=1, seed=3, reasoning_effort="none"
    )
    choice = answer(client, asked)
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    assert choice["message"]["content"].startswith("{")


def test_bound_and_free_rows_of_one_batch_do_not_touch_each_other(client: TestClient) -> None:
    free = [body(temperature=1, seed=seed, reasoning_effort="none") for seed in range(3)]
    bound = [formatted(SCHEMA, temperature=1, seed=seed) for seed in range(3)]
    alone = [answer(client, asked) for asked in free + bound]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda asked: answer(client, asked), free + bound)) == alone


deep: Any = {"type": "integer"}
for _ in range(MAX_DEPTH + 1):
    deep = {"type": "array", "items": deep}

REFUSED: list[tuple[Any, str, str]] = [
    ({"type": "string", "not": {"const": "a"}}, "invalid_schema", "not"),
    ({"type": "object", "properties": {"a": {"type": "number", "multipleOf": 2}}}, "invalid_schema", "multipleOf"),
    ({"type": "array", "uniqueItems": True}, "invalid_schema", "uniqueItems"),
    ({"type": "string", "format": "phone"}, "invalid_schema", "format"),
    ({"type": "string", "pattern": "(("}, "invalid_schema", ""),
    ({"type": "string", "pattern": "a", "maxLength": 3}, "invalid_schema", ""),
    ({"type": "nothing"}, "invalid_schema", ""),
    ({"$ref": "https://example.org/schema"}, "invalid_schema", "$ref"),
    ({"$ref": "#/nowhere"}, "invalid_schema", ""),
    ({"allOf": [{"type": "object"}, {"type": "object"}]}, "invalid_schema", "allOf"),
    ({"type": "array", "maxItems": 10**9}, "invalid_schema", "maxItems"),
    ({"properties": []}, "invalid_schema", "properties"),
    ({"anyOf": []}, "invalid_schema", "anyOf"),
    ({"enum": ["x" * 70_000]}, "schema_too_complex", ""),
    (deep, "schema_too_complex", ""),
]


@pytest.mark.parametrize(("schema", "code", "keyword"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_a_grammar_cannot_hold_is_refused_with_its_path(schema: Any, code: str, keyword: str) -> None:
    wanted = ResponseFormat.model_validate({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})
    with pytest.raises(ApiError) as caught:
        asyncio.run(grammar_of(wanted))
    assert (caught.value.status, caught.value.code) == (400, code)
    assert (caught.value.param or "").startswith("response_format.json_schema.schema")
    assert (caught.value.param or "").endswith(keyword)


def test_a_format_without_a_schema_or_with_a_foreign_key_is_refused(client: TestClient) -> None:
    for wanted, code in (
        ({"type": "json_schema"}, "missing_parameter"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "grammar": "x"}}, "unknown_parameter"),
        ({"type": "regex"}, "invalid_value"),
    ):
        assert client.post(CHAT, json=body(response_format=wanted)).json()["error"]["code"] == code


@pytest.mark.parametrize("kind", ["text", "json_object"])
def test_a_schema_beside_a_form_that_has_none_is_not_ignored(client: TestClient, kind: str) -> None:
    wanted = {"type": kind, "json_schema": {"name": "answer", "schema": SCHEMA}}
    reply = client.post(CHAT, json=body(response_format=wanted))
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "response_format.json_schema"
