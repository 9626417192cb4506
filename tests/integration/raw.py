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


def environment(home: Path, fault: dict[str, Any] | None = None, **more: str) -> dict[str, str]:
    """The environment of a run, with faults if some are given."""
    home.mkdir(parents=True, exist_ok=True)
    path = [str(PLATFORM)] if fault is None else [str(INJECTED), str(PLATFORM)]
    settings = {"HOME": str(home), "PYTHONPATH": os.pathsep.join(path), "SIGHTLOOM_TEST_FAULT": json.dumps(fault or {})}
    return {**os.environ, **settings, **more}


def start(recipe: Path, env: dict[str, str], verb: str = "curate", *options: str) -> "subprocess.Popen[str]":
    """Start `sightloom VERB RECIPE --json`."""
    command = [sys.executable, "-c", "from sightloom.cli import main; main()", verb, str(recipe), "--json", *options]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: "subprocess.Popen[str]", timeout: float = 400) -> dict[str, Any]:
    """Wait for a run that must succeed, and return what it printed."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, err[-4000:]
    result: dict[str, Any] = json.loads(out)
    return result
