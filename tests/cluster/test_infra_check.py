"""The generated files, and every offline check of infra/ on the real programs; what is missing is a skip."""

import ast
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from sightloom.cli import cli
from sightloom.cluster.infra import alerts, check, crds, files, panels
from sightloom.cluster.infra.queries import RAY_METRICS, SERVE_METRICS, Query
from sightloom.errors import UserMistake
from sightloom.serving import metric_table
from sightloom.serving.metric_table import METRICS, Metric

ROOT = Path(__file__).parent.parent.parent
CRDS = ROOT.parent / "shared" / "crds"
TOOLS = ROOT / ".tools" / "infra" / "bin"


@pytest.fixture(scope="module")
def outcomes() -> dict[str, check.Outcome]:
    return {one.name: one for one in check.check(ROOT, CRDS, TOOLS)}


NAMES = [
    "generated files", "promtool check rules", "promtool test rules", "serveConfigV2", "compose", "Dockerfile",
    *(f"overlay {overlay}{what}" for overlay in check.OVERLAYS
      for what in (" builds", ": KubeRay's schemas", ": core schemas")),
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_infra_passes(outcomes: dict[str, check.Outcome], name: str) -> None:
    assert set(outcomes) == set(NAMES)
    if outcomes[name].result == "skipped":
        pytest.skip(outcomes[name].why)
    assert outcomes[name].result == "passed", outcomes[name].why


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("infra", "jobs", "pipelines"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def test_a_changed_file_a_misspelt_key_and_a_wrong_type_are_each_found(checkout: Path) -> None:
    (checkout / "infra/prometheus/rules.yml").write_text("groups: [{name: a, rules: [{alert: A, expr: 'rate(x'}]}]\n")
    service = checkout / "infra/kubernetes/base/rayservice.yaml"
    service.write_text(service.read_text().replace("serveConfigV2: |", "serveConfgV2: a\n  serveConfigV2: |"))
    mlflow = checkout / "infra/kubernetes/base/mlflow.yaml"
    mlflow.write_text(mlflow.read_text().replace("replicas: 1", "replicsa: 1", 1))
    compose = checkout / "infra/compose.yaml"
    compose.write_text(compose.read_text().replace("shm_size:", "shm_sise:"))
    found = {one.name: one for one in check.check(checkout, CRDS, TOOLS)}
    assert "rules.yml" in found["generated files"].why
    said = {"promtool check rules": "unclosed left parenthesis", "overlay dev: KubeRay's schemas": "serveConfgV2",
            "overlay dev: core schemas": "replicsa", "compose": "shm_sise"}  # fmt: skip
    for name, words in said.items():
        if found[name].result != "skipped":
            assert found[name].result == "failed" and words in found[name].why, found[name]
    assert sum(found[name].result == "failed" for name in said) >= 1


def test_render_writes_what_check_wants_and_says_what_changed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    (checkout / "infra/grafana/sightloom.json").unlink()
    shown = json.loads(CliRunner().invoke(cli, ["infra", "render", "--json"]).stdout)
    assert shown["changed"] == ["grafana/sightloom.json"] and files.drift(checkout) == []
    monkeypatch.chdir(checkout / "infra")
    assert "run this from a checkout" in CliRunner().invoke(cli, ["infra", "render"]).output


def test_every_alert_passes_its_own_tests(tmp_path: Path) -> None:
    rules = alerts.groups()
    assert {rule["alert"] for rule in rules["groups"][0]["rules"]} == {alert.name for alert in alerts.ALERTS}
    assert len(panels.dashboard()["panels"]) == len(panels.PANELS)  # type: ignore[arg-type]
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not on the PATH")
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(alerts.tests()))
    shown = subprocess.run(["promtool", "test", "rules", tmp_path / "tests.yml"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stdout + shown.stderr


def test_the_code_writes_every_metric_of_the_table() -> None:
    """A metric's name is the first argument of a meter's method; a request's histograms stand in one tuple of pairs."""
    written: set[str] = set()
    for path in (ROOT / "platform/sightloom").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                if node.func.attr in ("add", "set", "observe") and isinstance(node.args[0], ast.Constant):
                    written.add(str(node.args[0].value))
            elif isinstance(node, ast.Tuple) and path.name == "seen.py" and isinstance(node.elts[0], ast.Constant):
                written.add(str(node.elts[0].value))
    assert METRICS.keys() <= written, METRICS.keys() - written


def test_every_query_names_metrics_that_exist_and_labels_that_they_have() -> None:
    queries = [query for panel in panels.PANELS for query in panel.queries] + [one.query for one in alerts.ALERTS]
    foreign = set()
    for query in queries:
        assert "$" not in query.promql
        foreign |= {word for word in query.promql.replace("(", " ").split() if word.startswith("ray_")}
        allowed = {label for metric in query.metrics for label in metric.labels} | {"le"}
        if query.metrics and " by (" in query.text:
            asked = {one.strip() for part in query.text.split(" by (")[1:] for one in part.split(")")[0].split(",")}
            assert asked <= allowed, (query.text, asked - allowed)
    ours = {metric.exported_name for metric in METRICS.values()}
    names = {word.split("[")[0].split("{")[0].rstrip(")") for word in foreign}
    assert {one.removesuffix("_bucket") for one in names - ours} <= {
        one.removesuffix("_bucket") for one in {*ours, *RAY_METRICS, *SERVE_METRICS}
    }


def test_a_metric_that_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(UserMistake, match="no metric 'requests_totl'"):
        _ = Query("rate($requests_totl[5m])").promql


def test_counters_get_one_total_and_everything_rays_prefix() -> None:
    assert METRICS["requests_total"].exported_name == "ray_sightloom_requests_total"
    assert Metric("flips", "counter", "").exported_name == "ray_sightloom_flips_total"
    assert len(metric_table.BUCKETS_S) == 24 and metric_table.BUCKETS_S[0] == 0.001


def test_the_custom_resources_are_those_that_have_a_schema() -> None:
    if not CRDS.is_dir():
        pytest.skip("KubeRay's schemas are not in ../shared/crds beside this checkout")
    kinds: list[Any] = [yaml.safe_load(files.manifest(ROOT, target))["kind"] for target in files.MANIFESTS]
    assert sorted(kinds) == sorted(crds.FILES)
