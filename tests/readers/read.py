"""Reads a folder of shards as others do, in the readers' environment; prints a JSON list of what came out.

    read.py energon|datasets|webdataset FOLDER

Each entry: key, text, and the picture's SHA-256 over (width, height, RGB bytes).
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def pixels(array: Any) -> str:
    """Hash an RGB picture given as uint8 [H, W, 3]."""
    array = np.ascontiguousarray(array, dtype=np.uint8)
    height, width, _ = array.shape
    return hashlib.sha256(f"{width}x{height}:".encode() + array.tobytes()).hexdigest()


def energon(folder: str) -> list[list[str]]:
    from megatron.energon import WorkerConfig, get_loader, get_val_dataset

    found = []
    config = WorkerConfig(rank=0, world_size=1, num_workers=1)
    dataset = get_val_dataset(folder, split_part="train", worker_config=config, batch_size=1)
    for batch in get_loader(dataset):
        image = (batch.image[0].permute(1, 2, 0).numpy() * 255).round()
        found.append([batch.__key__[0].split("/")[-1], batch.caption[0], pixels(image)])
    return found


def datasets(folder: str) -> list[list[str]]:
    from datasets import load_dataset

    files = sorted(str(path) for path in Path(folder).glob("*.tar"))
    rows = load_dataset("webdataset", data_files={"train": files}, split="train", streaming=True)
    return [[row["__key__"], row["txt"], pixels(row["jpg"].convert("RGB"))] for row in rows]


def webdataset(folder: str) -> list[list[str]]:
    import webdataset as wds

    files = sorted(str(path) for path in Path(folder).glob("*.tar"))
    rows = wds.WebDataset(files, shardshuffle=False).decode("rgb8")
    return [[row["__key__"], row["txt"], pixels(row["jpg"])] for row in rows]


if __name__ == "__main__":
    print(json.dumps({"energon": energon, "datasets": datasets, "webdataset": webdataset}[sys.argv[1]](sys.argv[2])))
