"""Two workers on two cores against one worker on one core: the same global batches, tokens a second by the clock.

Each worker is a process with one compute thread; they meet over gloo, as on machines without accelerators. It needs a
machine of two cores that does nothing else; the reading of both workers' samples shares those cores. The last line is
one JSON object.
"""

import json
import os
import runpy
import socket
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from sightloom.config import load
from sightloom.data.shards.manifest import read_manifest
from sightloom.model.chat import Encoder
from sightloom.model.heads import TrainableVLM
from sightloom.model.load import load as load_model
from sightloom.model.modules import module_groups
from sightloom.model.scratch import build_folder
from sightloom.progress import NullProgress
from sightloom.training.checkpoint import Position
from sightloom.training.checkpoint_store import CheckpointStore
from sightloom.training.corpus import Corpus
from sightloom.training.curriculum import Curriculum
from sightloom.training.index import corpus_texts, index_for
from sightloom.training.loop import fit
from sightloom.training.optim import build_optimizer
from sightloom.training.parallel import Workers
from sightloom.training.run_options import CheckpointOptions
from sightloom.training.saver import Hooks, Saver
from sightloom.training.tasks.batch import Packer
from sightloom.training.tasks.sft import Sft

NANO = Path(__file__).parents[2] / "pipelines" / "curricula" / "nano.yaml"
STEPS, WARMUP, ROUNDS, PACKS, TARGET = 16, 4, 3, 2, 1.6
write_shards = runpy.run_path(str(Path(__file__).parents[1] / "training" / "conftest.py"))["write_shards"]


def train(rank: int, world: int, port: int, folder: str, uri: str, index: str, results: Any) -> None:
    """One worker: warm up, then time the steps from barrier to barrier."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    if world > 1:
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world, timeout=timedelta(minutes=5)
        )
    workers = Workers(rank, world)
    vlm = load_model(folder)
    corpus = Corpus(((uri, index),), 0.1)
    stage = load(Curriculum, NANO, ["data.manifest=x", f"stages.1.batch.packs={PACKS}"]).stages[1]
    packer = Packer(Encoder(vlm.processor), vlm.model.config)
    model = TrainableVLM(vlm.model)
    optimizer = build_optimizer(
        dict(model.named_parameters()), module_groups(model), stage.train.by_group(), stage.optim, workers
    )
    objective = Sft(stage.objective, stage, corpus, packer, workers, 1)  # type: ignore[arg-type]
    tokens = 0.0

    counts = objective.counts

    def counted(batches: Any) -> dict[str, float]:
        nonlocal tokens
        found = counts(batches)
        tokens += found["tokens"]
        return found

    objective.counts = counted  # type: ignore[method-assign]

    def run(first: int, last: int) -> float:
        nonlocal tokens
        tokens = 0.0
        workers.barrier()
        began = time.perf_counter()
        place = Position(first, {})
        fit(model, objective, optimizer, stage.optim, last, place, workers, saver, lambda *_: None, lambda _: None)
        workers.barrier()
        return time.perf_counter() - began

    saver = Saver(
        CheckpointStore(folder), "bench", "", CheckpointOptions(every_minutes=60), workers, model, optimizer,
        Hooks(), lambda _: None,
    )  # fmt: skip
    run(0, WARMUP)
    seconds = run(WARMUP, WARMUP + STEPS)
    total = workers.sum_all({"tokens": tokens})["tokens"]
    if rank == 0:
        results.put(total / seconds)
    objective.close()
    if world > 1:
        dist.destroy_process_group()


def measured(world: int, folder: str, uri: str, index: str) -> float:
    """Tokens a second of `world` workers in processes of their own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(train, (world, port, folder, uri, index, results), nprocs=world)
    return float(results.get())


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        uri = write_shards(folder / "shards", 100, 200)
        manifest = read_manifest(uri)
        start = build_folder("nano", corpus_texts(manifest, 1, 1000), folder / "start", 1)
        encoder = Encoder(load_model(str(start)).processor)
        index = str(index_for(manifest, start, encoder, folder, NullProgress()))
        runs = [(measured(2, str(start), uri, index), measured(1, str(start), uri, index)) for _ in range(ROUNDS)]
    two, one = (statistics.median(values) for values in zip(*runs, strict=True))
    result = {
        "name": "train_workers", "ours": round(two), "peer": round(one), "unit": "tokens per second",
        "ratio": round(statistics.median(a / b for a, b in runs), 3), "target": TARGET,
        "runs": [[round(a), round(b)] for a, b in runs],
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
