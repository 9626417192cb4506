"""Traces: a span a request, with spans of its parts below it, sent by OTLP over HTTP where an address is given.

The span's context is handed on to the engine, and taken from the client's `traceparent`. No span holds a prompt, an
answer or a key.
"""

import time
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import sightloom
from sightloom.errors import UserMistake
from sightloom.serving.seen import Facts

_NS: Final = 1_000_000_000
TRACEPARENT: Final = "traceparent"


@dataclass(frozen=True, slots=True)
class Trace:
    """A request's span while it runs. `traceparent`: names it as the parent of what others do for it."""

    span: Span
    traceparent: str
    began_ns: int


class Traces:
    """Begins and ends the spans of requests.

    Args:
        address: of an OTLP collector, e.g. `http://127.0.0.1:4318`.

    Raises:
        UserMistake: the exporter is not installed.
    """

    def __init__(self, address: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415  an optional extra
                OTLPSpanExporter,
            )
        except ImportError as error:
            raise UserMistake("traces need the OTLP exporter", "install the extra 'traces'") from error
        about = {"service.name": "sightloom", "service.version": sightloom.__version__}
        self._provider = TracerProvider(resource=Resource.create(about))
        exporter = OTLPSpanExporter(endpoint=f"{address.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("sightloom.serving", sightloom.__version__)
        self._context = TraceContextTextMapPropagator()

    def begin(self, name: str, traceparent: str) -> Trace:
        """A request has come in, `traceparent` as its client sent it."""
        began_ns = time.time_ns()
        parent = self._context.extract({TRACEPARENT: traceparent})
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, start_time=began_ns)
        carrier: dict[str, str] = {}
        self._context.inject(carrier, set_span_in_context(span))
        return Trace(span, carrier[TRACEPARENT], began_ns)

    def end(self, trace: Trace, facts: Facts, request_id: str, status: int) -> None:
        """It was answered: tell how, and where its time went."""
        span, now_ns = trace.span, time.time_ns()
        span.set_attributes(_attributes(facts, request_id, status))
        if status >= 500:
            span.set_status(StatusCode.ERROR, facts.code)
        at = trace.began_ns + _ns(facts.auth_s)
        if facts.media_s is not None:
            self._part(span, "media", at, at + _ns(facts.media_s))
            at += _ns(facts.media_s)
        if facts.engine_total_s is not None and facts.engine_first_s is not None:
            begun, first = at + _ns(facts.queue_s or 0.0), at + _ns(facts.engine_first_s)
            ended = min(now_ns, at + _ns(facts.engine_total_s))
            engine = self._part(span, "engine", at, ended)
            self._part(engine, "queue", at, begun)
            self._part(engine, "prefill", begun, max(begun, first))
            self._part(engine, "decode", max(begun, first), ended)
        span.end(now_ns)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def _part(self, parent: Span, name: str, began_ns: int, ended_ns: int) -> Span:
        span = self._tracer.start_span(name, set_span_in_context(parent), start_time=began_ns)
        span.end(ended_ns)
        return span


def _attributes(facts: Facts, request_id: str, status: int) -> dict[str, Any]:
    told = {
        "http.response.status_code": status,
        "error.type": facts.code,
        "sightloom.request_id": request_id,
        "sightloom.model": facts.model,
        "sightloom.version": facts.version,
        "sightloom.route": facts.route,
        "sightloom.images": facts.images,
        "sightloom.cancelled": facts.cancelled,
        "gen_ai.usage.input_tokens": facts.tokens.get("prompt", 0),
        "gen_ai.usage.output_tokens": facts.tokens.get("reasoning", 0) + facts.tokens.get("answer", 0),
    }
    return {name: value for name, value in told.items() if value != ""}


def _ns(seconds: float) -> int:
    return round(seconds * _NS)
