"""What is seen of requests: metrics under the names of the table, a JSON line a request, and no words of anybody."""

import json
import logging
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

import sightloom
from sightloom.serving.app import build_app
from sightloom.serving.auth import new_key
from sightloom.serving.config import EndpointConfig
from sightloom.serving.dispatch import LocalDispatcher
from sightloom.serving.engines.transformers import TransformersEngine
from sightloom.serving.metric_table import METRICS
from sightloom.serving.seen import Facts

from .conftest import data_url, picture
from .test_access import write

SECRET = "a sentence that nobody else may read"
ASK = {
    "model": "sightloom", "max_tokens": 12, "temperature": 0,
    "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": data_url(picture())}}, {"type": "text", "text": SECRET},
    ]}],
}  # fmt: skip


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_request_is_counted_timed_and_logged_without_its_words(
    engine: TransformersEngine, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    app = build_app(EndpointConfig(log_requests=True), LocalDispatcher("sightloom", engine))
    with TestClient(app, base_url="http://127.0.0.1") as client, caplog.at_level(logging.INFO, "sightloom.requests"):
        whole = client.post("/v1/chat/completions", json=ASK).json()
        with client.stream("POST", "/v1/chat/completions", json={**ASK, "stream": True}) as response:
            response.read()
        assert client.post("/v1/chat/completions", json={**ASK, "model": "gone"}).status_code == 404
        assert client.post("/v1/chat/completions", json={**ASK, "tools": [{}]}).status_code == 400
        text = client.get("/metrics").text
    found = samples(text)
    where = {"model": "sightloom", "version": "3", "route": "champion"}

    def value(name: str, **labels: str) -> float:
        return found[name, tuple(sorted(labels.items()))]

    assert value("sightloom_requests_total", **where, code="200", stream="false") == 1
    assert value("sightloom_requests_total", **where, code="200", stream="true") == 1
    nobody = {"model": "", "version": "", "route": ""}
    assert value("sightloom_requests_total", **nobody, code="404", stream="false") == 1
    assert value("sightloom_errors_total", **nobody, type="not_found_error", code="model_not_found") == 1
    assert value("sightloom_errors_total", **nobody, type="invalid_request_error", code="unsupported_parameter") == 1
    usage = whole["usage"]
    assert value("sightloom_tokens_total", **where, kind="image") == 2 * usage["prompt_tokens_details"]["image_tokens"]
    written = sum(value("sightloom_tokens_total", **where, kind=kind) for kind in ("reasoning", "answer"))
    assert written == 2 * usage["completion_tokens"]
    for name in ("ttft_seconds", "request_seconds", "media_seconds", "queue_seconds", "overhead_seconds"):
        assert value(f"sightloom_{name}_count", **where) == 2
    stages = {stage: value("sightloom_stage_seconds_total", **where, stage=stage)
              for stage in ("auth", "media", "queue", "prefill", "decode", "relay")}  # fmt: skip
    assert sum(stages.values()) == pytest.approx(value("sightloom_request_seconds_sum", **where), rel=1e-6)
    assert sum(count for (name, _), count in found.items() if name == "sightloom_thinking_total") == 2
    version = {"model": "sightloom", "version": "3"}
    assert value("sightloom_inflight", **version) == value("sightloom_queue_depth", **version) == 0
    assert value("sightloom_engine_up", **version) == 1 and value("sightloom_route_weight", **where) == 10_000
    assert value("sightloom_startup_seconds", **version, part="engine") > 0
    assert value("sightloom_build_info", version=sightloom.__version__) == 1
    known = {metric.full_name.removesuffix("_total") for metric in METRICS.values()}
    families = {family.name for family in text_string_to_metric_families(text)}
    assert {name for name in families if not name.endswith("_created")} <= known
    lines = [json.loads(record.message) for record in caplog.records if record.name == "sightloom.requests"]
    assert [line["status"] for line in lines] == [200, 200, 404, 400]
    assert lines[0]["tokens"]["prompt"] == usage["prompt_tokens"]
    assert lines[1]["stream"] is True and lines[1]["images"] == 1 and lines[1]["image_bytes"] == len(picture())
    assert lines[0]["ttft_ms"] <= lines[0]["total_ms"]
    shown = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith('{"time"')]
    assert shown == lines  # and as they are, on the process's stderr
    assert SECRET not in caplog.text and SECRET not in text and "base64" not in caplog.text


def test_metrics_and_state_are_for_administrators(tmp_path: Path, engine: TransformersEngine) -> None:
    infer, entry = new_key()
    admin, admin_entry = new_key(frozenset({"admin"}))
    keys = write(tmp_path / "keys.json", entry, admin_entry)
    app = build_app(EndpointConfig(keys=keys), LocalDispatcher("sightloom", engine))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        for key, status in (("", 401), (infer, 403), (admin, 200)):
            headers = {"authorization": f"Bearer {key}"} if key else {}
            for page in ("/metrics", "/admin/state"):
                assert client.get(page, headers=headers).status_code == status


def test_a_request_without_a_valid_key_is_logged_as_nobody_s(
    tmp_path: Path, engine: TransformersEngine, caplog: pytest.LogCaptureFixture
) -> None:
    key, entry = new_key()
    app = build_app(EndpointConfig(keys=write(tmp_path / "keys.json", entry)), LocalDispatcher("sightloom", engine))
    with TestClient(app, base_url="http://127.0.0.1") as client, caplog.at_level(logging.INFO, "sightloom.requests"):
        client.get("/v1/models")
        client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
    lines = [json.loads(record.message) for record in caplog.records if record.name == "sightloom.requests"]
    assert [(line["status"], line["key_id"]) for line in lines] == [(401, ""), (200, entry.id)]


def test_overhead_is_what_neither_media_nor_engine_took() -> None:
    assert Facts(ttft_s=1.0, media_s=0.25, engine_first_s=0.5).overhead_s == pytest.approx(0.25)
    assert Facts(ttft_s=1.0, media_s=0.25, engine_first_s=0.9).overhead_s == 0.0
    assert Facts(ttft_s=1.0).overhead_s is None
