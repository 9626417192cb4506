"""Packing from local tars against `cp` of the same bytes, both down to the disk.

Ours is what the tasks of the step `pack` do, in as many processes as there are cores: read each kept record by its byte
range, prove the picture's SHA-256, write tar, index and table, hash them, sync, commit. The peer copies the source tars
by `cp` and syncs them. Pictures are noise behind a JPEG's first bytes, at the size that photos have.
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from blake3 import blake3

from sightloom.data.measure import COLUMNS
from sightloom.data.shards.config import PackConfig
from sightloom.data.shards.pack import ShardJob, build
from sightloom.data.shards.plan import plan_shards, shard_slices
from sightloom.data.shards.tarfiles import TarWriter
from sightloom.data.sources.chunks import SourceFile, list_files, read_chunks
from sightloom.data.sources.config import WebDatasetSource

TARGET = 0.7
SHARDS_EACH = 2  # shards for each process: none is without work at the end, as among the hundreds of a real pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=200)
    parser.add_argument("--picture-kb", type=int, default=120)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--order", choices=["source", "shuffle"], default="shuffle")
    args = parser.parse_args()
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        root = Path(folder)
        _write_tars(root / "raw", args.mb * 1_000_000, args.picture_kb * 1000)
        files = list_files(WebDatasetSource(kind="webdataset", uri=f"{root}/raw/*.tar"), 4096)
        kept = _table(files)
        size = sum(file.size for file in files)
        max_mb = 1.03 * size / 1e6 / (SHARDS_EACH * args.processes)  # 3 %: the caps count upper bounds
        pool = stack.enter_context(ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn")))
        for warm in range(2):  # a worker builds hundreds of shards, the first of which imports and compiles
            _pack(pool, files, kept.slice(0, 64 * args.processes), root / f"warm-{warm}", args.order, 4)
        for run in range(args.runs):
            theirs.append(size / 1e6 / _copy(root / "raw", root / f"cp-{run}"))
            ours.append(size / 1e6 / _pack(pool, files, kept, root / f"out-{run}", args.order, max_mb))
            print(f"run {run}: pack {ours[-1]:.0f}, cp {theirs[-1]:.0f} MB/s", flush=True)
    mine, peer = statistics.median(ours), statistics.median(theirs)
    result = {
        "name": "curate_pack",
        "ours": round(mine, 1),
        "peer": round(peer, 1),
        "unit": "MB/s",
        "ratio": round(mine / peer, 3),
        "target": TARGET,
        "runs": [[round(a, 1), round(b, 1)] for a, b in zip(ours, theirs, strict=True)],
    }
    print(json.dumps(result))


def _write_tars(folder: Path, total: int, picture: int) -> None:
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(max(1, total // 50_000_000)):
        with TarWriter(folder / f"{number:05d}.tar") as tar:
            for row in range(50_000_000 // picture):
                image = b"\xff\xd8\xff\xe0" + draw.bytes(picture)  # packing copies bytes, it decodes nothing
                tar.add(f"{number:03d}{row:06d}", [("jpg", image), ("txt", b"a picture of noise"), ("json", b"{}")])


def _table(files: list[SourceFile]) -> pa.Table:
    """Return the base columns that packing reads, as scoring would have stored them."""
    rows = []
    for number, file in enumerate(files):
        for chunk in read_chunks(file, frozenset()):
            for record in chunk.table.to_pylist():
                row = dict.fromkeys(COLUMNS)
                row |= {name: record[name] for name in ("kind", "domain", "task", "status")}
                row |= {"uid": hashlib.sha256(record["image"] + b"\0" + record["text"].encode()).digest()[:16]}
                row |= {"src": file.uri, "src_pos": record["pos"], "src_offset": record["offset"], "_file": number}
                row |= {"src_size": record["size"], "source_key": record["key"], "width": 1, "height": 1}
                row |= {"sha256": hashlib.sha256(record["image"]).hexdigest(), "text_chars": len(record["text"])}
                row |= {"blake3": blake3(record["image"]).digest()}
                rows.append(
                    row
                    | {
                        "image_bytes": len(record["image"]),
                        "payload_bytes": len(record["image"]) + len(record["text"]) + 2,
                    }
                )
    schema = pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()] + [("_file", pa.int32())])
    return pa.Table.from_pylist(rows, schema=schema)


def _copy(source: Path, target: Path) -> float:
    started = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    for path in target.iterdir():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - started


def _pack(pool: Executor, files: list[SourceFile], kept: pa.Table, out: Path, order: str, max_mb: float) -> float:
    started = time.perf_counter()
    config = PackConfig.model_validate({"max_mb": max_mb, "order": order})
    jobs = [
        ShardJob(name, rows, dict(enumerate(files)), (), str(out), f"{out}/commit/{name}.json")
        for name, rows in shard_slices(plan_shards(kept, config, 0, 0), "x")
    ]
    list(pool.map(build, jobs))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
