"""Others read what we write, and we read what others write: with their own code, in an environment of their own."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sightloom.config import load
from sightloom.data.curation import curate
from sightloom.data.recipe import Recipe
from sightloom.data.shards.manifest import Manifest, read_manifest
from sightloom.data.shards.reader import SampleReader, read_table
from sightloom.data.sources.chunks import list_files, read_chunks
from sightloom.data.sources.config import WebDatasetSource
from sightloom.progress import NullProgress

from ..environments import Unavailable, interpreter
from ..readers import read

RECIPE = Path(__file__).parents[2] / "pipelines" / "recipes" / "photos.yaml"
PROGRAM = Path(read.__file__)
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def python() -> Path:
    try:
        return interpreter("readers")
    except Unavailable as error:
        pytest.skip(f"the readers' environment cannot be made here: {error}")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, shared_data: Path, ray_session: None) -> Manifest:
    """Photos in shards of forty."""
    folder = tmp_path_factory.mktemp("photos")
    captions = (shared_data / "photos" / "captions.jsonl").read_text().splitlines()[:130]
    (folder / "captions.jsonl").write_text("\n".join(captions))
    for line in captions:
        name = json.loads(line)["file_name"]
        shutil.copyfile(shared_data / "photos" / name, folder / name)
    changes = [f"out={folder / 'out'}", f"source.0.uri={folder}", "pack.max_samples=40"]
    return read_manifest(curate(load(Recipe, RECIPE, changes), NullProgress()).manifest)


@pytest.fixture(scope="module")
def expected(shards: Manifest) -> list[list[str]]:
    """Key, text and pixels of every sample, in order."""
    import io

    from PIL import Image

    reader, found = SampleReader(shards), []
    for row in read_table(shards).to_pylist():
        sample = reader.fetch(row["shard"], row["offset"], row["size"])
        image = Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
        found.append([row["key"], sample["txt"].decode(), read.pixels(image)])
    reader.close()
    assert len(found) > 100 and len(shards.shards) >= 3
    return found


def run(command: list[Any], **env: str) -> str:
    done = subprocess.run(list(map(str, command)), env={**os.environ, "PYTHONPATH": "", **env}, capture_output=True,
                          text=True, timeout=600, check=False)  # fmt: skip
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-3000:])
    return done.stdout


@pytest.mark.parametrize("reader", ["energon", "datasets", "webdataset"])
def test_every_sample_comes_out_of_others_readers(
    reader: str, python: Path, shards: Manifest, expected: list[list[str]]
) -> None:
    found = json.loads(run([python, PROGRAM, reader, shards.folder]).splitlines()[-1])
    assert sorted(found) == sorted(expected)


def test_energon_finds_nothing_wrong_and_makes_the_same_index(python: Path, shards: Manifest, tmp_path: Path) -> None:
    energon = python.with_name("energon")
    before = sorted(path.relative_to(shards.folder) for path in Path(shards.folder).rglob("*"))
    run([energon, "lint", "--split-parts", "train,val,test", shards.folder])
    assert sorted(path.relative_to(shards.folder) for path in Path(shards.folder).rglob("*")) == before
    copy = tmp_path / "copy"
    copy.mkdir()
    for shard in shards.shards:
        shutil.copyfile(Path(shards.folder) / shard.name, copy / shard.name)
    run([energon, "prepare", "--non-interactive", "--split-ratio", "1,0,0", "--skip-dataset-yaml", "--num-workers", "1",
         copy])  # fmt: skip
    for shard in shards.shards:
        assert (copy / f"{shard.name}.idx").read_bytes() == (Path(shards.folder) / f"{shard.name}.idx").read_bytes()
    theirs, ours = (json.loads((folder / ".nv-meta" / ".info.json").read_text()) for folder in
                    (copy, Path(shards.folder)))  # fmt: skip
    assert theirs == ours


def test_open_clip_counts_trains_on_and_evaluates_every_sample(python: Path, shards: Manifest) -> None:
    found = json.loads(run([python, PROGRAM, "open_clip", shards.folder]).splitlines()[-1])
    samples, tars = shards.totals.samples, len(shards.shards)
    assert found == {"size": [samples, tars], "train": [[8, 3, 32, 32], [8, 77]], "evaluated": samples}


def test_torch_workers_share_the_shards(shards: Manifest, expected: list[list[str]]) -> None:
    import webdataset
    from torch.utils.data import DataLoader

    tars = [shards.tar_uri(number) for number in range(len(shards.shards))]
    rows = webdataset.WebDataset(tars, shardshuffle=False).map(lambda row: [row["__key__"], row["txt"].decode()])
    found = list(DataLoader(rows, batch_size=None, num_workers=2))
    assert sorted(found) == sorted([key, text] for key, text, _ in expected)


def test_ray_reads_the_tars_of_the_folder(shards: Manifest, expected: list[list[str]]) -> None:
    import ray

    rows = ray.data.read_webdataset(shards.folder, file_extensions=["tar"], decoder=False).take_all()
    assert sorted([row["__key__"], row["txt"]] for row in rows) == sorted([key, text] for key, text, _ in expected)


@pytest.mark.parametrize("program", ["tar", "bsdtar"])
def test_tar_lists_the_members(program: str, shards: Manifest, expected: list[list[str]]) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} here")
    names = [name for number in range(len(shards.shards))
             for name in run([program, "-tf", shards.tar_uri(number)]).splitlines()]  # fmt: skip
    assert names == [f"{key}.{extension}" for key, _, _ in expected for extension in ("jpg", "txt", "json")]


@pytest.fixture
def photo_server(shared_data: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    handler = functools.partial(Quiet, directory=str(shared_data / "photos"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_img2dataset_makes_is_read_whole(
    python: Path, photo_server: str, shared_data: Path, tmp_path: Path
) -> None:
    captions = [json.loads(line) for line in (shared_data / "photos" / "captions.jsonl").read_text().splitlines()[:90]]
    rows = [{"url": f"{photo_server}/{row['file_name']}", "caption": row["text"], "likeness": number / 8}
            for number, row in enumerate(captions)]  # fmt: skip
    rows.append({"url": f"{photo_server}/gone.jpg", "caption": "not there", "likeness": 0.0})
    (tmp_path / "urls.json").write_text(json.dumps(rows))
    run([python.with_name("img2dataset"), "--url_list", tmp_path / "urls.json", "--input_format", "json", "--url_col",
         "url", "--caption_col", "caption", "--save_additional_columns", '["likeness"]', "--output_folder",
         tmp_path / "made", "--output_format", "webdataset", "--image_size", "128", "--resize_mode", "keep_ratio",
         "--processes_count", "1", "--thread_count", "8", "--number_sample_per_shard", "40"],
        WANDB_MODE="disabled")  # fmt: skip
    made = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert any(name.endswith(".parquet") for name in made) and any(name.endswith("_stats.json") for name in made)
    source = WebDatasetSource(kind="webdataset", uri=str(tmp_path / "made"), keep_fields={"likeness": "float32"})
    found = [row for file in list_files(source, 64) for chunk in read_chunks(file, frozenset())
             for row in chunk.table.to_pylist()]  # fmt: skip
    assert {row["status"] for row in found} == {"ok"} and len(found) == len(captions)
    by_url = {row["url"]: row for row in rows}
    for row in found:
        meta = json.loads(row["meta"])
        original = by_url[meta["url"]]
        assert (row["text"], meta["likeness"]) == (original["caption"], original["likeness"])
        assert (row["key"], meta["status"]) == (meta["key"], "success") and row["image"][:3] == b"\xff\xd8\xff"
