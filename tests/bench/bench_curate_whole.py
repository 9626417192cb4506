"""From URLs of a local server to scored shards, against img2dataset and then a plain open_clip DataLoader loop.

Ours is all of `curate` on a Ray that runs: fetch, signals, hashes, ViT-B-32 with random weights, duplicates, selection,
packing, report. The peer downloads as in bench_curate_fetch.py, then decodes its tars in DataLoader workers and runs
both towers on batches. Making the model counts on both sides. Runs alternate; medians are compared.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import webdataset
from bench_curate_fetch import compare, downloaded, recipe_of

from sightloom.data.curation import curate
from sightloom.errors import SightloomError
from sightloom.progress import NullProgress

MODEL, BATCH = "ViT-B-32", 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--urls", type=int, default=768)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    torch.set_num_threads(args.cores)
    compare("curate_whole", args.urls, args.runs, args.cores, downloaded_and_scored, curated)


def downloaded_and_scored(urls: Path, out: Path, cores: int, count: int) -> float:
    """Return the peer's seconds."""
    seconds = downloaded(urls, out, cores, count)
    started = time.perf_counter()
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(MODEL)
    model.eval()
    tokenizer = open_clip.get_tokenizer(MODEL)
    tars = sorted(map(str, out.glob("*.tar")))
    rows = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode("pil").to_tuple("jpg", "txt")
    rows = rows.map_tuple(preprocess, lambda text: tokenizer(text)[0])
    cosines = []
    with torch.inference_mode():
        for images, tokens in torch.utils.data.DataLoader(rows, batch_size=BATCH, num_workers=cores):
            one, other = model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)
            cosines.append((one * other).sum(-1).numpy())
    np.save(out / "cosines.npy", np.concatenate(cosines))
    if sum(map(len, cosines)) != count:
        raise SightloomError(f"the peer scored {sum(map(len, cosines))} of {count} pictures")
    return seconds + time.perf_counter() - started


def curated(urls: Path, out: Path, cores: int, count: int) -> float:
    """Return our seconds for the same."""
    del cores
    recipe = recipe_of(urls, out, [{"name": "b32", "model": MODEL, "batch": BATCH}])
    started = time.perf_counter()
    result = curate(recipe, NullProgress())
    if result.rows_in != count or any(name.startswith("fetch") for name in result.dropped):
        raise SightloomError(f"ours did not get all {count} pictures: {result.dropped}")
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
