"""The endpoint against its own description: generated requests, valid and not, with and without a key."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from sightloom.serving.app import build_app
from sightloom.serving.auth import new_key
from sightloom.serving.config import EndpointConfig
from sightloom.serving.dispatch import LocalDispatcher
from sightloom.serving.engines.transformers import TransformersEngine

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
OPERATIONS = [
    ("/v1/chat/completions", "POST"),
    ("/v1/embeddings", "POST"),
    ("/v1/clip/score", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{model}", "GET"),
    ("/healthz", "GET"),
    ("/readyz", "GET"),
    ("/admin/state", "GET"),
]
few = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
every = pytest.mark.parametrize(("path", "method"), OPERATIONS)
POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
key, entry = new_key(frozenset({"infer", "pin"}))


@pytest.fixture(scope="module")
def keyed(engine: TransformersEngine, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    path: Path = tmp_path_factory.mktemp("keys") / "keys.json"
    free = entry.model_copy(update={"rpm": None, "tpm": None, "max_concurrent": None})
    path.write_text(json.dumps([free.model_dump(mode="json")]))
    return build_app(EndpointConfig(keys=str(path)), LocalDispatcher("sightloom", engine))


@pytest.fixture(scope="module")
def described(keyed: FastAPI) -> Iterator[Any]:
    yield schemathesis.openapi.from_asgi("/openapi.json", keyed)


def aimed(case: schemathesis.Case) -> None:
    """Let a body reach the engine: the model that is there, and an answer of few tokens."""
    if isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = "sightloom"
        if isinstance(case.body.get("max_tokens"), int) or "max_completion_tokens" not in case.body:
            case.body["max_tokens"] = case.body["max_completion_tokens"] = 2


def try_out(described: Any, path: str, method: str, mode: Any, run: Callable[[Any], None]) -> None:
    """Run `run` with generated cases of an operation."""
    operation = described[path][method]
    if (
        mode is NEGATIVE
        and operation.body is not None
        and not len(operation.body)
        and not len(operation.path_parameters)
    ):
        pytest.skip("nothing of this operation can be wrong")
    few(given(case=operation.as_strategy(generation_mode=mode))(run))()


def test_the_list_of_operations_is_whole(described: Any) -> None:
    found = {(path, method.upper()) for path, item in described.raw_schema["paths"].items() for method in item}
    assert found == set(OPERATIONS)


@every
def test_with_a_key_everything_that_happens_is_described(described: Any, path: str, method: str) -> None:
    def run(case: schemathesis.Case) -> None:
        aimed(case)
        case.call_and_validate(headers={"authorization": f"Bearer {key}"}, checks=CHECKS)

    try_out(described, path, method, POSITIVE, run)


@pytest.mark.parametrize(("path", "method"), [one for one in OPERATIONS if one[1] == "POST"])
def test_what_the_description_forbids_is_refused(described: Any, path: str, method: str) -> None:
    def run(case: schemathesis.Case) -> None:
        checks = [*CHECKS, negative_data_rejection]
        case.call_and_validate(headers={"authorization": f"Bearer {key}"}, checks=checks)

    try_out(described, path, method, NEGATIVE, run)


@every
def test_without_a_key_nothing_under_v1_opens(described: Any, path: str, method: str) -> None:
    def run(case: schemathesis.Case) -> None:
        response = case.call()
        case.validate_response(response, checks=CHECKS)
        if path.startswith("/v1/"):
            assert response.status_code == 401, response.text

    try_out(described, path, method, POSITIVE, run)
