"""Reads a folder of shards as others do, in the readers' environment; prints a JSON list of what came out.

    read.py energon|datasets|webdataset|open_clip FOLDER

Each entry: key, text, and the picture's SHA-256 over (width, height, RGB bytes). Of open_clip, whose loader yields
batches only: the sizes that it reads, the shapes of a batch of training, and how many samples it evaluates.
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


def open_clip(folder: str) -> dict[str, Any]:
    from argparse import Namespace

    from open_clip import get_tokenizer
    from open_clip_train.data import get_dataset_size, get_wds_dataset
    from torchvision import transforms

    files = sorted(Path(folder).glob("*.tar"))
    pattern = f"{folder}/{files[0].name[:-10]}{{000000..{len(files) - 1:06d}}}.tar"
    preprocess = transforms.Compose([transforms.Resize((32, 32)), transforms.ToTensor()])
    args = Namespace(train_data=pattern, val_data=pattern, train_num_samples=None, val_num_samples=None, seed=0,
                     workers=1, train_data_upsampling_factors=None, batch_size=8, world_size=1)  # fmt: skip
    tokenizer = get_tokenizer("ViT-B-32")
    train = get_wds_dataset(args, preprocess, is_train=True, tokenizer=tokenizer).dataloader
    check = get_wds_dataset(args, preprocess, is_train=False, tokenizer=tokenizer).dataloader
    return {
        "size": get_dataset_size(pattern),
        "train": [list(part.shape) for part in next(iter(train))],
        "evaluated": sum(len(images) for images, _ in check),
    }


READERS = {"energon": energon, "datasets": datasets, "webdataset": webdataset, "open_clip": open_clip}
if __name__ == "__main__":
    print(json.dumps(READERS[sys.argv[1]](sys.argv[2])))
