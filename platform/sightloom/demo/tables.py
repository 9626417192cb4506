"""What the demo shows of its stages and its version: plain data for tables and JSON."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sightloom import storage


def stage_figures(stages: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each stage that answers questions: `{name, figures{name: {value, n, ci}}}`."""
    for stage in stages:
        files = list(Path(stage["model_dir"]).parent.glob("evaluation-*/result.json"))
        if not files:
            continue
        result = storage.read_json(str(max(files, key=lambda file: file.stat().st_mtime)))
        whole = {"value": result["overall"], "n": result["n"], "ci": result["overall_ci"]}
        figures = {"all": whole, **result["domains"], "steps": result["needs_steps"]}
        if stage["name"].startswith(("reason", "specialize")):
            figures["well_formed"] = result["format"]["well_formed"]
        yield {"name": stage["name"], "figures": figures, "chance": result["chance"]}


def version_figures(released: Mapping[str, Any]) -> dict[str, Any]:
    """The version as the JSON of `demo` names it."""
    return {name: released[name] for name in ("name", "version", "digest", "champion", "gate")}
