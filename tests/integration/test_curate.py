"""The whole curation on a real Ray, on local disk and on a real S3-protocol server."""

import hashlib
import http.server
import io
import json
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sightloom import storage
from sightloom.config import load, validate
from sightloom.data.curation import Settings, curate
from sightloom.data.recipe import Recipe
from sightloom.data.results import CurationResult
from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.reader import SampleReader, read_table
from sightloom.data.shards.verify import verify
from sightloom.errors import UserMistake
from sightloom.progress import NullProgress

from ..raw_pairs import scene_bytes, tar_bytes

RECIPES = Path(__file__).parents[2] / "pipelines" / "recipes"
pytestmark = pytest.mark.usefixtures("ray_session")


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


def test_a_corpus_becomes_shards_once_and_again_the_same(tmp_path: Path, tiny_clip: Path) -> None:
    raw = str(tmp_path / "raw")
    put_raw(raw)
    wanted = recipe(raw, str(tmp_path / "out"), tiny_clip)
    result = curate(wanted, NullProgress())
    check_sums(result)
    assert result.rows_in == 180 and result.failed == 0
    planted = {"truncated_image": 2, "empty_text": 2, "small": 2, "dup_image": 2}
    assert {name: result.dropped[name] for name in planted} == planted
    assert result.kept == 40 + 66  # every question; half of the 132 pairs that are left

    manifest = read_manifest(result.manifest)
    table = read_table(manifest)
    reader = SampleReader(manifest)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny_clip}")
    model.eval()
    pairs = [row for row in table.to_pylist() if row["kind"] == "pair"]
    for row in [row for row in pairs if row["source_key"][-2:] not in ("00", "03")][:20]:  # the planted copies
        sample = reader.read(row["shard"], row["offset"], row["size"])
        assert sample.image == scene_bytes(int(row["source_key"])) and sample.image is not None
        with torch.no_grad():
            image = model.encode_image(preprocess(Image.open(io.BytesIO(sample.image)).convert("RGB"))[None], True)
            text = model.encode_text(tokenizer([sample.text]), True)
        assert abs(float((image * text).sum()) - row["clip_tiny"]) <= 1e-4
    assert all(row["clip_tiny"] is None for row in table.to_pylist() if row["kind"] == "conversation")

    page = Path(result.report).read_text()
    assert "default-src 'none'" in page and "<script" not in page and "http://" not in page
    report = json.loads(Path(result.report).with_name("report.json").read_text())
    assert report["rows_in"] == 180 and report["domains"]["ui"]["kept"] == 40

    before = files_under(tmp_path / "out")
    again = curate(wanted, NullProgress())
    assert files_under(tmp_path / "out") == before
    assert again.to_json() | {"samples_per_s": 0} == result.to_json() | {"samples_per_s": 0}
    other = curate(recipe(raw, str(tmp_path / "other"), tiny_clip), NullProgress())
    assert read_manifest(other.manifest).digest == manifest.digest

    half = recipe(raw, str(tmp_path / "out"), tiny_clip, select={"rules": {"small": "min(width, height) >= 10"}})
    with pytest.raises(UserMistake, match="made by another recipe"):
        curate(half, NullProgress())
    assert files_under(tmp_path / "out") == before
    replaced = curate(half, NullProgress(), settings=Settings(replace=True))
    check_sums(replaced)
    scores = {name: value for name, value in before.items() if name.startswith("scores/")}
    now = files_under(tmp_path / "out")
    assert {name: now[name] for name in now if name.startswith("scores/")} == scores  # nothing was scored again


def test_a_lost_commit_is_scored_again_and_a_lost_shard_is_packed_again(tmp_path: Path) -> None:
    raw = str(tmp_path / "raw")
    put_raw(raw)
    wanted = recipe(raw, str(tmp_path / "out"))
    first = read_manifest(curate(wanted, NullProgress()).manifest)
    commits = sorted((tmp_path / "out" / "scores").glob("*/commit/*.json"))
    for path in commits[::3]:
        path.unlink()
    shards = tmp_path / "out" / "shards" / "pool"
    for name in ("manifest.json", "pool-000001.tar"):
        (shards / name).unlink()
    second = read_manifest(curate(wanted, NullProgress()).manifest)
    assert second.digest == first.digest
    assert verify(second, True, NullProgress()).problems == ()


def test_nothing_of_another_plan_is_taken_for_ones_own(tmp_path: Path) -> None:
    raw, out = str(tmp_path / "raw"), str(tmp_path / "out")
    put_raw(raw)
    wanted = recipe(raw, out)
    first = read_manifest(curate(wanted, NullProgress()).manifest)
    Path(first.uri).unlink()  # as if killed before the manifest: another plan may now take the place
    other = curate(recipe(raw, out, pack={"max_samples": 60, "order": "source"}), NullProgress())
    check_sums(other)
    with pytest.raises(UserMistake, match=r"made by another recipe: pack\.order source -> auto"):
        curate(wanted, NullProgress())
    again = curate(wanted, NullProgress(), settings=Settings(replace=True))
    check_sums(again)
    assert read_manifest(again.manifest).digest == first.digest
    fewer = recipe(raw, out, select={**wanted.select.model_dump(), "top": [{"by": "sharpness", "fraction": 0.2}]})
    with pytest.raises(UserMistake, match=r"select\.top\.0\.fraction 0\.5 -> 0\.2") as caught:
        curate(fewer, NullProgress())
    assert caught.value.hint == "choose another name, or give --replace"
    Path(first.uri).write_text(Path(first.uri).read_text().replace('"failed":0', '"failed":1'))
    with pytest.raises(UserMistake, match="does not match its own digest"):
        curate(wanted, NullProgress())
    assert (
        read_manifest(curate(wanted, NullProgress(), settings=Settings(replace=True)).manifest).digest == first.digest
    )


def test_a_whole_run_makes_series_of_reencoded_shards(tmp_path: Path) -> None:
    raw = str(tmp_path / "raw")
    put_raw(raw)
    pack = {
        "max_samples": 30,
        "group_by": "domain",
        "multiple_of": 2,
        "image": {"max_side": 24, "format": "webp", "quality": 50},
    }
    result = curate(recipe(raw, str(tmp_path / "out"), pack=pack), NullProgress())
    check_sums(result)
    manifest = read_manifest(result.manifest)
    for domain, samples in manifest.totals.domains.items():
        names = [shard.name for shard in manifest.shards if shard.domains == {domain: shard.samples}]
        assert names == [f"pool-{domain}-{number:06d}.tar" for number in range(len(names))]
        assert len(names) % 2 == 0 and len(names) >= samples / 30
    assert sum(shard.samples for shard in manifest.shards) == result.kept
    rows = [row for row in read_table(manifest).to_pylist() if row["image_ext"] == "webp"]
    assert rows and all(max(row["width"], row["height"]) <= 24 for row in rows)
    with pytest.raises(UserMistake, match=r"pack\.group_by: 'sharpness' is float, which names no series"):
        curate(recipe(raw, str(tmp_path / "x"), pack={"group_by": "sharpness"}), NullProgress())
    with pytest.raises(UserMistake, match=r"pack\.group_by: 'domian' is not a column"):
        curate(recipe(raw, str(tmp_path / "x"), pack={"group_by": "domian"}), NullProgress())


def test_bad_input_is_a_clear_mistake_and_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    put_raw(str(raw))
    with pytest.raises(UserMistake, match="no files at"):
        curate(recipe(str(tmp_path / "nowhere"), str(tmp_path / "out")), NullProgress())
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserMistake, match="file"):
        curate(recipe(str(raw), str(tmp_path / "file" / "out")), NullProgress())
    rules = {"select": {"rules": {"x": "widht > 1"}}}
    with pytest.raises(UserMistake, match="'widht'"):
        curate(recipe(str(raw), str(tmp_path / "out"), **rules), NullProgress())
    (raw / "questions.parquet").write_bytes(b"PAR1 rubbish")
    with pytest.raises(UserMistake, match="not a readable parquet"):
        curate(recipe(str(raw), str(tmp_path / "out")), NullProgress())
    assert not (tmp_path / "out" / "shards").exists()
    storage.write(str(raw / "questions.parquet"), questions())
    (raw / "pairs-1.tar").write_bytes(raw_tar(100, 70)[:40_000])
    result = curate(recipe(str(raw), str(tmp_path / "out")), NullProgress())
    check_sums(result)
    assert result.dropped["tar_truncated"] == 1


def test_nothing_kept_is_an_empty_manifest_that_says_why(tmp_path: Path) -> None:
    raw = str(tmp_path / "raw")
    put_raw(raw)
    rules = {"select": {"rules": {"huge": "width > 5000"}}}
    result = curate(recipe(raw, str(tmp_path / "out"), **rules), NullProgress())
    assert (result.kept, result.shards) == (0, 0) and result.dropped["huge"] > 100
    with pytest.raises(UserMistake, match="lists no shards"):
        read_table(read_manifest(result.manifest))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("pool")
    yield "s3://pool"
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_scorer_named_on_the_command_line_scores_a_real_recipe(
    tmp_path: Path, shared_data: Path, tiny_clip: Path
) -> None:
    clip = f"score.clip=[{{name: tiny, model: 'local-dir:{tiny_clip}', kinds: [pair, conversation]}}]"
    overrides = [f"out={tmp_path / 'math'}", f"source.0.uri={shared_data / 'math'}/math-000000.tar", clip]
    result = curate(load(Recipe, RECIPES / "math.yaml", overrides), NullProgress())
    check_sums(result)
    table = read_table(read_manifest(result.manifest))
    assert result.kept == table.num_rows > 0.8 * result.rows_in
    assert table.column("clip_tiny").null_count == 0


def test_a_list_of_urls_is_fetched_then_curated(tmp_path: Path, shared_data: Path) -> None:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(shared_data / "photos"))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    captions = [json.loads(line) for line in (shared_data / "photos" / "captions.jsonl").read_text().splitlines()][:40]
    rows = [{"url": f"{base}/{row['file_name']}", "text": row["text"], "domain": "natural"} for row in captions]
    rows += [
        {"url": f"{base}/gone.jpg", "text": "x", "domain": "art"},
        {"url": "ftp://a/b", "text": "x", "domain": "art"},
    ]
    (tmp_path / "urls.jsonl").write_text("\n".join(map(json.dumps, rows)))
    overrides = [f"out={tmp_path / 'out'}", f"source.0.uri={tmp_path / 'urls.jsonl'}"]
    try:
        result = curate(load(Recipe, RECIPES / "urls.yaml", overrides), NullProgress())
        closed = curate(
            load(Recipe, RECIPES / "urls.yaml", [*overrides[1:], f"out={tmp_path / 'closed'}",
                                                 "source.0.fetch.allow_networks=[]"]),
            NullProgress(),
        )  # fmt: skip
    finally:
        server.shutdown()
    check_sums(result)
    assert result.rows_in == 42 and result.kept == 40
    assert result.dropped == {"fetch_http_404": 1, "fetch_scheme": 1}
    assert (closed.kept, closed.dropped) == (0, {"fetch_blocked_address": 41, "fetch_scheme": 1})
    row = read_table(read_manifest(result.manifest)).to_pylist()[0]
    assert row["domain"] == "natural" and row["sha256"]


def test_an_object_store_gives_the_same_shards(bucket: str) -> None:
    import ray

    put_raw(f"{bucket}/raw")
    wanted = recipe(f"{bucket}/raw", f"{bucket}/out")
    ray.shutdown()  # its workers have the environment from before the store was started
    ray.init(address="local", num_cpus=4, object_store_memory=200_000_000, include_dashboard=False, log_to_driver=False)
    result = curate(wanted, NullProgress())
    check_sums(result)
    assert result.rows_in == 180 and result.manifest.startswith("s3://pool/out/")
    again = curate(wanted, NullProgress())
    assert read_manifest(again.manifest).digest == read_manifest(result.manifest).digest
    ray.shutdown()
