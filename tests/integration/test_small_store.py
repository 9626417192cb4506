"""A corpus several times the size of Ray's object store: chunks wait for room, nothing is spilled."""

import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import ray
import torch
from PIL import Image
from safetensors.torch import save_file

from sightloom.config import load
from sightloom.data.curation import Settings
from sightloom.data.recipe import Recipe
from sightloom.data.shards.tarfiles import TarWriter
from sightloom.data.steps import run_score
from sightloom.errors import UserMistake
from sightloom.progress import NullProgress

from .raw import write_recipe

STORE = 256_000_000
ROWS, TARS = 768, 6  # 694 MB of crops at 224 pixels, 154 MB at once on two cores
MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 224, "patch_size": 32, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
def small_ray() -> Iterator[str]:
    """A Ray of two cores with a store of 256 MB; yields its address."""
    ray.shutdown()
    context = ray.init(address="local", num_cpus=2, object_store_memory=STORE, include_dashboard=False,
                       log_to_driver=False, _temp_dir=tempfile.mkdtemp(prefix="slray-"))  # fmt: skip
    yield str(context.address_info["address"])
    ray.shutdown()


@pytest.fixture
def wide_clip(tmp_path: Path) -> Path:
    """A random scorer of pictures as large as those of ViT-B-32."""
    folder = tmp_path / "wide"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    save_file(open_clip.create_model(f"local-dir:{folder}").state_dict(), folder / "open_clip_model.safetensors")
    return folder


def spilled_mb(address: str) -> float:
    """What `ray memory` says was spilled so far."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "memory", "--stats-only", "--address", address]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "Plasma memory usage" in shown
    found = re.search(r"Spilled (\d+) MiB", shown)
    return float(found[1]) if found else 0.0


def put_photos(raw: Path) -> None:
    """Tars of pictures that are told apart by their captions only: decoding is not what is tested."""
    raw.mkdir()
    pictures = []
    for number in range(24):
        blocks = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        sink = io.BytesIO()
        Image.fromarray(blocks).resize((320, 320), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=95)
        pictures.append(sink.getvalue())
    for number in range(TARS):
        with TarWriter(raw / f"pairs-{number}.tar") as tar:
            for row in range(ROWS):
                text = f"scene {number} {row}".encode()
                tar.add(f"{number}-{row:05d}", [("jpg", pictures[row % len(pictures)]), ("txt", text)])


def test_scores_flow_through_a_small_store_and_what_cannot_is_refused(
    small_ray: str, tmp_path: Path, wide_clip: Path
) -> None:
    put_photos(tmp_path / "raw")
    score: dict[str, Any] = {"clip": [{"name": "tiny", "model": f"local-dir:{wide_clip}", "batch": 64}]}
    crops = TARS * ROWS * 3 * 224**2
    assert crops > 2.5 * STORE

    path = tmp_path / "r.yaml"
    more = {"score": {**score, "chunk_rows": 512}, "dedup": {}}
    large = load(Recipe, write_recipe(path, str(tmp_path / "raw"), str(tmp_path / "out"), wide_clip, **more))
    with pytest.raises(UserMistake, match=r"needs 308 MB of object store, Ray has 25\d"):
        run_score(large, NullProgress(), Settings())

    more["score"] = {**score, "chunk_rows": 256}
    wanted = load(Recipe, write_recipe(path, str(tmp_path / "raw"), str(tmp_path / "out"), wide_clip, **more))
    result = run_score(wanted, NullProgress(), Settings())
    assert (result.rows_in, result.kept, result.failed) == (TARS * ROWS, TARS * ROWS, 0)
    assert spilled_mb(small_ray) == 0

    held = [ray.put(np.ones(40_000_000, np.uint8)) for _ in range(10)]  # what spilling would have looked like
    assert spilled_mb(small_ray) > 0 and len(held) == 10
