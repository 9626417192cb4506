"""Every metric of the endpoint, once: what the code emits, and what dashboards and alerts may ask for (serving.md §7).

Ray's exporter puts `ray_` before the names, and `_total` behind counters that lack it. Its histograms' `_sum` is made
from bucket midpoints, so exact seconds have a counter. No label ever holds a prompt, a user or a key's secret.
"""

from dataclasses import dataclass
from typing import Final, Literal

PREFIX: Final = "sightloom_"
BUCKETS_S: Final = tuple(round(0.001 * 1.6**step, 6) for step in range(24))  # 1 ms to 49 s
_ROUTED: Final = ("model", "version", "route")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric."""

    name: str
    kind: Literal["counter", "histogram", "gauge"]
    help: str
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """As the code gives it to Ray."""
        return PREFIX + self.name

    @property
    def exported_name(self) -> str:
        """As Prometheus knows it from Ray's exporter."""
        total = "" if self.kind != "counter" or self.name.endswith("_total") else "_total"
        return f"ray_{PREFIX}{self.name}{total}"


METRICS: Final[dict[str, Metric]] = {
    metric.name: metric
    for metric in (
        Metric("requests_total", "counter", "Requests that were answered", (*_ROUTED, "code", "stream")),
        Metric("tokens_total", "counter", "Tokens: prompt, image, reasoning, answer", (*_ROUTED, "kind")),
        Metric("stage_seconds_total", "counter", "Exact seconds: auth, media, queue, prefill, decode, relay",
               (*_ROUTED, "stage")),
        Metric("errors_total", "counter", "Errors by type and code", (*_ROUTED, "type", "code")),
        Metric("cancelled_total", "counter", "Requests whose client went away", (*_ROUTED, "phase")),
        Metric("thinking_total", "counter", "Thinking: complete, truncated, off, malformed",
               (*_ROUTED, "outcome")),
        Metric("media_rejected_total", "counter", "Pictures that the guard refused", ("reason",)),
        Metric("rate_limited_total", "counter", "Requests over a key's quota", ("key", "kind")),
        Metric("fallback_total", "counter", "Champions answering for challengers", ("model", "reason")),
        Metric("shadow_total", "counter", "Shadow requests", (*_ROUTED, "outcome")),
        Metric("engine_restarts_total", "counter", "Engines that were started again", ("model", "version", "reason")),
        Metric("ledger_events_total", "counter", "Ledger events: accepted or lost", ("kind", "outcome")),
        Metric("ttft_seconds", "histogram", "Time to the first token", _ROUTED),
        Metric("tpot_seconds", "histogram", "Time for each further token", _ROUTED),
        Metric("request_seconds", "histogram", "Whole requests", _ROUTED),
        Metric("queue_seconds", "histogram", "Waiting for the engine", _ROUTED),
        Metric("media_seconds", "histogram", "Checking and decoding pictures", _ROUTED),
        Metric("overhead_seconds", "histogram", "Router's time to first token, less media and engine",
               _ROUTED),
        Metric("inflight", "gauge", "Requests that are being answered", ("model", "version")),
        Metric("queue_depth", "gauge", "Requests without a token yet", ("model", "version")),
        Metric("engine_up", "gauge", "1 while the engine lives", ("model", "version")),
        Metric("engine_running", "gauge", "Sequences in the engine's batch", ("model", "version")),
        Metric("engine_waiting", "gauge", "Sequences that wait in the engine", ("model", "version")),
        Metric("engine_kv_used", "gauge", "Share of the key-value cache in use", ("model", "version")),
        Metric("route_weight", "gauge", "Basis points of a version's traffic", ("model", "version", "route")),
        Metric("ledger_head", "gauge", "Number of the last accepted event"),
        Metric("ledger_drift", "gauge", "Aliases or routes that differ from the ledger"),
        Metric("probe_match", "gauge", "Share of a version's probes answered as registered", ("model", "version")),
        Metric("startup_seconds", "gauge", "Start of a version, by part", ("model", "version", "part")),
        Metric("build_info", "gauge", "1, with the version of the code", ("version",)),
    )
}  # fmt: skip
