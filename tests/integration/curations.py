"""A small raw corpus, the recipe that curates it, and what every result must add up to."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sightloom import storage
from sightloom.config import validate
from sightloom.data.recipe import Recipe
from sightloom.data.results import CurationResult
from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.verify import verify
from sightloom.progress import NullProgress

from ..raw_pairs import scene_bytes, tar_bytes

RECIPES = Path(__file__).parents[2] / "pipelines" / "recipes"


def raw_tar(first: int, rows: int) -> bytes:
    """Pairs with planted defects: a duplicate, a cut picture, an empty caption, a tiny picture."""
    samples = []
    for number in range(first, first + rows):
        members = {
            "png": scene_bytes(number),
            "txt": f"scene number {number}".encode(),
            "json": b'{"domain": "art"}',
        } | {
            3: {"png": scene_bytes(first)},
            5: {"png": scene_bytes(number)[:200]},
            7: {"txt": b" "},
            9: {"png": scene_bytes(number, (1, 1))},
        }.get(number - first, {})
        samples.append((f"{number:05d}", members))
    return tar_bytes(samples)


def questions() -> bytes:
    records = [
        {
            "id": f"q{number}", "kind": "conversation", "task": "count", "domain": "ui",
            "messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": str(number)}],
            "answer": {"kind": "number", "value": number},
        }
        for number in range(40)
    ]  # fmt: skip
    images = [scene_bytes(1000 + number // 4) for number in range(40)]
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": images, "record": [json.dumps(record) for record in records]}), sink)
    return sink.getvalue()


def recipe(raw: str, out: str, scorer: Path | None = None, **more: Any) -> Recipe:
    """The curation of the raw files; without a scorer the sharpest half stays."""
    clip = [{"name": "tiny", "model": f"local-dir:{scorer}"}] if scorer else []
    by = "clip_tiny" if scorer else "sharpness"
    data: dict[str, Any] = {
        "name": "pool", "out": out,
        "source": [
            {"kind": "webdataset", "uri": f"{raw}/pairs-*.tar"},
            {"kind": "parquet", "uri": f"{raw}/questions.parquet"},
        ],
        "score": {"chunk_rows": 32, "clip": clip},
        "dedup": {"prefer": by, "perceptual": {"bits": 4}},
        "select": {
            "rules": {"small": "min(width, height) >= 10"},
            "top": [{"by": by, "fraction": 0.5, "per": "domain", "kinds": ["pair"]}],
        },
        "pack": {"max_samples": 60},
        **more,
    }  # fmt: skip
    return validate(Recipe, data, "test")


def put_raw(raw: str) -> None:
    for number in range(2):
        storage.write(storage.join(raw, f"pairs-{number}.tar"), raw_tar(100 * number, 70))
    storage.write(storage.join(raw, "questions.parquet"), questions())


def check_sums(result: CurationResult) -> None:
    assert result.rows_in == result.kept + sum(result.dropped.values()) + result.failed
    assert list(result.to_json()) == ["manifest", "rows_in", "kept", "dropped", "failed", "shards", "samples_per_s"]
    manifest = read_manifest(result.manifest)
    assert manifest.totals.kept == result.kept == sum(shard.samples for shard in manifest.shards)
    assert verify(manifest, True, NullProgress()).problems == ()


def files_under(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
