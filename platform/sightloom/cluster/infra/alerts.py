"""The alerts, and promtool's tests of each: series that raise it, and series that do not."""

from string import Template
from typing import Any, Final

from sightloom.cluster.infra.queries import Alert, Query
from sightloom.serving.metric_table import METRICS

_BUDGET: Final = 0.001  # of requests that may fail
_BURN: Final = 14.4  # a month's budget in two days, the usual page (SRE workbook, ch. 5)
_TTFT_S: Final = 1.5
_MODEL: Final = 'model="m",version="1"'
_TTFT: Final = f"${{ttft_seconds}}_bucket{{{_MODEL}"
_LABELS: Final = {"model": "m", "version": "1"}


def _failing(window: str) -> str:
    bad = f'sum by (model) (rate($requests_total{{code=~"5.."}}[{window}]))'
    return f"{bad} / sum by (model) (rate($requests_total[{window}])) > {_BUDGET * _BURN}"


def _share(route: str) -> str:
    bad = f'sum by (model) (rate($requests_total{{code=~"5..",route="{route}"}}[10m]))'
    return f'({bad} / sum by (model) (rate($requests_total{{route="{route}"}}[10m])))'


ALERTS: Final = (
    Alert(
        "TimeToFirstToken",
        Query(
            f"histogram_quantile(0.95, sum by (le, model, version) (rate(${{ttft_seconds}}_bucket[5m]))) > {_TTFT_S}"
        ),
        10,
        "ticket",
        f"one in twenty first tokens takes longer than {_TTFT_S:g} s",
        {_TTFT + ',le="1"}': "0+1x60", _TTFT + ',le="2"}': "0+60x60", _TTFT + ',le="+Inf"}': "0+60x60"},
        {_TTFT + ',le="1"}': "0+60x60", _TTFT + ',le="+Inf"}': "0+60x60"},
        _LABELS,
    ),
    Alert(
        "ErrorBudget",
        Query(f"({_failing('5m')}) and ({_failing('1h')})"),
        2,
        "page",
        "requests fail so fast that the month's budget is gone in two days",
        {'$requests_total{model="m",code="200"}': "0+95x90", '$requests_total{model="m",code="500"}': "0+5x90"},
        {'$requests_total{model="m",code="200"}': "0+1000x90", '$requests_total{model="m",code="500"}': "0+1x90",
         '$requests_total{model="m",code="400"}': "0+500x90"},
        {"model": "m"},
    ),
    Alert(
        "CanaryWorse",
        Query(f"{_share('challenger')} > 2 * {_share('champion')} and {_share('challenger')} > 0.01"),
        5,
        "ticket",
        "the challenger fails more than twice as often as the champion",
        {'$requests_total{model="m",route="challenger",code="200"}': "0+90x60",
         '$requests_total{model="m",route="challenger",code="500"}': "0+10x60",
         '$requests_total{model="m",route="champion",code="200"}': "0+990x60",
         '$requests_total{model="m",route="champion",code="500"}': "0+10x60"},
        {'$requests_total{model="m",route="challenger",code="200"}': "0+90x60",
         '$requests_total{model="m",route="challenger",code="500"}': "0+10x60",
         '$requests_total{model="m",route="champion",code="200"}': "0+90x60",
         '$requests_total{model="m",route="champion",code="500"}': "0+10x60"},
        {"model": "m"},
    ),
    Alert(
        "EngineRestarts",
        Query("sum by (model, version) (increase($engine_restarts_total[10m])) > 2"),
        0,
        "page",
        "an engine was started again more than twice in ten minutes",
        {f"$engine_restarts_total{{{_MODEL}}}": "0+1x60"},
        {f"$engine_restarts_total{{{_MODEL}}}": "0 0 0 1+0x57"},
        _LABELS,
    ),
    Alert(
        "LedgerDrift",
        Query("max($ledger_drift) > 0"),
        5,
        "ticket",
        "MLflow's aliases or the routes differ from the ledger, and are not repaired",
        {"$ledger_drift": "0x5 1x60"},
        {"$ledger_drift": "0x5 1x2 0x60"},
    ),
    Alert(
        "QueueFull",
        Query('sum by (model) (rate($errors_total{code="engine_overloaded"}[5m])) > 0'),
        5,
        "page",
        "requests are refused because the engine's queue is full",
        {'$errors_total{model="m",code="engine_overloaded"}': "0+3x60"},
        {'$errors_total{model="m",code="engine_overloaded"}': "7x60"},
        {"model": "m"},
    ),
    Alert(
        "ReplicaUnhealthy",
        Query("min by (application, deployment) (ray_serve_deployment_replica_healthy) == 0"),
        2,
        "page",
        "Serve calls a replica unhealthy",
        {'ray_serve_deployment_replica_healthy{application="router",deployment="Router"}': "1x5 0x60"},
        {'ray_serve_deployment_replica_healthy{application="router",deployment="Router"}': "1x60"},
        {"application": "router", "deployment": "Router"},
    ),
    Alert(
        "NodeMemory",
        Query("ray_node_mem_used / ray_node_mem_total > 0.95"),
        5,
        "page",
        "a node's memory is nearly full: Ray will kill workers",
        {'ray_node_mem_used{instance="a"}': "97x60", 'ray_node_mem_total{instance="a"}': "100x60"},
        {'ray_node_mem_used{instance="a"}': "90x60", 'ray_node_mem_total{instance="a"}': "100x60"},
        {"instance": "a"},
    ),
    Alert(
        "NodeDisk",
        Query("ray_node_disk_utilization_percentage > 90"),
        10,
        "ticket",
        "a node's disk is nearly full: Ray stops spilling at 95 %",
        {'ray_node_disk_utilization_percentage{instance="a"}': "93x60"},
        {'ray_node_disk_utilization_percentage{instance="a"}': "80x60"},
        {"instance": "a"},
    ),
    Alert(
        "ExporterGone",
        Query('up{job=~".*ray.*"} == 0'),
        5,
        "page",
        "a node's exporter does not answer",
        {'up{job="ray",instance="a"}': "1x5 0x60"},
        {'up{job="ray",instance="a"}': "1x60"},
        {"job": "ray", "instance": "a"},
    ),
)  # fmt: skip
_EVALUATED_AT: Final = 45  # minutes into a test


def groups(alerts: tuple[Alert, ...] = ALERTS) -> dict[str, Any]:
    """Prometheus' rule groups."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.query.promql,
            "for": f"{alert.minutes}m",
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary},
        }
        for alert in alerts
    ]
    return {"groups": [{"name": "sightloom", "rules": rules}]}


def tests(alerts: tuple[Alert, ...] = ALERTS, rules: str = "rules.yml") -> dict[str, Any]:
    """Promtool's unit tests of the same rules, two an alert."""
    made = [one for alert in alerts for one in (_test(alert, True), _test(alert, False))]
    return {"rule_files": [rules], "evaluation_interval": "1m", "tests": made}


def _test(alert: Alert, raised: bool) -> dict[str, Any]:
    names = {name: metric.exported_name for name, metric in METRICS.items()}
    series = alert.raises if raised else alert.quiet
    expected = {
        "exp_labels": {**alert.labels, "severity": alert.severity},
        "exp_annotations": {"summary": alert.summary},
    }
    return {
        "name": f"{alert.name} is {'raised' if raised else 'quiet'}",
        "interval": "1m",
        "input_series": [
            {"series": Template(name).substitute(names), "values": values} for name, values in series.items()
        ],
        "alert_rule_test": [
            {
                "eval_time": f"{_EVALUATED_AT}m",
                "alertname": alert.name,
                "exp_alerts": [expected] if raised else [],
            }
        ],
    }
