"""Going on with a run of 100,000 commits: seconds until its first missing chunk is measured.

A thousand files of a hundred chunks each are committed, but for the last file, which is a real tar. The clock runs from
the call of `prepare` to the first header that comes back: recipe, listing of the files and of all commits, Ray's
start-up and its first tasks. The limit of 30 s is the peer.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from sightloom import runtime
from sightloom.config import canonical_json, validate
from sightloom.data import engine, fetch
from sightloom.data.ledger import committed
from sightloom.data.prepare import open_out, prepare
from sightloom.data.recipe import Recipe
from sightloom.data.scoring import jobs
from sightloom.data.shards.tarfiles import TarWriter
from sightloom.data.sources.chunks import list_files

LIMIT_S = 30.0
PICTURE = bytes.fromhex(  # a PNG of one pixel
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415478da63f8cfc000000301010018dd8db0"
    "0000000049454e44ae426082"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = _committed_run(Path(folder), args.files, args.chunks)
        ours, listed = [], []
        for run in range(args.runs):
            whole, listing = _seconds_to_start(recipe)
            ours.append(whole)
            listed.append(listing)
            print(
                f"run {run}: {whole:.2f} s to the first new chunk, {listing:.2f} s of it files and commits", flush=True
            )
    mine = statistics.median(ours)
    result = {
        "name": "curate_resume",
        "ours": round(mine, 2),
        "peer": LIMIT_S,
        "unit": "s",
        "ratio": round(LIMIT_S / mine, 3),
        "target": 1.0,
        "runs": [[round(a, 2), round(b, 2)] for a, b in zip(ours, listed, strict=True)],
    }
    print(json.dumps(result))


def _committed_run(folder: Path, files: int, chunks: int) -> Recipe:
    """Write the tars and the commits of all but the last one; return the recipe."""
    raw = folder / "raw"
    raw.mkdir()
    for number in range(files):
        with TarWriter(raw / f"{number:05d}.tar") as tar:
            tar.add("a", [("png", PICTURE), ("txt", b"one pixel")])
    source = [{"kind": "webdataset", "uri": f"{raw}/*.tar"}]
    recipe = validate(Recipe, {"name": "resume", "out": f"{folder}/out", "source": source}, "bench")
    group = prepare(recipe, False).plan.base
    commits = Path(group.folder) / "commit"
    commits.mkdir(parents=True)
    record = canonical_json({"fragment": "data/none.parquet", "rows": 256, "bytes": 1, "status": {"ok": 256}})
    for file in list_files(recipe.source[0], recipe.score.chunk_rows)[:-1]:
        for index in range(chunks):
            last = ".last" if index == chunks - 1 else ""
            (commits / f"{file.chunk_id(index)}{last}.json").write_bytes(record)
    return recipe


def _seconds_to_start(recipe: Recipe) -> tuple[float, float]:
    """Return the seconds until the first missing chunk came back measured, and until the missing ones were known."""
    engine.ray.shutdown()
    started = time.perf_counter()
    prepared = prepare(recipe, False)
    open_out(prepared, False)
    missing = jobs(fetch.inputs(prepared.recipe).files, [committed(group) for group in prepared.groups])
    known = time.perf_counter() - started
    assert len(missing) == 1
    runtime.connect(runtime.LOCAL)
    for wave in engine.run_waves(prepared, missing):
        for header in wave:
            assert "problem" not in header, header
    whole = time.perf_counter() - started
    for path in Path(prepared.plan.base.folder).glob(f"commit/{missing[0].file.file_id}*"):
        path.unlink()  # so that the next run has it to do again
    return whole, known


if __name__ == "__main__":
    main()
