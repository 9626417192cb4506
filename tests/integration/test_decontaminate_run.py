"""Semantic deduplication and decontamination on a real Ray: what an evaluation set holds is not packed."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sightloom.config import load
from sightloom.data import segments
from sightloom.data.curation import Settings, curate, scored_rows
from sightloom.data.dedup import exact, find
from sightloom.data.embedding import embed_chunk
from sightloom.data.embeddings import open_embeddings
from sightloom.data.fetch import inputs
from sightloom.data.prepare import open_out, prepare, source_files
from sightloom.data.recipe import Recipe
from sightloom.data.scoring import jobs, measure_chunk, read
from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.reader import read_table
from sightloom.data.signals.clip import ClipModel
from sightloom.data.steps import run_dedup, run_score
from sightloom.errors import UserMistake
from sightloom.progress import NullProgress

from ..raw_pairs import jpeg, smooth
from .raw import picture, put_tars, write_recipe

QUIET, PLAIN = NullProgress(), Settings()
pytestmark = pytest.mark.usefixtures("ray_session")


def recipe(tmp_path: Path, name: str, scorer: Path, embeddings: bool = True, **more: Any) -> Recipe:
    clip = [{"name": "tiny", "model": f"local-dir:{scorer}", "embeddings": embeddings}]
    path = write_recipe(
        tmp_path / f"{name}.yaml", str(tmp_path / name), str(tmp_path / f"{name}-out"), scorer,
        score={"chunk_rows": 32, "clip": clip}, select={}, **more,
    )  # fmt: skip
    return load(Recipe, path)


def score(wanted: Recipe) -> None:
    """Score a corpus by one worker, which is this process, and compact it on Ray."""
    prepared = prepare(wanted, False)
    open_out(prepared, False)
    models = [ClipModel(spec, "cpu") for spec in prepared.specs]
    for job in jobs([file for files in source_files(prepared.recipe) for file in files], [{}, {}]):
        for row in read({"job": pickle.dumps(job)}):
            embed_chunk(measure_chunk(row, prepared.plan), prepared.plan, models, [True])
    run_score(wanted, QUIET, PLAIN)


def test_evaluation_pictures_and_pictures_alike_go_and_the_manifest_says_how_many(
    tmp_path: Path, tiny_clip: Path
) -> None:
    put_tars(str(tmp_path / "corpus"), 2, 50, {60: picture(7)})
    put_tars(
        str(tmp_path / "bench"), 1, 10, {n: picture(500 + n) for n in range(10)} | {3: picture(20), 8: picture(85)}
    )
    bench = recipe(tmp_path, "bench", tiny_clip, dedup={})
    score(bench)
    mirror = {"perceptual": {"mirror": True}}
    scored = recipe(tmp_path, "corpus", tiny_clip, dedup=mirror)
    score(scored)
    opened = [prepare(one, False) for one in (scored, bench)]
    described = [json.loads((Path(one.plan.base.folder) / "group.json").read_text()) for one in opened]
    assert ["phash_mirror" in one["columns"] for one in described] == [True, False]
    corpus, held = (open_embeddings(scored_rows(one, inputs(one.recipe)), "clip_tiny").read() for one in opened)
    corpus, held = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x.astype(float) for x in (corpus, held))
    )
    cosine = float(np.quantile((corpus @ corpus.T)[~np.eye(100, dtype=bool)], 0.99))
    overlap = np.flatnonzero((corpus @ held.T).max(1) >= cosine)

    dedup = mirror | {
        "prefer": "clip_tiny", "semantic": {"scorer": "tiny", "cosine": cosine},
        "decontaminate": [{"name": "bench", "scores": str(tmp_path / "bench-out")}],
    }  # fmt: skip
    wanted = recipe(tmp_path, "corpus", tiny_clip, dedup=dedup)
    result = curate(wanted, QUIET)
    manifest = read_manifest(result.manifest)
    assert result.dropped["eval_overlap_bench"] == len(overlap) >= 2
    assert manifest.decontaminated == ({"name": "bench", "removed": len(overlap)},)
    assert result.dropped["dup_image"] == 1 and result.dropped["dup_semantic"] > 0
    assert result.rows_in == 100 == result.kept + sum(result.dropped.values())
    kept = sorted(int(key) for key in read_table(manifest).column("source_key").to_pylist())
    assert not {20, 85, *overlap.tolist()} & set(kept)
    near = (corpus[kept] @ corpus[kept].T)[~np.eye(len(kept), dtype=bool)]
    assert near.max() < cosine + 1e-5  # of what stays no two are alike

    lost = pq.read_table(next((tmp_path / "corpus-out" / "dedup").glob("*/dups.parquet"))).to_pylist()
    of = {row["row"]: row for row in lost if row["reason"] == "eval_overlap_bench"}
    assert (of[20]["method"], of[85]["method"]) == ("exact", "exact") and of[20]["of_row"] == -1
    page = Path(result.report).read_text()
    assert "dropped: eval_overlap_bench" in page and "copies: dup_semantic" in page
    assert json.loads(Path(result.report).with_name("report.json").read_text())["alone"]["eval_overlap_bench"] > 0
    again = curate(wanted, QUIET)
    assert again.to_json() | {"samples_per_s": 0} == result.to_json() | {"samples_per_s": 0}

    plain = {"out": str(tmp_path / "new"), "score": recipe(tmp_path, "bench", tiny_clip, False).score}
    with pytest.raises(UserMistake, match="semantic needs embeddings of 'tiny'"):
        prepare(wanted.model_copy(update=plain), False)
    shutil.rmtree(tmp_path / "bench-out")
    with pytest.raises(UserMistake, match="evaluation set 'bench': no scores at"):
        curate(wanted, QUIET)


def test_a_table_too_large_for_one_process_loses_the_same_rows_by_tasks(
    tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_ROWS", 40)
    put_tars(
        str(tmp_path / "corpus"),
        3,
        40,
        {60: picture(30), 100: picture(30), 110: smooth(1), 111: jpeg(smooth(1), 0.9, 80)},
    )
    shutil.copyfile(tmp_path / "corpus" / "pairs-1.tar", tmp_path / "corpus" / "pairs-8.tar")
    put_tars(str(tmp_path / "bench"), 1, 10, {3: picture(20), 8: picture(85)})
    score(recipe(tmp_path, "bench", tiny_clip, dedup={}))
    wanted = recipe(
        tmp_path, "corpus", tiny_clip,
        dedup={"prefer": "clip_tiny", "perceptual": {"bits": 4}, "semantic": {"scorer": "tiny", "cosine": 0.9999},
               "decontaminate": [{"name": "bench", "scores": str(tmp_path / "bench-out")}]},
    )  # fmt: skip
    score(wanted)
    (done,) = (tmp_path / "corpus-out" / "scores").glob("base-*")
    assert len(list((done / "segments").glob("*.json"))) == 4

    found, results = [], []
    for limit, rows in ((find.TASKS_ABOVE, exact.SLICE_ROWS), (0, 50)):
        monkeypatch.setattr(find, "TASKS_ABOVE", limit)
        monkeypatch.setattr(exact, "SLICE_ROWS", rows)
        monkeypatch.setattr(exact, "BUCKET_ROWS", rows)
        results.append(run_dedup(wanted, QUIET, PLAIN, "corpus.yaml"))
        (folder,) = (tmp_path / "corpus-out" / "dedup").iterdir()
        assert not list(folder.glob("buckets-*/*"))
        found.append({path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()})
        shutil.rmtree(folder)
    assert found[0] == found[1] and len(found[0]) == 2
    assert results[0].dropped == results[1].dropped
    assert {"dup_pair", "dup_image", "dup_near", "eval_overlap_bench"} <= results[0].dropped.keys()
