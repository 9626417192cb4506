"""The registry on a real sqlite store and on a real MLflow server."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sightloom.errors import SightloomError, UserMistake
from sightloom.registry import Registry, Version
from sightloom.tracking import MlflowTracker


def export(folder: Path, weights: bytes = b"\x00" * 5000) -> Path:
    (folder / "adapter").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "adapter" / "notes.txt").write_text("n")
    return folder


@pytest.fixture(scope="module")
def registry(mlflow_uri: str) -> Registry:
    return Registry(mlflow_uri)


@pytest.fixture(scope="module")
def run_id(mlflow_uri: str) -> str:
    return MlflowTracker(mlflow_uri, "registry-tests").start_run("train")


def test_a_registered_folder_comes_back_verified(registry: Registry, run_id: str, tmp_path: Path) -> None:
    folder = export(tmp_path / "export")
    first = registry.register("round-trip", folder, run_id, {"sightloom.preset": "nano"})
    second = registry.register("round-trip", folder, run_id)
    assert (first.version, second.version) == (1, 2)
    assert first.digest == second.digest
    assert not (folder / "manifest.json").exists(), "the exported folder is left as it was"
    found = registry.resolve("round-trip:1")
    assert found == first
    assert found.tags["sightloom.preset"] == "nano"
    place = registry.materialize(found, tmp_path / "cache")
    assert (place / "model.safetensors").read_bytes() == b"\x00" * 5000
    assert hashlib.sha256((place / "manifest.json").read_bytes()).hexdigest() == found.digest
    assert [version.version for version in registry.versions("round-trip")] == [1, 2]
    assert "round-trip" in registry.names()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: flip_byte(folder / "model.safetensors"), "model.safetensors"),
        (lambda folder: (folder / "adapter" / "notes.txt").unlink(), "adapter/notes.txt"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{}"), "tokenizer_config.json"),
        (lambda folder: flip_byte(folder / "manifest.json"), "manifest.json"),
    ],
)
def test_one_changed_byte_is_refused_and_the_file_named(
    registry: Registry, run_id: str, tmp_path: Path, change: object, named: str
) -> None:
    version = registry.register("changed", export(tmp_path / "export"), run_id)
    assert callable(change)
    change(registry.materialize(version, tmp_path))
    with pytest.raises(SightloomError, match=named):
        registry.materialize(version, tmp_path)


def test_an_export_whose_own_manifest_does_not_match_is_not_registered(
    registry: Registry, run_id: str, tmp_path: Path
) -> None:
    folder = export(tmp_path / "export")
    entry = {"sha256": "0" * 64, "bytes": 5000}
    (folder / "manifest.json").write_text(json.dumps({"files": {"model.safetensors": entry}}))
    with pytest.raises(SightloomError, match=r"adapter/notes\.txt"):
        registry.register("mismatch", folder, run_id)
    assert registry.versions("mismatch") == []


def test_what_may_run_code_is_not_registered(registry: Registry, run_id: str, tmp_path: Path) -> None:
    folder = export(tmp_path / "export")
    (folder / "modeling.py").write_text("")
    with pytest.raises(UserMistake, match=r"modeling\.py"):
        registry.register("unsafe", folder, run_id)
    with pytest.raises(UserMistake, match=r"config\.json"):
        registry.register("empty", tmp_path, run_id)
    with pytest.raises(UserMistake, match="is no model name"):
        registry.register("Sight Loom", folder, run_id)


def test_aliases_move_and_unknown_references_say_what_there_is(registry: Registry, run_id: str, tmp_path: Path) -> None:
    version = registry.register("aliased", export(tmp_path / "export"), run_id)
    registry.set_alias("aliased", "champion", version.version)
    assert registry.resolve("aliased@champion") == registry.resolve("aliased") == version
    registry.drop_alias("aliased", "champion")
    registry.drop_alias("aliased", "champion")
    assert registry.aliases("aliased") == {}
    for reference in ("aliased:9", "aliased@champion", "aliased"):
        with pytest.raises(UserMistake, match=r"versions of aliased: 1; aliases: none"):
            registry.resolve(reference)
    with pytest.raises(UserMistake, match="models: "):
        registry.resolve("nobody@champion")


@pytest.fixture
def server_uri(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{tmp_path}/kept"]
    with open(tmp_path / "server.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                httpx.get(f"{uri}/health", timeout=2).raise_for_status()
                break
            except httpx.HTTPError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.5)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def test_a_server_gives_the_same_files_and_a_damaged_cache_is_repaired(server_uri: str, tmp_path: Path) -> None:
    tracker = MlflowTracker(server_uri, "e")
    run_id = tracker.start_run("train", params={"lr": "1"})
    tracker.log_metrics(run_id, {"loss": 1.0}, 0)
    tracker.end_run(run_id)
    registry = Registry(server_uri)
    version = registry.register("remote", export(tmp_path / "export"), run_id)
    assert version.uri.startswith("mlflow-artifacts:")
    first = registry.materialize(version, tmp_path / "cache")
    assert first == tmp_path / "cache" / version.digest
    flip_byte(first / "model.safetensors")
    again = registry.materialize(registry.resolve("remote:1"), tmp_path / "cache")
    assert (again / "model.safetensors").read_bytes() == b"\x00" * 5000
    stored = next((tmp_path / "kept").rglob("model.safetensors"))
    flip_byte(stored)
    with pytest.raises(SightloomError, match=r"model\.safetensors"):
        registry.materialize(Version(version.name, 1, version.digest, "", version.uri), tmp_path / "other-cache")
    assert list((tmp_path / "other-cache").glob(f"{version.digest}")) == []


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
