"""Where the endpoint's metrics go: to Ray's exporter in a replica, to `/metrics` in a process of its own."""

import threading
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

import prometheus_client
from ray.util import metrics as ray_metrics

from sightloom.serving.metric_table import BUCKETS_S, METRICS

AGAIN_S: Final = 5.0


class Meters(Protocol):
    """Takes measurements under the names of the metric table; every label of a metric must be given."""

    def add(self, name: str, value: float, **labels: str) -> None:
        """Raise a counter."""

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Put a duration into a histogram."""

    def set(self, name: str, value: float, **labels: str) -> None:
        """Say a gauge's value."""


class RayMeters:
    """Through Ray: its agents export them on every node, and put `ray_` before the names.

    They forget a gauge that is not said for twenty seconds, so the last values are said again and again.
    """

    def __init__(self, again_s: float = AGAIN_S) -> None:
        self._made: dict[str, Any] = {}
        self._again_s = again_s
        self._said: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._repeating = False

    def add(self, name: str, value: float, **labels: str) -> None:
        """Raise a counter."""
        if value > 0:  # Ray refuses to raise by nothing
            self._metric(name).inc(value, labels)

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Put a duration into a histogram."""
        self._metric(name).observe(seconds, labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Say a gauge's value."""
        self._said[name, tuple(sorted(labels.items()))] = value
        self._metric(name).set(value, labels)
        if not self._repeating:
            self._repeating = True
            threading.Thread(target=self._repeat, name="gauges", daemon=True).start()

    def _repeat(self) -> None:
        while True:
            time.sleep(self._again_s)
            for (name, labels), value in list(self._said.items()):
                self._metric(name).set(value, dict(labels))

    def _metric(self, name: str) -> Any:
        if name not in self._made:
            about = METRICS[name]
            more: Mapping[str, Any] = {"boundaries": list(BUCKETS_S)} if about.kind == "histogram" else {}
            kinds = {"counter": ray_metrics.Counter, "gauge": ray_metrics.Gauge, "histogram": ray_metrics.Histogram}
            self._made[name] = kinds[about.kind](about.full_name, about.help, tag_keys=about.labels, **more)
        return self._made[name]


class LocalMeters:
    """In this process; `text` is what `/metrics` shows."""

    def __init__(self) -> None:
        self._registry = prometheus_client.CollectorRegistry()
        self._made: dict[str, Any] = {}

    def add(self, name: str, value: float, **labels: str) -> None:
        """Raise a counter."""
        self._metric(name, labels).inc(value)

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Put a duration into a histogram."""
        self._metric(name, labels).observe(seconds)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Say a gauge's value."""
        self._metric(name, labels).set(value)

    def text(self) -> bytes:
        """All metrics in Prometheus' text form, named as Ray's exporter names them but for its `ray_`."""
        return prometheus_client.generate_latest(self._registry)

    def _metric(self, name: str, labels: Mapping[str, str]) -> Any:
        if name not in self._made:
            about = METRICS[name]
            if about.kind == "histogram":
                metric: Any = prometheus_client.Histogram(
                    about.full_name, about.help, about.labels, registry=self._registry, buckets=BUCKETS_S
                )
            else:
                kind = prometheus_client.Counter if about.kind == "counter" else prometheus_client.Gauge
                metric = kind(about.full_name, about.help, about.labels, registry=self._registry)
            self._made[name] = metric
        return self._made[name].labels(**labels) if labels else self._made[name]
