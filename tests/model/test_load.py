import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tests.model.conftest import picture

from sightloom.errors import UserMistake
from sightloom.model.chat import Encoder
from sightloom.model.load import fetch, load


def test_a_folder_is_used_where_it_is(nano_folder: Path, tmp_path: Path) -> None:
    assert fetch(str(nano_folder), tmp_path) == nano_folder
    assert load(str(nano_folder), dtype="bfloat16").model.dtype == torch.bfloat16


def test_an_address_is_copied_once(nano_folder: Path, tmp_path: Path) -> None:
    copy = fetch(nano_folder.as_uri(), tmp_path)
    assert copy is not None and copy.parent == tmp_path
    assert {path.name: path.stat().st_size for path in copy.iterdir()} == {
        path.name: path.stat().st_size for path in nano_folder.iterdir()
    }
    stamp = (copy / "config.json").stat().st_mtime_ns
    assert fetch(nano_folder.as_uri(), tmp_path) == copy and (copy / "config.json").stat().st_mtime_ns == stamp
    assert list(tmp_path.iterdir()) == [copy]


def test_what_is_no_model_is_a_user_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match=r"has no config\.json"):
        load(str(tmp_path))
    with pytest.raises(UserMistake, match="no model folder"):
        load(str(tmp_path / "missing"))
    with pytest.raises(UserMistake, match="float31"):
        load(str(tmp_path), dtype="float31")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserMistake, match="cannot load"):
        load(str(tmp_path))


def test_pictures_are_bounded_by_the_pixels_that_are_given(nano_folder: Path) -> None:
    own, bounded = (Encoder(load(str(nano_folder), pixels=pixels).processor) for pixels in (None, (256, 1024)))
    assert own.bounds == (1024, 4096) and bounded.bounds == (256, 1024)
    assert bounded.num_patches(64, 64) == own.num_patches(64, 64) // 4
    assert len(bounded.pixels(picture(0, (64, 64)))[0]) == bounded.num_patches(64, 64)


def test_an_object_store_is_copied_once(nano_folder: Path, tmp_path: Path, store: int) -> None:
    import s3fs

    fs = s3fs.S3FileSystem()
    fs.put(f"{nano_folder}/", "pool/models/nano", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()
    first = load("s3://pool/models/nano", cache=tmp_path)
    assert first.folder.parent == tmp_path and not first.folder.is_relative_to(nano_folder)
    expected = dict(load(str(nano_folder)).model.named_parameters())
    assert all(torch.equal(value, expected[name]) for name, value in first.model.named_parameters())
    stamp = (first.folder / "model.safetensors").stat().st_mtime_ns
    assert fetch("s3://pool/models/nano", tmp_path) == first.folder
    assert (first.folder / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(UserMistake, match="no files at 's3://pool/nothing'"):
        fetch("s3://pool/nothing", tmp_path)


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of a hub, for one model."""

    folder: Path
    downloads: ClassVar[list[str]] = []
    protocol_version = "HTTP/1.1"
    revision = "0123456789abcdef0123456789abcdef01234567"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = path.rsplit("/", 1)[1]
        if path.startswith("/api/models/acme/nano"):
            files = [
                {"rfilename": file.name, "size": file.stat().st_size, "path": file.name, "type": "file", "oid": "0"}
                for file in self.folder.iterdir()
            ]
            if "/tree/" in path:
                return self.reply(200, json.dumps(files).encode())
            return self.reply(200, json.dumps({"id": "acme/nano", "sha": self.revision, "siblings": files}).encode())
        if path.startswith("/acme/nano/resolve/") and (self.folder / name).is_file():
            self.downloads.append(name)
            return self.reply(200, (self.folder / name).read_bytes())
        return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {
            "Content-Length": str(len(body)), "Content-Type": "application/json", "X-Repo-Commit": self.revision,
            "ETag": f'"{hashlib.sha1(body).hexdigest()}"', **(headers or {}),
        }.items():  # fmt: skip
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def in_a_process(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Fetch a model in a fresh process: huggingface_hub reads its environment when it is imported."""
    code = f"from sightloom.model.load import fetch; print(fetch({source!r}))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)


def test_a_hub_id_is_downloaded_and_without_the_hub_it_is_a_mistake_in_words(nano_folder: Path, tmp_path: Path) -> None:
    handler = type("OfNano", (Hub,), {"folder": nano_folder, "downloads": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    online = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0",
              "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
    try:
        done = in_a_process("acme/nano", **online)
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.strip())
        assert (folder / "model.safetensors").read_bytes() == (nano_folder / "model.safetensors").read_bytes()
        assert load(str(folder)).model.config.model_type == "qwen3_vl"
        unknown = in_a_process("acme/other", **online)
        assert "UserMistake" in unknown.stderr and "'acme/other' is no folder" in unknown.stderr
    finally:
        server.shutdown()
    cached = in_a_process("acme/nano", **(online | {"HF_HUB_OFFLINE": "1"}))
    assert cached.stdout.strip() == str(folder)


def test_a_hub_id_offline_is_a_mistake_in_words() -> None:
    with pytest.raises(
        UserMistake, match=r"'acme/nowhere' is no folder, and as a hub id it cannot be fetched"
    ) as caught:
        load("acme/nowhere")
    assert caught.value.hint is not None and "give its folder" in caught.value.hint
