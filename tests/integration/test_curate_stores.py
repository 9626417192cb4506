"""A curation from an object store and from a list of URLs, with a scorer of the command line."""

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.integration.curations import RECIPES, check_sums, put_raw, recipe

from sightloom.config import load
from sightloom.data.curation import curate
from sightloom.data.recipe import Recipe
from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.reader import read_table
from sightloom.progress import NullProgress

pytestmark = pytest.mark.usefixtures("ray_session")


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
