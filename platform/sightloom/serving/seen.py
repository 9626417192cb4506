"""What is seen of a request once it has ended: metrics by the names of the metric table, and one JSON line in the log.

Neither holds a prompt, an answer, an address of a picture or a key's secret.
"""

import json
import logging
import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

from sightloom.serving.errors import ApiError
from sightloom.serving.meters import Meters

log = logging.getLogger("sightloom.requests")


@dataclass(slots=True)
class Facts:
    """One request as it becomes known: the chat fills it in, the gate tells it."""

    model: str = ""
    version: str = ""
    route: str = ""
    stream: bool = False
    code: str = ""
    type: str = ""
    images: int = 0
    image_bytes: int = 0
    auth_s: float = 0.0
    media_s: float | None = None
    queue_s: float | None = None
    engine_first_s: float | None = None
    engine_total_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    tokens: dict[str, int] = field(default_factory=dict)  # prompt, image, reasoning, answer
    thinking: list[str] = field(default_factory=list)
    finish: str = ""
    cancelled: str = ""  # the phase in which the client hung up: prefill or decode

    def failed(self, error: ApiError) -> None:
        """Keep the error that the request was answered with."""
        self.code, self.type = error.code, str(error.body["error"]["type"])

    @property
    def overhead_s(self) -> float | None:
        """The framework's part of the time to the first token: neither media nor engine."""
        if self.ttft_s is None or self.engine_first_s is None:
            return None
        return max(0.0, self.ttft_s - (self.media_s or 0.0) - self.engine_first_s)


class _Stderr(logging.StreamHandler[TextIO]):
    """The process's stderr as it is when a line is written."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr  # not setStream: it flushes the former one, which may be closed by now
        super().emit(record)


def write_lines() -> None:
    """Write the lines to stderr, as they are, whatever else the process logs."""
    if not any(isinstance(handler, _Stderr) for handler in log.handlers):
        log.addHandler(_Stderr())
    log.setLevel(logging.INFO)


def tell(meters: Meters, facts: Facts, request_id: str, key_id: str, status: int, seconds: float) -> None:
    """Count a request that has ended and write its line."""
    where = {"model": facts.model, "version": facts.version, "route": facts.route}
    meters.add("requests_total", 1, **where, code=str(status), stream=str(facts.stream).lower())
    meters.observe("request_seconds", seconds, **where)
    for name, value in (
        ("ttft_seconds", facts.ttft_s), ("tpot_seconds", facts.tpot_s), ("queue_seconds", facts.queue_s),
        ("media_seconds", facts.media_s), ("overhead_seconds", facts.overhead_s),
    ):  # fmt: skip
        if value is not None:
            meters.observe(name, value, **where)
    for stage, value in _stages(facts, seconds).items():
        meters.add("stage_seconds_total", value, **where, stage=stage)
    for kind, count in facts.tokens.items():
        meters.add("tokens_total", count, **where, kind=kind)
    for outcome in facts.thinking:
        meters.add("thinking_total", 1, **where, outcome=outcome)
    if facts.code:
        meters.add("errors_total", 1, **where, type=facts.type, code=facts.code)
        if facts.code in ("invalid_image", "image_too_large", "media_url_not_allowed", "media_fetch_failed"):
            meters.add("media_rejected_total", 1, reason=facts.code)
        if facts.code in ("rate_limit_exceeded", "too_many_concurrent"):
            meters.add("rate_limited_total", 1, key=key_id, kind=facts.code)
    if facts.route == "fallback":
        meters.add("fallback_total", 1, model=facts.model, reason="failed")
    if facts.cancelled:
        meters.add("cancelled_total", 1, **where, phase=facts.cancelled)
    log.info("%s", _line(facts, request_id, key_id, status, seconds))


def _stages(facts: Facts, seconds: float) -> dict[str, float]:
    """Exact seconds of each stage; `relay` is what none of the others took."""
    if facts.engine_total_s is None or facts.engine_first_s is None:
        return {"auth": facts.auth_s, **({"media": facts.media_s} if facts.media_s else {})}
    stages = {
        "auth": facts.auth_s,
        "media": facts.media_s or 0.0,
        "queue": facts.queue_s or 0.0,
        "prefill": max(0.0, facts.engine_first_s - (facts.queue_s or 0.0)),
        "decode": max(0.0, facts.engine_total_s - facts.engine_first_s),
    }
    return stages | {"relay": max(0.0, seconds - sum(stages.values()))}


def _line(facts: Facts, request_id: str, key_id: str, status: int, seconds: float) -> str:
    def ms(value: float | None) -> float | None:
        return None if value is None else round(1000 * value, 2)

    return json.dumps(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request_id": request_id,
            "key_id": key_id,
            "model": facts.model,
            "version": facts.version,
            "route": facts.route,
            "status": status,
            "code": facts.code,
            "stream": facts.stream,
            "images": facts.images,
            "image_bytes": facts.image_bytes,
            "tokens": facts.tokens,
            "media_ms": ms(facts.media_s),
            "queue_ms": ms(facts.queue_s),
            "ttft_ms": ms(facts.ttft_s),
            "tpot_ms": ms(facts.tpot_s),
            "overhead_ms": ms(facts.overhead_s),
            "total_ms": ms(seconds),
            "finish": facts.finish,
            "thinking": facts.thinking,
            "cancelled": facts.cancelled,
        }
    )
