"""Curation with ViT-B-32 against the bare open_clip forward on decoded, batched tensors, on the same cores.

Both sides score the same photos and captions of ../shared/data/photos with equal (random) weights and threads. Ours is
the whole `curate`: reading, decoding, signals, hashes, scoring, commits, selection, packing, report; measured from the
first to the last chunk, so Ray's start-up and the import of torch in the actor are left out on our side, as loading the
model is on theirs. Runs alternate; medians are compared.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image

from sightloom import runtime, storage
from sightloom.config import validate
from sightloom.data.curation import curate
from sightloom.data.recipe import Recipe
from sightloom.errors import SightloomError
from sightloom.progress import NullProgress

DATA = Path(__file__).parents[3] / "shared" / "data" / "photos"
TARGET = 0.85
BATCH = 64
WARM_ROWS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=288)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    if not DATA.is_dir():
        raise SightloomError(f"the photos are not at '{DATA}'")
    captions = [json.loads(line) for line in (DATA / "captions.jsonl").read_text().splitlines()][: args.rows]
    runtime.connect(runtime.LOCAL)
    bare = Bare(args.model, captions, args.threads)
    ours, theirs = [], []
    for run in range(args.runs):
        theirs.append(bare.rate())
        ours.append(curated_rate(args.model, captions, args.threads, run))
        print(f"run {run}: curate {ours[-1]:.2f}, open_clip {theirs[-1]:.2f} samples/s", flush=True)
    mine, peer = statistics.median(ours), statistics.median(theirs)
    result = {
        "name": "curate_clip",
        "ours": round(mine, 2),
        "peer": round(peer, 2),
        "unit": "samples/s",
        "ratio": round(mine / peer, 3),
        "target": TARGET,
        "runs": [[round(a, 2), round(b, 2)] for a, b in zip(ours, theirs, strict=True)],
    }
    print(json.dumps(result))


class Bare:
    """The forward of both towers, 77 tokens of context, everything decoded and in memory before the clock starts."""

    def __init__(self, name: str, captions: list[dict[str, Any]], threads: int) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.model, _, preprocess = open_clip.create_model_and_transforms(name)
        self.model.eval()
        images = [preprocess(Image.open(DATA / row["file_name"]).convert("RGB")) for row in captions]
        self.images = torch.stack(images)
        self.tokens = open_clip.get_tokenizer(name)([row["text"] for row in captions])

    def rate(self) -> float:
        """Return samples a second."""
        with torch.inference_mode():
            self.model.encode_image(self.images[:WARM_ROWS])
            started = time.perf_counter()
            for start in range(0, len(self.images), BATCH):
                one = self.model.encode_image(self.images[start : start + BATCH], normalize=True)
                other = self.model.encode_text(self.tokens[start : start + BATCH], normalize=True)
                np.asarray((one * other).sum(-1))
            return len(self.images) / (time.perf_counter() - started)


def curated_rate(name: str, captions: list[dict[str, Any]], threads: int, run: int) -> float:
    """Return the rows a second between the first commit of a warm actor and the finished report.

    The first chunk warms the actor: its rows and its time are left out. Everything after scoring is added.
    """
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        raw.mkdir()
        for row in captions:
            (raw / row["file_name"]).symlink_to(DATA / row["file_name"])
        (raw / "captions.jsonl").write_text("\n".join(map(json.dumps, captions)))
        recipe = validate(
            Recipe,
            {
                "name": "bench",
                "out": f"{folder}/out",
                "source": [{"kind": "folder", "uri": str(raw)}],
                "score": {
                    "chunk_rows": WARM_ROWS,
                    "clip": [{"name": "clip", "model": name, "batch": BATCH, "seed": 0}],
                    "workers": {"threads": threads},
                },
                "dedup": {"prefer": "clip_clip", "perceptual": {"bits": 4}},
                "select": {"top": [{"by": "clip_clip", "fraction": 0.5}]},
            },
            f"bench run {run}",
        )
        result = curate(recipe, NullProgress())
        commits = storage.listing(f"{folder}/out/scores/clip_clip-*/commit/*.json")
        times = sorted(int(info.version) / 1e9 for info in commits)
        after = sum(seconds for step, seconds in result.seconds.items() if step not in ("fetch", "score"))
        return (len(captions) - WARM_ROWS) / (times[-1] - times[0] + after)


if __name__ == "__main__":
    main()
