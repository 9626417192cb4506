"""PromQL over metrics that exist: `$name` stands for a metric of ours, everything else is written out."""

from dataclasses import dataclass, field
from string import Template
from typing import Final

from sightloom.errors import UserMistake
from sightloom.serving.metric_table import METRICS, Metric

# Ray's own, as its exporter writes them; tests/integration/test_stack.py finds each in a real run.
RAY_METRICS: Final = (
    "ray_node_cpu_utilization",
    "ray_node_mem_used",
    "ray_node_mem_total",
    "ray_node_disk_utilization_percentage",
    "ray_object_store_used_memory",
    "ray_tasks",
)
# Of Serve, once an endpoint runs and was asked.
SERVE_METRICS: Final = (
    "ray_serve_deployment_replica_healthy",
    "ray_serve_deployment_request_counter_total",
    "ray_serve_deployment_processing_latency_ms_bucket",
    "ray_serve_deployment_queued_queries",
)


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression; `legend` is Grafana's form of a series' name."""

    text: str
    legend: str = ""

    @property
    def metrics(self) -> list[Metric]:
        """Those of ours that it asks for.

        Raises:
            UserMistake: one that is not in the table.
        """
        names = Template(self.text).get_identifiers()
        if missing := [name for name in names if name not in METRICS]:
            raise UserMistake(f"no metric '{missing[0]}' in serving/metric_table.py", f"in: {self.text}")
        return [METRICS[name] for name in names]

    @property
    def promql(self) -> str:
        """What Prometheus is asked."""
        return Template(self.text).substitute({metric.name: metric.exported_name for metric in self.metrics})


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel of the dashboard; `unit` in Grafana's words (s, percentunit, bytes, short, reqps)."""

    title: str
    unit: str
    queries: tuple[Query, ...]


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert, with series that must raise it and series that must not (promtool's notation, metrics as `$name`).

    `labels`: what it carries when it is raised, beside the severity.
    """

    name: str
    query: Query
    minutes: int
    severity: str
    summary: str
    raises: dict[str, str]
    quiet: dict[str, str]
    labels: dict[str, str] = field(default_factory=dict)
