"""Cold start of an endpoint by part: weights (read and hashed), libraries, engine, warm-up, ready; for each engine.

    python tests/bench/bench_serve_start.py [--engines transformers vllm] [--model DIR] [--warm]

Each start is a process of its own. With --warm vLLM starts a second time, on the compile cache that the first has left.
There is no peer: the parts are printed, each line one JSON object.
"""

import argparse
import asyncio
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QUESTION = "How many red circles are there?"


def one_start(folder: Path, engine: str, cache: str) -> dict[str, float]:
    """Start in this process and say how long each part took, in seconds."""
    began = time.perf_counter()
    from sightloom.serving.app import build_app
    from sightloom.serving.config import EndpointConfig
    from sightloom.serving.dispatch import LocalDispatcher
    from sightloom.serving.engines.choice import make_engine
    from sightloom.serving.engines.settings import TransformersSettings, VllmSettings
    from sightloom.serving.listening import GRACE_S, listening

    parts = {"imports": time.perf_counter() - began}
    began = time.perf_counter()
    for file in sorted(folder.iterdir()):
        hashlib.sha256(file.read_bytes()).hexdigest()
    parts["weights"] = time.perf_counter() - began
    began = time.perf_counter()
    settings = VllmSettings(dtype="float32", cache=cache) if engine == "vllm" else TransformersSettings()
    served = make_engine(folder, "1", settings)
    parts["libraries"] = time.perf_counter() - began  # torch and transformers, where the engine is in this process

    async def run() -> None:
        await served.start()
        parts.update(getattr(served, "startup", {}))
        began = time.perf_counter()
        app = build_app(EndpointConfig(), LocalDispatcher("sightloom", served))
        async with listening(app):
            parts["ready"] = time.perf_counter() - began
        began = time.perf_counter()
        await served.stop(GRACE_S)
        parts["stop"] = time.perf_counter() - began

    asyncio.run(run())
    return parts


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--engines", nargs="+", default=["transformers", "vllm"])
    arguments.add_argument("--model", type=Path)
    arguments.add_argument("--warm", action="store_true")
    arguments.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.one:
        print(json.dumps(one_start(given.model, *given.one)))
        return
    from sightloom.model.scratch import build_folder  # it loads torch, which a start has to do by itself

    with tempfile.TemporaryDirectory() as scratch:
        folder = given.model or build_folder("nano", [QUESTION] * 8, Path(scratch) / "nano", seed=1)
        for engine in given.engines:
            for start in ("cold", "warm") if given.warm and engine == "vllm" else ("cold",):
                command = [sys.executable, __file__, "--model", str(folder), "--one", engine, f"{scratch}/cache"]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                parts = json.loads(done.stdout.splitlines()[-1])
                rounded = {part: round(seconds, 2) for part, seconds in parts.items()}
                total = sum(seconds for part, seconds in parts.items() if part != "stop")
                print(json.dumps({"name": "serve_start", "engine": engine, "start": start, "total": round(total, 2),
                                  "seconds": rounded}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
