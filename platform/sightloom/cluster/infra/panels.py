"""The dashboard, panel by panel."""

from typing import Any, Final

from sightloom.cluster.infra.queries import Panel, Query

UID: Final = "sightloom"
_WIDTH, _HEIGHT, _COLUMNS = 8, 7, 3
_BY: Final = "{{model}} {{version}} {{route}}"


def _quantile(name: str, share: float) -> Query:
    text = f"histogram_quantile({share}, sum by (le, model, version, route) (rate(${{{name}}}_bucket[5m])))"
    return Query(text, f"p{share * 100:g} {_BY}")


PANELS: Final = (
    Panel("Requests", "reqps", (Query("sum by (model, version, code) (rate($requests_total[5m]))",
                                      "{{model}} {{version}} {{code}}"),)),
    Panel("Errors", "reqps", (Query("sum by (type, code) (rate($errors_total[5m]))", "{{type}} {{code}}"),)),
    Panel("Time to first token", "s", (_quantile("ttft_seconds", 0.5), _quantile("ttft_seconds", 0.95))),
    Panel("Time for each further token", "s", (_quantile("tpot_seconds", 0.95),)),
    Panel("Whole request", "s", (_quantile("request_seconds", 0.95),)),
    Panel("Framework's share of the first token", "s", (_quantile("overhead_seconds", 0.95),)),
    Panel("Queue", "s", (_quantile("queue_seconds", 0.95),)),
    Panel("Pictures: checked and decoded", "s", (_quantile("media_seconds", 0.95),)),
    Panel("Where seconds go", "percentunit", (
        Query("sum by (stage) (rate($stage_seconds_total[5m])) / ignoring (stage) group_left sum "
              "(rate($stage_seconds_total[5m]))", "{{stage}}"),)),
    Panel("Tokens", "short", (Query("sum by (model, version, kind) (rate($tokens_total[5m]))",
                                    "{{model}} {{version}} {{kind}}"),)),
    Panel("Thinking", "percentunit", (
        Query("sum by (outcome) (rate($thinking_total[5m])) / ignoring (outcome) group_left sum "
              "(rate($thinking_total[5m]))", "{{outcome}}"),)),
    Panel("Cancelled", "reqps", (Query("sum by (phase) (rate($cancelled_total[5m]))", "{{phase}}"),)),
    Panel("In flight and waiting", "short", (Query("$inflight", "in flight {{version}}"),
                                             Query("$queue_depth", "waiting {{version}}"))),
    Panel("Engines", "short", (Query("$engine_running", "running {{version}}"),
                               Query("$engine_waiting", "waiting {{version}}"))),
    Panel("Key-value cache", "percentunit", (Query("$engine_kv_used", "{{model}} {{version}}"),)),
    Panel("Engines that live, and restarts", "short", (
        Query("$engine_up", "up {{version}}"),
        Query("sum by (version, reason) (increase($engine_restarts_total[1h]))", "restarts {{version}} {{reason}}"))),
    Panel("Traffic of each version", "percentunit", (Query("$route_weight / 10000", _BY),)),
    Panel("Fallbacks and shadows", "reqps", (
        Query("sum by (reason) (rate($fallback_total[5m]))", "fallback {{reason}}"),
        Query("sum by (outcome) (rate($shadow_total[5m]))", "shadow {{outcome}}"))),
    Panel("Pictures refused", "reqps", (Query("sum by (reason) (rate($media_rejected_total[5m]))", "{{reason}}"),)),
    Panel("Over quota", "reqps", (Query("sum by (key, kind) (rate($rate_limited_total[5m]))", "{{key}} {{kind}}"),)),
    Panel("Ledger", "short", (Query("$ledger_head", "head"), Query("$ledger_drift", "drift"))),
    Panel("Ledger's events", "short", (
        Query("sum by (kind, outcome) (increase($ledger_events_total[1h]))", "{{kind}} {{outcome}}"),)),
    Panel("Probes answered as registered", "percentunit", (Query("$probe_match", "{{model}} {{version}}"),)),
    Panel("Start of a version", "s", (Query("$startup_seconds", "{{version}} {{part}}"),)),
    Panel("Code that runs", "short", (Query("sum by (version) ($build_info)", "{{version}}"),)),
    Panel("Serve: requests", "reqps", (
        Query("sum by (application, deployment) (rate(ray_serve_deployment_request_counter_total[5m]))",
              "{{application}} {{deployment}}"),)),
    Panel("Serve: p95 of a deployment", "ms", (
        Query("histogram_quantile(0.95, sum by (le, application, deployment) "
              "(rate(ray_serve_deployment_processing_latency_ms_bucket[5m])))", "{{application}} {{deployment}}"),)),
    Panel("Serve: waiting", "short", (
        Query("sum by (application, deployment) (ray_serve_deployment_queued_queries)",
              "{{application}} {{deployment}}"),)),
    Panel("Nodes: processor", "percent", (Query("ray_node_cpu_utilization", "{{instance}}"),)),
    Panel("Nodes: memory", "percentunit", (Query("ray_node_mem_used / ray_node_mem_total", "{{instance}}"),)),
    Panel("Nodes: disk", "percent", (Query("ray_node_disk_utilization_percentage", "{{instance}}"),)),
    Panel("Object store", "bytes", (Query("sum by (instance) (ray_object_store_used_memory)", "{{instance}}"),)),
    Panel("Tasks", "short", (Query("sum by (State) (ray_tasks)", "{{State}}"),)),
)  # fmt: skip


def dashboard(panels: tuple[Panel, ...] = PANELS) -> dict[str, object]:
    """Grafana's JSON: the panels, three in a row."""
    return {
        "uid": UID,
        "title": "Sightloom",
        "tags": ["sightloom"],
        "timezone": "utc",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [{"name": "source", "type": "datasource", "query": "prometheus", "label": "source"}]},
        "panels": [_drawn(number, panel) for number, panel in enumerate(panels)],
    }


def _drawn(number: int, panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    row, column = divmod(number, _COLUMNS)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": source,
        "gridPos": {"h": _HEIGHT, "w": _WIDTH, "x": column * _WIDTH, "y": row * _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": source, "expr": query.promql, "legendFormat": query.legend}
            for index, query in enumerate(panel.queries)
        ],
    }
