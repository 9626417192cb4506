"""From URLs of a local server: fetch, resize, shard, against img2dataset.

Both sides ask one server process (every picture in memory) on the same cores, want the same short side, keep smaller
pictures' bytes, and may ask as much at once. Ours is the step that stages URLs as tars, on a Ray that runs; the
`download` of img2dataset is called as a function after its imports, in the readers' environment (tests/readers),
without hashes and EXIF. Runs alternate; medians are compared.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sightloom import runtime
from sightloom.config import validate
from sightloom.data import engine, fetch
from sightloom.data.recipe import Recipe
from sightloom.errors import SightloomError
from sightloom.progress import NullProgress

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "photos"
TARGET = 1.3
SIDE, QUALITY, AT_ONCE = 256, 95, 32
Side = Callable[[Path, Path, int, int], float]  # list of URLs, folder to write, cores, how many -> seconds
SERVER = """
import asyncio, sys
from pathlib import Path
from aiohttp import web
files = {path.name: path.read_bytes() for path in Path(sys.argv[1]).glob("*.jpg")}
async def serve(request):
    data = files.get(request.match_info["name"])
    return web.Response(status=404) if data is None else web.Response(body=data, content_type="image/jpeg")
async def run():
    app = web.Application()
    app.router.add_get("/{name}", serve)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()
asyncio.run(run())
"""
IMG2DATASET = """
import json, sys, time
from img2dataset import download
if __name__ == "__main__":
    started = time.perf_counter()
    download(**json.loads(sys.argv[1]))
    print(json.dumps({"seconds": time.perf_counter() - started}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--urls", type=int, default=4000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    compare("curate_fetch", args.urls, args.runs, args.cores, downloaded, staged)


def compare(name: str, count: int, runs: int, cores: int, peer: Side, ours: Side) -> None:
    """Let both sides work through `count` URLs in turn, and print pictures a second and their ratio."""
    if not DATA.is_dir():
        raise SightloomError(f"the photos are not at '{DATA}'")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    runtime.connect(runtime.LOCAL, num_cpus=cores)
    rates: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder, served() as base:
        for run in range(runs):
            urls = write_urls(Path(folder) / f"{run}.json", base, count)
            theirs = count / peer(urls, Path(folder) / f"{run}-peer", cores, count)
            rates.append((count / ours(urls, Path(folder) / f"{run}-ours", cores, count), theirs))
            print(f"run {run}: ours {rates[-1][0]:.1f}, peer {rates[-1][1]:.1f} pictures/s", flush=True)
    mine, others = (statistics.median(side) for side in zip(*rates, strict=True))
    result = {"name": name, "ours": round(mine, 1), "peer": round(others, 1), "unit": "pictures/s",
              "ratio": round(mine / others, 3), "target": TARGET,
              "runs": [[round(a, 1), round(b, 1)] for a, b in rates]}  # fmt: skip
    print(json.dumps(result))


@contextlib.contextmanager
def served() -> Iterator[str]:
    """A server process with the photos; yields its address."""
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(DATA)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def write_urls(path: Path, base: str, count: int) -> Path:
    """Write a list for both: JSON for img2dataset, lines beside it for us; a photo that comes twice has another URL."""
    captions = [json.loads(line) for line in (DATA / "captions.jsonl").read_text().splitlines()]
    rows = [{"url": f"{base}/{row['file_name']}?{number}", "text": row["text"]}
            for number, row in enumerate(itertools.islice(itertools.cycle(captions), count))]  # fmt: skip
    path.write_text(json.dumps(rows))
    path.with_suffix(".jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def readers_python() -> str:
    """Return the interpreter of the readers' environment."""
    command = [sys.executable, str(ROOT / "tests" / "environments.py"), "readers"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise SightloomError(f"no img2dataset here: {made.stderr.strip()}")
    return made.stdout.strip()


def downloaded(urls: Path, out: Path, cores: int, count: int) -> float:
    """Return img2dataset's seconds."""
    options = {
        "url_list": str(urls), "input_format": "json", "url_col": "url", "caption_col": "text",
        "output_folder": str(out), "output_format": "webdataset", "image_size": SIDE, "resize_mode": "keep_ratio",
        "resize_only_if_bigger": True, "skip_reencode": True, "encode_quality": QUALITY, "processes_count": cores,
        "thread_count": AT_ONCE, "number_sample_per_shard": 1000, "compute_hash": None, "extract_exif": False,
    }  # fmt: skip
    program = out.with_suffix(".py")
    program.write_text(IMG2DATASET)
    env = {**os.environ, "PYTHONPATH": "", "WANDB_MODE": "disabled"}
    command = [readers_python(), str(program), json.dumps(options)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    got = sum(json.loads(path.read_text())["successes"] for path in out.glob("*_stats.json"))
    if got != count:
        raise SightloomError(f"the peer got {got} of {count} pictures")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def recipe_of(urls: Path, out: Path, clip: list[dict[str, Any]]) -> Recipe:
    """Return the recipe of our side."""
    polite = {"contact": "https://example.org/bench", "allow_networks": ["127.0.0.0/8"], "per_host": 2 * AT_ONCE,
              "at_once": AT_ONCE, "resize": {"side": SIDE, "mode": "short_side", "quality": QUALITY}}  # fmt: skip
    data = {
        "name": "bench",
        "out": str(out),
        "source": [{"kind": "urls", "uri": str(urls.with_suffix(".jsonl")), "fetch": polite}],
        "score": {"clip": clip, "chunk_rows": 64},
    }
    return validate(Recipe, data, "bench")


def staged(urls: Path, out: Path, cores: int, count: int) -> float:
    """Return our seconds for the same."""
    del cores
    recipe = recipe_of(urls, out, [])
    started = time.perf_counter()
    fetch.stage(recipe, engine.host_slots(recipe), engine.run_tasks, NullProgress())
    not_fetched = fetch.inputs(recipe).not_fetched
    seconds = time.perf_counter() - started
    if not_fetched:
        raise SightloomError(f"ours did not get all {count} pictures: {not_fetched}")
    return seconds


if __name__ == "__main__":
    main()
