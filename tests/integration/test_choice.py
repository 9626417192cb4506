"""Evaluation sets, semantic copies and samples with copies, from the recipe to the shards on a real Ray."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.integration.raw import put_tars, write_recipe

from sightloom.config import load
from sightloom.data.curation import Settings, curate
from sightloom.data.recipe import Recipe
from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.reader import read_table
from sightloom.data.shards.verify import verify
from sightloom.data.steps import run_score
from sightloom.errors import UserMistake
from sightloom.progress import NullProgress

QUIET, PLAIN = NullProgress(), Settings()
pytestmark = pytest.mark.usefixtures("ray_session")


def recipe(folder: Path, raw: Path, scorer: Path | None = None, **more: Any) -> Recipe:
    folder.mkdir(exist_ok=True)
    return load(Recipe, write_recipe(folder / "r.yaml", str(raw), str(folder / "out"), scorer, **more))


def test_planted_evaluation_pictures_go_and_what_is_drawn_twice_is_packed_twice(tmp_path: Path) -> None:
    put_tars(str(tmp_path / "eval"), 1, 10)
    put_tars(str(tmp_path / "raw"), 1, 60)  # its first ten pictures are the evaluation set's
    run_score(recipe(tmp_path / "held", tmp_path / "eval"), QUIET, PLAIN)
    dedup = {"decontaminate": [{"name": "held", "scores": str(tmp_path / "held/out/scores")}]}
    sample = {"by": "sharpness", "count": 120, "temperature": 1000.0, "batch": 25}
    more = {"dedup": dedup, "select": {"sample": sample}}
    result = curate(recipe(tmp_path / "run", tmp_path / "raw", **more), QUIET, None, PLAIN)
    manifest = read_manifest(result.manifest)
    assert manifest.decontaminated == ({"name": "held", "removed": 10},)
    assert manifest.totals.dropped["eval_overlap_held"] == 10
    assert manifest.totals.samples == 120
    keys = read_table(manifest, ["key"]).column("key").to_pylist()
    assert len(set(keys)) == 120 and len({key.split("-")[0] for key in keys}) == manifest.totals.kept
    subset = np.load(next((tmp_path / "run/out/select").glob("*/subset.npy")))
    assert len(subset) == manifest.totals.kept
    assert verify(manifest, True, QUIET).problems == ()


def test_semantic_copies_are_found_by_stored_embeddings(tmp_path: Path, tiny_clip: Path) -> None:
    put_tars(str(tmp_path / "raw"), 1, 40)
    clip = [{"name": "tiny", "model": f"local-dir:{tiny_clip}", "embeddings": True}]
    score = {"chunk_rows": 32, "clip": clip}
    more = {"score": score, "select": {}, "dedup": {"semantic": {"scorer": "tiny", "cosine": 0.5}}}
    result = curate(recipe(tmp_path / "run", tmp_path / "raw", tiny_clip, **more), QUIET, None, PLAIN)
    dropped = read_manifest(result.manifest).totals.dropped
    assert list(dropped) == ["dup_semantic"] and dropped["dup_semantic"] > 20  # random weights: all look alike


def test_what_needs_embeddings_or_scores_is_refused_before_anything_runs(tmp_path: Path, tiny_clip: Path) -> None:
    put_tars(str(tmp_path / "raw"), 1, 2)
    for dedup, words in (
        ({"semantic": {"scorer": "tiny"}}, "needs embeddings of 'tiny'"),
        ({"decontaminate": [{"name": "pope", "scores": str(tmp_path / "nothing")}]}, "evaluation set 'pope'"),
    ):
        with pytest.raises(UserMistake, match=words):
            curate(recipe(tmp_path / "run", tmp_path / "raw", tiny_clip, dedup=dedup), QUIET, None, PLAIN)
