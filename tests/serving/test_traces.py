"""Spans as a collector receives them: one request, its parts below it, the client's trace above it, nobody's words."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from sightloom.serving.app import EndpointConfig, build_app
from sightloom.serving.dispatch import LocalDispatcher, Route
from sightloom.serving.engines.base import EngineRequest
from sightloom.serving.engines.transformers import TransformersEngine

from .test_app import CHAT, body
from .test_seen import SECRET

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Noting(LocalDispatcher):
    """Keeps what the engine is asked."""

    asked: list[EngineRequest]

    async def route(self, model: str, subject: str) -> Route:
        route = await super().route(model, subject)

        def generate(request: EngineRequest) -> Any:
            self.asked.append(request)
            return route.generate(request)

        return Route(route.model, route.kind, route.generation, route.info, generate)


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An OTLP collector's HTTP side: its address and the bodies that it was sent."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                bodies.append(data)
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", bodies
    server.shutdown()
    server.server_close()


def spans_of(bodies: list[bytes]) -> list[Span]:
    found: list[Span] = []
    for data in bodies:
        message = ExportTraceServiceRequest.FromString(data)
        found += [span for one in message.resource_spans for scope in one.scope_spans for span in scope.spans]
    return found


def test_a_request_and_its_parts_reach_the_collector(
    engine: TransformersEngine, collector: tuple[str, list[bytes]]
) -> None:
    address, bodies = collector
    dispatcher = Noting("sightloom", engine)
    dispatcher.asked = []
    app = build_app(EndpointConfig(traces=address), dispatcher)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        asked = body()
        asked["messages"][0]["content"][1]["text"] = SECRET
        given = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "r-1"}
        assert client.post(CHAT, json=asked, headers=given).status_code == 200
        assert client.post(CHAT, json=body(model="gone")).status_code == 404
    first, second = (
        [span for span in spans_of(bodies) if (span.trace_id.hex() == TRACE) is ours] for ours in (True, False)
    )
    names = {span.name: span for span in first}
    whole = names.pop(f"POST {CHAT}")
    assert whole.parent_span_id.hex() == PARENT and whole.kind == Span.SPAN_KIND_SERVER
    told = {pair.key: pair.value for pair in whole.attributes}
    assert told["sightloom.request_id"].string_value == "r-1" and told["sightloom.route"].string_value == "champion"
    assert told["http.response.status_code"].int_value == 200
    assert told["gen_ai.usage.output_tokens"].int_value == 24
    above = {name: span.parent_span_id for name, span in names.items()}
    inside = {"media": whole.span_id, "engine": whole.span_id}
    inside |= {name: names["engine"].span_id for name in ("queue", "prefill", "decode")}
    assert above == inside
    for span in names.values():
        assert whole.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= whole.end_time_unix_nano
    assert dispatcher.asked[0].traceparent == f"00-{TRACE}-{whole.span_id.hex()}-01"
    (refused,) = second
    assert {pair.key: pair.value.int_value for pair in refused.attributes}["http.response.status_code"] == 404
    assert refused.status.code == Status.STATUS_CODE_UNSET, "a client's mistake is no error of the server"
    assert SECRET.encode() not in b"".join(bodies)


def test_without_a_collector_the_client_s_context_is_handed_on(engine: TransformersEngine) -> None:
    dispatcher = Noting("sightloom", engine)
    dispatcher.asked = []
    with TestClient(build_app(EndpointConfig(), dispatcher), base_url="http://127.0.0.1") as client:
        client.post(CHAT, json=body(), headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert [request.traceparent for request in dispatcher.asked] == [f"00-{TRACE}-{PARENT}-00"]
