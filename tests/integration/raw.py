"""Raw corpora for the integration tests of curation, and the command line as users call it."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from sightloom import storage

INJECTED = Path(__file__).parent / "injected"
PLATFORM = Path(__file__).parents[2] / "platform"
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def picture(number: int, size: int = 48) -> bytes:
    """A PNG of blocks, another one for each number."""
    blocks = np.random.default_rng(number).integers(0, 255, (7, 7, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(blocks).resize((size, size), Image.Resampling.NEAREST).save(sink, "PNG")
    return sink.getvalue()


def put_tars(raw: str, tars: int, rows: int, special: dict[int, bytes] | None = None) -> None:
    """Write tars of pairs; `special` replaces pictures by number."""
    for tar_number in range(tars):
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w") as tar:
            for number in range(tar_number * rows, (tar_number + 1) * rows):
                image = (special or {}).get(number) or picture(number)
                text = f"scene number {number}".encode()
                for extension, data in {"png": image, "txt": text, "json": b'{"domain": "art"}'}.items():
                    info = tarfile.TarInfo(f"{number:05d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        storage.write(storage.join(raw, f"pairs-{tar_number}.tar"), sink.getvalue())


def write_scorer(folder: Path) -> Path:
    """Write a randomly initialised open_clip model as a local-dir folder."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    save_file(open_clip.create_model(f"local-dir:{folder}").state_dict(), folder / "open_clip_model.safetensors")
    return folder


def write_recipe(path: Path, raw: str, out: str, scorer: Path | None, **more: Any) -> Path:
    """Write a recipe that keeps the better half by the scorer, in shards of 40."""
    by = "clip_tiny" if scorer else "sharpness"
    data = {
        "name": "pool",
        "out": out,
        "source": [{"kind": "webdataset", "uri": f"{raw}/pairs-*.tar"}],
        "score": {"chunk_rows": 32, "clip": [{"name": "tiny", "model": f"local-dir:{scorer}"}] if scorer else []},
        "dedup": {"prefer": by, "perceptual": {"bits": 4}},
        "select": {"top": [{"by": by, "fraction": 0.5}]},
        "pack": {"max_samples": 40},
        **more,
    }
    path.write_text(yaml.safe_dump(data))
    return path


def environment(fault: dict[str, Any] | None = None, **more: str) -> dict[str, str]:
    """The environment of a run and of its Ray workers, on whatever Ray they run: with faults if some are given."""
    path = [str(PLATFORM)] if fault is None else [str(INJECTED), str(PLATFORM)]
    settings = {"PYTHONPATH": os.pathsep.join(path), "SIGHTLOOM_TEST_FAULT": json.dumps(fault or {}), **more}
    job = {"runtime_env": {"env_vars": settings}}
    return {**os.environ, **settings, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}


def start(recipe: Path, env: dict[str, str], address: str) -> "subprocess.Popen[str]":
    """Start `sightloom curate RECIPE --json` on a Ray that runs."""
    code = "from sightloom.cli import main; main()"
    command = [sys.executable, "-c", code, "curate", str(recipe), "--json", "--ray", address]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def start_cluster(*cpus: int) -> Any:
    """Start a Ray of nodes with so many cores each, every node a process of its own here.

    What a busy machine spoils (ray#65983) is tried again, here and in `add_node`.
    """
    import ray
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        ray.shutdown()
    for left in (2, 1, 0):
        cluster = Cluster()
        try:
            for number in cpus:
                cluster.add_node(num_cpus=number, object_store_memory=150_000_000)
            cluster.wait_for_nodes()
            return cluster
        except Exception:
            cluster.shutdown()
            if not left:
                raise
    raise AssertionError("unreachable")


def add_node(cluster: Any, cpus: int) -> None:
    """Add a node to a running cluster, and wait until it is alive."""
    for left in (2, 1, 0):
        before = set(cluster.worker_nodes)
        try:
            cluster.add_node(num_cpus=cpus, object_store_memory=150_000_000)
            return
        except Exception:
            for half_made in set(cluster.worker_nodes) - before:
                cluster.remove_node(half_made)
            if not left:
                raise


def finish(process: "subprocess.Popen[str]", timeout: float = 400) -> dict[str, Any]:
    """Wait for a run that must succeed, and return what it printed."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, (process.returncode, err[-4000:])
    result: dict[str, Any] = json.loads(out)
    return result
