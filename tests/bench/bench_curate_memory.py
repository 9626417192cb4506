"""Peak memory of a whole curation when its input grows tenfold.

`sightloom curate` runs in a process of its own on N and on 10 N pairs, with a scorer. The peak is the proportional set
size (PSS, so that shared pages and the object store's count once) summed over the driver and all its descendants, Ray's
included. Both sides are ours; `ratio` is small / large, so that 1 / 1.1 is the limit.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from sightloom.data.shards.tarfiles import TarWriter

TARGET = round(1 / 1.1, 3)
EVERY_S = 0.2
MODEL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--side", type=int, default=256)
    args = parser.parse_args()
    small, large = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write_scorer(root / "scorer")
        _write_tars(root / "raw", args.rows * args.times, args.side)
        for run in range(args.runs):
            small.append(_peak_mb(root, f"small-{run}", args.rows))
            large.append(_peak_mb(root, f"large-{run}", args.rows * args.times))
            print(
                f"run {run}: {small[-1]:.0f} MB for {args.rows} rows, {large[-1]:.0f} MB for {args.times} times as many"
            )
    result = {
        "name": "curate_memory",
        "ours": round(max(large), 1),
        "peer": round(min(small), 1),
        "unit": "MB",
        "ratio": round(min(small) / max(large), 3),
        "target": TARGET,
        "runs": [[round(a, 1), round(b, 1)] for a, b in zip(large, small, strict=True)],
    }
    print(json.dumps(result))


def _write_scorer(folder: Path) -> None:
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    save_file(open_clip.create_model(f"local-dir:{folder}").state_dict(), folder / "open_clip_model.safetensors")


def _write_tars(folder: Path, rows: int, side: int, per_tar: int = 256) -> None:
    """Write noise of blocks as JPEG: no two pictures are alike."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for first in range(0, rows, per_tar):
        with TarWriter(folder / f"{first // per_tar:05d}.tar") as tar:
            for number in range(first, min(rows, first + per_tar)):
                blocks = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                sink = io.BytesIO()
                Image.fromarray(blocks).resize((side, side), Image.Resampling.BICUBIC).save(sink, "JPEG")
                tar.add(f"{number:07d}", [("jpg", sink.getvalue()), ("txt", f"picture number {number}".encode())])


def _peak_mb(root: Path, name: str, rows: int) -> float:
    """Curate the first `rows` pairs; return the highest sum of PSS that was seen."""
    last = (rows + 255) // 256 - 1
    recipe = {
        "name": "memory",
        "out": str(root / name),
        "source": [{"kind": "webdataset", "uri": f"{root}/raw/{{00000..{last:05d}}}.tar"}],
        "score": {"chunk_rows": 64, "clip": [{"name": "c", "model": f"local-dir:{root}/scorer", "batch": 32}]},
        "dedup": {"prefer": "clip_c", "perceptual": {"bits": 4}},
        "select": {"top": [{"by": "clip_c", "fraction": 0.5}]},
        "pack": {"max_samples": 500},
    }
    path = root / f"{name}.yaml"
    path.write_text(json.dumps(recipe))
    command = [sys.executable, "-c", "from sightloom.cli import main; main()", "curate", str(path), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(_pss_kb, _family(process.pid))))
        time.sleep(EVERY_S)
    assert process.stdout is not None
    result = json.loads(process.stdout.read())
    assert process.returncode == 0 and result["rows_in"] == rows, result
    return peak * 1024 / 1e6


def _family(root: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


def _pss_kb(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        return 0
    return 0


if __name__ == "__main__":
    main()
