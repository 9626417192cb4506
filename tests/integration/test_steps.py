"""Each step of a curation by itself, on one Ray; forecasts and previews that touch nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.integration.raw import environment, put_tars, write_recipe

from sightloom.config import load
from sightloom.data.curation import Settings, curate
from sightloom.data.forecast import forecast
from sightloom.data.prepare import source_files
from sightloom.data.preview import preview
from sightloom.data.recipe import Recipe
from sightloom.data.shards.manifest import read_manifest
from sightloom.data.steps import run_dedup, run_pack, run_report, run_score, run_select
from sightloom.errors import SightloomError, UserMistake
from sightloom.progress import NullProgress

QUIET, PLAIN = NullProgress(), Settings()


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    put_tars(str(tmp_path / "raw"), 2, 100)
    rules = {"sharp": "sharpness > 0", "wordy": "text_words >= 3"}
    path = write_recipe(
        tmp_path / "r.yaml", str(tmp_path / "raw"), str(tmp_path / "out"), None, select={"rules": rules}, dedup={}
    )
    return load(Recipe, path)


def balanced(result: Any) -> bool:
    return bool(result.rows_in == result.kept + sum(result.dropped.values()) + result.failed == 200)


def part_of_the_first_file(recipe: Recipe) -> tuple[int, int]:
    """Of so many parts that no two files share one: parts go by the digest of a file's address and time."""
    return int(source_files(recipe)[0][0].file_id, 16) % 10**9 + 1, 10**9


@pytest.mark.usefixtures("ray_session")
def test_steps_run_alone_each_after_what_it_needs_and_end_as_curate_does(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match=r"not wholly scored.*\n.*sightloom score r.yaml"):
        run_dedup(recipe, QUIET, PLAIN, "r.yaml")
    with pytest.raises(SightloomError, match="1 of 2 files wait for the other parts"):
        run_score(recipe, QUIET, Settings(part=part_of_the_first_file(recipe)))
    scored = run_score(recipe, QUIET, PLAIN)
    assert balanced(scored) and scored.kept == 200
    with pytest.raises(UserMistake, match=r"duplicates are not known yet\nrun this first: sightloom dedup r.yaml"):
        run_select(recipe, QUIET, PLAIN, "r.yaml")
    with pytest.raises(UserMistake, match=r"nothing is selected yet\nrun this first: sightloom select r.yaml"):
        run_pack(recipe, QUIET, PLAIN, "r.yaml")
    assert balanced(run_dedup(recipe, QUIET, PLAIN, "r.yaml"))
    selected = run_select(recipe, QUIET, PLAIN, "r.yaml")
    assert balanced(selected) and selected.to_json()["manifest"] is None
    with pytest.raises(UserMistake, match=r"not packed\nrun this first: sightloom pack r.yaml"):
        run_report(recipe, QUIET, PLAIN, "r.yaml")
    packed = run_pack(recipe, QUIET, PLAIN, "r.yaml")
    assert balanced(packed) and packed.kept == selected.kept
    reported = run_report(recipe, QUIET, PLAIN, "r.yaml")
    assert Path(reported.report).read_text().startswith("<!doctype html>")
    whole = curate(recipe.model_copy(update={"out": str(tmp_path / "whole")}), QUIET)
    assert read_manifest(whole.manifest).digest == read_manifest(packed.manifest).digest

    found = forecast(recipe, 4)
    assert (found.rows, found.files_done, found.chunks_missing, found.row_bytes_assumed) == (200, 2, 0, False)
    other = forecast(recipe.model_copy(update={"seed": 1}), 4)
    assert len(other.refusals) == 1 and "seed 0 -> 1" in other.refusals[0]


@pytest.mark.usefixtures("ray_session")
def test_a_preview_predicts_the_keep_rate_and_leaves_out_untouched(recipe: Recipe, tmp_path: Path) -> None:
    seen = preview(recipe, 90, 2, QUIET, str(tmp_path / "page.html"))
    assert not (tmp_path / "out").exists()
    assert 90 <= seen.rows <= 200 and set(seen.rules) == {"sharp", "wordy"}
    assert seen.keep.low <= seen.keep.value <= seen.keep.high and seen.rules["wordy"].value == 1.0
    assert seen.rules["wordy"].low == pytest.approx(seen.rows / (seen.rows + 1.959964**2))
    assert seen.hours > 0 and seen.kept_rows <= seen.forecast.rows
    assert "default-src 'none'" in (tmp_path / "page.html").read_text()


def test_the_command_line_says_which_step_is_missing_and_leaves_with_2(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(recipe.model_dump(mode="json")))
    env = environment()

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", "from sightloom.cli import main; main()", *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)

    shown = run("select", str(path), "--json")
    assert shown.returncode == 2 and f"sightloom score {path}" in shown.stderr and shown.stdout == ""
    planned = run("curate", str(path), "--plan", "--json")
    assert planned.returncode == 0 and json.loads(planned.stdout)["files"] == 2
    assert run("verify", str(path)).returncode == 2
    gone = run("gc", str(path), "--json")
    assert gone.returncode == 0 and json.loads(gone.stdout) == {"files": 0, "bytes": 0, "deleted": False}
