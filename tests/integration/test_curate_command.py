"""`sightloom curate` as a person runs it: the command line, real data, and everything that goes wrong on the way."""

import http.server
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ray
import torch
import webdataset

from sightloom.cli import main
from sightloom.data.shards.manifest import read_manifest
from sightloom.data.shards.verify import verify
from sightloom.progress import NullProgress

RECIPES = Path(__file__).parents[2] / "pipelines" / "recipes"
SIGHTLOOM = Path(sys.executable).parent / "sightloom"
pytestmark = pytest.mark.usefixtures("ray_session")


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        found: dict[str, Any] = json.loads(self.out)
        return found


Command = Callable[..., Ran]


@pytest.fixture
def curate(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """The verb, run by this process's own `main`: it starts no second Ray and imports nothing again."""

    def run(recipe: Path | str, *sets: str) -> Ran:
        words = [word for override in sets for word in ("--set", override)]
        monkeypatch.setattr(sys, "argv", ["sightloom", "curate", str(recipe), *words, "--json"])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        monkeypatch.undo()
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return Ran(int(left.value.code or 0), out, err)

    return run


@pytest.fixture(scope="module")
def photo_server(shared_data: Path) -> Iterator[str]:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(shared_data / "photos"))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def captions(shared_data: Path, count: int) -> list[dict[str, str]]:
    lines = (shared_data / "photos" / "captions.jsonl").read_text().splitlines()[:count]
    return [json.loads(line) for line in lines]


def photo_folder(folder: Path, shared_data: Path, count: int) -> Path:
    """The first photos, linked, with their captions."""
    folder.mkdir()
    rows = captions(shared_data, count)
    for row in rows:
        (folder / row["file_name"]).symlink_to(shared_data / "photos" / row["file_name"])
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def check(result: dict[str, Any]) -> None:
    """The figures add up, the files are what the manifest says, and others read every sample."""
    assert list(result) == ["manifest", "rows_in", "kept", "dropped", "failed", "shards", "samples_per_s"]
    assert result["rows_in"] == result["kept"] + sum(result["dropped"].values()) + result["failed"]
    manifest = read_manifest(result["manifest"])
    assert (manifest.totals.kept, len(manifest.shards)) == (result["kept"], result["shards"])
    assert verify(manifest, True, NullProgress()).problems == ()
    tars = [manifest.tar_uri(number) for number in range(len(manifest.shards))]
    dataset = webdataset.WebDataset(tars, shardshuffle=False).decode("pil")
    keys = [sample["__key__"] for sample in torch.utils.data.DataLoader(dataset, batch_size=None)]
    assert len(keys) == len(set(keys)) == result["kept"]
    names: list[str] = []
    for tar in tars:
        with tarfile.open(tar) as opened:
            names += opened.getnames()
    assert len(names) == len(set(names)) and {name.split(".")[0] for name in names} == set(keys)
    out = Path(result["manifest"]).parents[2]
    (page,) = out.glob("report/*/index.html")
    assert f"{result['rows_in']:,}" in page.read_text() or str(result["rows_in"]) in page.read_text()


def test_each_recipe_turns_its_raw_form_into_shards_that_others_read(
    tmp_path: Path, shared_data: Path, photo_server: str, curate: Command
) -> None:
    rows = [{"url": f"{photo_server}/{row['file_name']}", **row} for row in captions(shared_data, 40)]
    rows += [{"url": f"{photo_server}/gone.jpg", "text": "x", "domain": "natural"}]
    (tmp_path / "urls.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = {
        "photos": (shared_data / "photos", 400),
        "receipts": (shared_data / "receipts.parquet", 150),
        "math": (shared_data / "math" / "math-{000000..000002}.tar", 600),
        "urls": (tmp_path / "urls.jsonl", 41),
    }
    for name, (source, num_rows) in sources.items():
        ran = curate(RECIPES / f"{name}.yaml", f"out={tmp_path / name}", f"source.0.uri={source}")
        assert ran.code == 0, ran.err
        check(ran.result)
        assert ran.result["rows_in"] == num_rows and ran.result["kept"] > 0.8 * num_rows
    assert ran.result["dropped"] == {"fetch_http_404": 1}

    whole = (tmp_path / "photos" / "shards" / "photos" / "manifest.json").read_bytes()
    changed = ('select.rules.small="min(width, height) >= 150"', f"source.0.uri={shared_data / 'photos'}")
    refused = curate(RECIPES / "photos.yaml", f"out={tmp_path / 'photos'}", *changed)
    assert refused.code == 2 and refused.out == ""
    assert "select.rules.small min(width, height) >= 100 -> min(width, height) >= 150" in refused.err
    assert "--replace" in refused.err
    assert (tmp_path / "photos" / "shards" / "photos" / "manifest.json").read_bytes() == whole


def test_a_mistake_is_told_in_words_and_leaves_with_2(tmp_path: Path, shared_data: Path, curate: Command) -> None:
    recipe, photos = RECIPES / "photos.yaml", f"source.0.uri={shared_data / 'photos'}"
    misspelt = tmp_path / "recipe.yaml"
    misspelt.write_text(recipe.read_text().replace("perceptual:", "perceptuel:"))
    (tmp_path / "file").write_text("x")
    mistakes = [
        (misspelt, (), ["unknown key 'perceptuel' in dedup", "did you mean 'perceptual'", str(misspelt)]),
        (recipe, (f"out={tmp_path / 'out'}", f"source.0.uri={tmp_path / 'nowhere'}"), [str(tmp_path / "nowhere")]),
        (recipe, (f"out={tmp_path / 'file' / 'out'}", photos), [str(tmp_path / "file" / "out"), "is a file"]),
        (recipe, ("out=/proc/sightloom", photos), ["/proc/sightloom"]),
        (recipe, (f"out={tmp_path / 'out'}", photos, "select.rules.x=widht > 1"), ["'widht'"]),
    ]
    for path, sets, words in mistakes:
        ran = curate(path, *sets)
        assert (ran.code, ran.out) == (2, ""), ran
        assert all(word in ran.err for word in words), ran.err
    assert not (tmp_path / "out" / "shards").exists()


def test_what_cannot_be_read_is_dropped_by_name_and_the_rest_goes_on(
    tmp_path: Path, shared_data: Path, curate: Command
) -> None:
    folder = photo_folder(tmp_path / "photos", shared_data, 20)
    names = [row["file_name"] for row in captions(shared_data, 20)]
    whole = (folder / names[0]).read_bytes()
    for name, data in {names[0]: whole[: len(whole) // 2], names[1]: b"<html>no picture</html>", names[2]: b""}.items():
        (folder / name).unlink()
        (folder / name).write_bytes(data)
    (folder / names[3]).unlink()
    ran = curate(RECIPES / "photos.yaml", f"out={tmp_path / 'out'}", f"source.0.uri={folder}")
    assert ran.code == 0, ran.err
    check(ran.result)
    assert ran.result["dropped"] == {"missing_image": 2, "truncated_image": 1, "unsupported_image": 1}

    tars = tmp_path / "tars"
    tars.mkdir()
    real = (shared_data / "math" / "math-000000.tar").read_bytes()
    (tars / "cut.tar").write_bytes(real[: len(real) // 2])
    (tars / "rubbish.tar").write_bytes(b"no tar at all" * 100)
    (tars / "empty.tar").write_bytes(b"")
    ran = curate(RECIPES / "math.yaml", f"out={tmp_path / 'math'}", f"source.0.uri={tars}/*.tar")
    assert ran.code == 0, ran.err
    check(ran.result)
    assert ran.result["dropped"]["tar_truncated"] == 3 and ran.result["kept"] > 50


def test_a_full_disk_is_told_in_words_and_the_same_command_goes_on(
    tmp_path: Path, shared_data: Path, curate: Command, small_disk: Callable[[str], Path]
) -> None:
    folder = photo_folder(tmp_path / "photos", shared_data, 60)
    finished: set[str] = set()
    for size, unfinished in (("48k", "scores"), ("2m", "shards")):
        out = small_disk(size)
        ran = curate(RECIPES / "photos.yaml", f"out={out}", f"source.0.uri={folder}", "score.chunk_rows=32")
        assert (ran.code, ran.out) == (1, ""), ran
        assert "no space is left on the disk" in ran.err and str(out) in ran.err
        assert not (out / "shards" / "photos" / "manifest.json").exists(), unfinished
        assert not list(out.glob("shards/photos/*.tar")), "a shard that looks whole"
        assert not [path for path in out.rglob(".*") if path.is_file()], "half-written files are left"
    small_disk("64m")
    finished = {path.name for path in out.glob("scores/*/commit/*.json")}
    ran = curate(RECIPES / "photos.yaml", f"out={out}", f"source.0.uri={folder}", "score.chunk_rows=32")
    assert ran.code == 0, ran.err
    check(ran.result)
    assert finished <= {path.name for path in out.glob("scores/*/commit/*.json")} and ran.result["rows_in"] == 60


def test_an_interrupted_command_leaves_with_130_and_goes_on(tmp_path: Path, shared_data: Path, curate: Command) -> None:
    sets = (f"out={tmp_path / 'out'}", f"source.0.uri={shared_data / 'photos'}", "score.chunk_rows=32")
    words = [word for override in sets for word in ("--set", override)]
    address = ray.get_runtime_context().gcs_address
    command = [SIGHTLOOM, "curate", RECIPES / "photos.yaml", *words, "--ray", address]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_AUTH_MODE": "token"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    try:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "score" in line or "error" in line)
        assert "score" in said, said
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in out + err and "interrupted" in err and out == ""
    assert not (tmp_path / "out" / "shards" / "photos" / "manifest.json").exists()
    ran = curate(RECIPES / "photos.yaml", *sets)
    assert ran.code == 0 and ran.result["rows_in"] == 400
    check(ran.result)
