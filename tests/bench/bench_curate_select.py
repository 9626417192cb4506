"""Selection over ten million scored rows: seconds and memory of the real step, in a process of its own.

A scores folder of synthetic rows in five domains is written segment by segment; the sources are empty files that only
lend their names. The step reads the segments, applies two rules and keeps the best 30 % of each domain, and writes the
decision and the subset file. The limits of 60 s and 2 GB are the peers; memory is the child's peak RSS, all included.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sightloom.config import canonical_json, validate
from sightloom.data import fetch
from sightloom.data.curation import scored_rows, select
from sightloom.data.dedup.duplicates import Duplicates
from sightloom.data.measure import COLUMNS
from sightloom.data.prepare import Prepared, open_out, prepare
from sightloom.data.recipe import Recipe
from sightloom.data.segments import ROW_GROUP, SEGMENT_ROWS
from sightloom.progress import NullProgress

LIMIT_S, LIMIT_GB = 60.0, 2.0
DOMAINS = ("natural", "document", "science", "ui", "art")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        print(json.dumps(_select(args.child)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_scores(folder, args.rows)
        runs = []
        for run in range(args.runs):
            command = [sys.executable, __file__, "--child", str(folder)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            assert found["rows"] == args.rows, found
            runs.append([found["seconds"], found["gb"]])
            print(f"run {run}: {found['seconds']:.1f} s, {found['gb']:.2f} GB, {found['kept']} rows stay", flush=True)
            for path in sorted((folder / "out/select").rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
    seconds, memory = (statistics.median(column) for column in zip(*runs, strict=True))
    result = {
        "name": "curate_select",
        "ours": round(seconds, 2),
        "peer": LIMIT_S,
        "unit": "s",
        "ratio": round(LIMIT_S / seconds, 3),
        "target": 1.0,
        "runs": [[round(s, 2), round(g, 3)] for s, g in runs],
        "rows": args.rows,
        "memory": {"ours": round(memory, 3), "peer": LIMIT_GB, "unit": "GB", "ratio": round(LIMIT_GB / memory, 3)},
    }
    print(json.dumps(result))


def _recipe(folder: Path) -> Recipe:
    source = [{"kind": "webdataset", "uri": f"{folder}/raw/*.tar"}]
    rules = {"small": "min(width, height) >= 200", "few_words": "text_words > 2"}
    top = [{"by": "sharpness", "fraction": 0.3, "per": "domain"}]
    given = {"name": "select", "out": f"{folder}/out", "source": source, "select": {"rules": rules, "top": top}}
    return validate(Recipe, given, "bench")


def _write_scores(folder: Path, rows: int) -> None:
    """Write empty sources, their commits and the segments of the base group, a segment at a time."""
    (folder / "raw").mkdir()
    for number in range(-(-rows // SEGMENT_ROWS)):
        (folder / f"raw/{number:05d}.tar").touch()
    prepared = prepare(_recipe(folder), False)
    open_out(prepared, False)
    group = Path(prepared.plan.base.folder)
    (group / "commit").mkdir(parents=True, exist_ok=True)
    (group / "segments").mkdir(parents=True, exist_ok=True)
    files = sorted(fetch.inputs(prepared.recipe).files, key=lambda file: (file.uri, file.file_id))
    for number, file in enumerate(files):
        size = min(SEGMENT_ROWS, rows - number * SEGMENT_ROWS)
        fragment = f"segments/{number:05d}-bench.parquet"
        with pq.ParquetWriter(group / fragment, _schema(), compression="zstd") as writer:
            for start in range(0, size, 2 * ROW_GROUP):
                writer.write_table(_rows(number, start, min(2 * ROW_GROUP, size - start)))
        chunk = {"chunk": file.chunk_id(0), "rows": size, "last": True, "status": {"ok": size}}
        content = {"segment": number, "group": "base", "fragment": fragment, "bytes": 1, "chunks": [chunk]}
        (group / f"segments/{number:05d}.json").write_bytes(canonical_json(content))
        (group / f"commit/{file.chunk_id(0)}.last.json").write_bytes(canonical_json(chunk))


def _schema() -> pa.Schema:
    names = ("uid", "status", "kind", "domain", "text_words", "width", "height", "sharpness")
    return pa.schema([(name, COLUMNS[name][0]) for name in names])


def _rows(segment: int, start: int, size: int) -> pa.Table:
    """Return synthetic rows [size]: sharpness in steps, so that the borders have ties."""
    draw = np.random.default_rng([segment, start])
    uids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), size, [None, pa.py_buffer(draw.bytes(16 * size))])
    columns = {
        "uid": uids,
        "status": pa.array(np.where(draw.random(size) < 0.02, "truncated_image", "ok")),
        "kind": pa.array(["pair"] * size),
        "domain": pa.array(np.array(DOMAINS)[draw.integers(0, len(DOMAINS), size)]),
        "text_words": pa.array(draw.integers(1, 40, size), pa.int32()),
        "width": pa.array(draw.integers(100, 2000, size), pa.int32()),
        "height": pa.array(draw.integers(100, 2000, size), pa.int32()),
        "sharpness": pa.array(np.round(draw.normal(0.25, 0.05, size), 5).astype(np.float32)),
    }
    return pa.table([columns[name] for name in _schema().names], schema=_schema())


def _select(folder: Path) -> dict[str, float]:
    """Run the step once and say what it took; every hundredth row is a duplicate."""
    started = time.perf_counter()
    prepared: Prepared = prepare(_recipe(folder), False)
    scored = scored_rows(prepared, fetch.inputs(prepared.recipe))
    lost = np.arange(1, scored.num_rows, 100)
    duplicates = Duplicates(lost, ("dup_pair",) * len(lost), lost - 1)
    decision = select(prepared, scored, duplicates, NullProgress())
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": seconds, "gb": peak, "rows": scored.num_rows, "kept": int(decision.keep.sum())}


if __name__ == "__main__":
    main()
