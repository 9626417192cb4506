"""Scores of pictures with their text covered, by the detector that RapidOCR brings, on a real Ray."""

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from tests.integration.raw import put_tars, write_recipe
from tests.raw_pairs import smooth

from sightloom.config import load
from sightloom.data.curation import curate
from sightloom.data.forecast import forecast
from sightloom.data.recipe import Recipe
from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.reader import read_table
from sightloom.data.signals.config import Overlap
from sightloom.data.signals.overlap import covered, resolve_mask
from sightloom.progress import NullProgress

QUIET = NullProgress()
COSINE = 1e-4  # what the issue asks; fp32, worst measured below 1e-6
ROWS = 40
WRITTEN = range(0, ROWS, 4)
pytestmark = [
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("rapidocr", "onnxruntime"))),
        reason="the text detector is the extra `overlap` (rapidocr, onnxruntime), which is not installed",
    ),
]


def photo(number: int) -> bytes:
    image = Image.open(io.BytesIO(smooth(number)))
    if number in WRITTEN:
        ImageDraw.Draw(image).text((6, 50), f"SCENE {number}", (255, 230, 40), ImageFont.load_default(22))
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def by_open_clip(scorer: Path, pictures: list[Image.Image]) -> Any:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{scorer}")
    model.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{scorer}")([f"scene number {number}" for number in range(ROWS)])
    with torch.no_grad():
        image = model.encode_image(torch.stack([preprocess(one) for one in pictures]), normalize=True)
        return (image * model.encode_text(tokens, normalize=True)).sum(-1).numpy()


def test_masked_scores_are_those_of_covered_pictures_in_a_group_of_their_own_that_selection_reads(
    tmp_path: Path, tiny_clip: Path
) -> None:
    put_tars(str(tmp_path / "raw"), 1, ROWS, {number: photo(number) for number in range(ROWS)})
    score: dict[str, Any] = {"chunk_rows": 32, "clip": [{"name": "tiny", "model": f"local-dir:{tiny_clip}"}]}
    path = tmp_path / "r.yaml"
    plain = load(Recipe, write_recipe(path, str(tmp_path / "raw"), str(tmp_path / "out"), tiny_clip, score=score))
    curate(plain, QUIET)
    (scores,) = (tmp_path / "out" / "scores").glob("clip_tiny-*")
    before = {file: file.stat().st_mtime_ns for file in scores.rglob("*") if file.is_file()}

    score["overlap"] = {"scorers": ["tiny"]}
    top = [{"by": "clip_tiny_masked", "fraction": 0.5}]
    derive = {"read_aloud": "clip_tiny - clip_tiny_masked"}
    more: dict[str, Any] = {"score": score, "dedup": {}, "select": {"top": top, "derive": derive}, "name": "masked"}
    wanted = load(Recipe, write_recipe(path, str(tmp_path / "raw"), str(tmp_path / "out"), tiny_clip, **more))
    assert forecast(wanted, 2).chunks_missing == 2  # of the new group alone
    result = curate(wanted, QUIET)
    assert (result.rows_in, result.kept, result.failed) == (ROWS, ROWS // 2, 0)
    assert {file: file.stat().st_mtime_ns for file in before} == before  # what was scored is not scored again

    mask = resolve_mask(Overlap(scorers=("tiny",)))
    pictures = [Image.open(io.BytesIO(photo(number))).convert("RGB") for number in range(ROWS)]
    (group,) = (tmp_path / "out" / "scores").glob("clip_tiny_masked-*")
    (segment,) = (group / "segments").glob("*.parquet")
    masked = pq.read_table(segment).column("clip_tiny_masked").to_numpy()
    expected = by_open_clip(tiny_clip, [covered(one, mask) for one in pictures])
    assert np.abs(masked - expected).max() <= COSINE
    apart = np.abs(masked - by_open_clip(tiny_clip, pictures))
    assert [n for n, one in enumerate(pictures) if covered(one, mask) is not one] == list(WRITTEN)
    assert np.delete(apart, WRITTEN).max() * 10 < apart[WRITTEN].min()  # a random model sees little, but more than fp32

    manifest = read_manifest(result.manifest)
    table = read_table(manifest)
    assert sorted(table.column("clip_tiny_masked").to_pylist()) == sorted(np.sort(masked)[-ROWS // 2 :].tolist())
    assert {"clip_tiny", "read_aloud"} <= set(table.column_names)
    assert manifest.columns["clip_tiny_masked"]["doc"].endswith("text covered")
    assert [scorer["name"] for scorer in manifest.scorers] == ["tiny", "overlap"]
    assert manifest.scorers[1]["licence"] == "apache-2.0" and manifest.scorers[1]["weights_sha256"] == mask.sha256
    described = json.loads((group / "group.json").read_text())["config"]
    assert described["mask"] == mask.identity() and "mask" not in json.loads((scores / "group.json").read_text())
