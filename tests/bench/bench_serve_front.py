"""What the endpoint costs: tokens/s of the app over HTTP against the bare engine, the same requests, in one run.

    python tests/bench/bench_serve_front.py [--requests 32] [--runs 3] [--model DIR]

Client, app and engine share the machine's cores, which counts against the endpoint. Without a model folder a nano with
random weights is made. The last line is one JSON object.
"""

import argparse
import asyncio
import base64
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from sightloom.model.scratch import build_folder
from sightloom.serving.engines.base import Engine, EngineRequest, Sampling, Thinking, Turn
from sightloom.serving.engines.settings import TransformersSettings
from sightloom.serving.engines.transformers import TransformersEngine
from sightloom.serving.engines.warm_up import warm_up_picture
from sightloom.serving.listening import Running, running

CLIENTS = 8
TOKENS = 64
TARGET = 0.95
QUESTION = "How many red circles are there?"


def engine_requests(count: int, picture: bytes) -> list[EngineRequest]:
    return [
        EngineRequest(
            f"bench-{seed}",
            (Turn("user", (0, QUESTION)),),
            (picture,),
            Sampling(1.0, 1.0, 0, seed),
            Thinking(None, None, 32),
            TOKENS,
            300.0,
        )
        for seed in range(count)
    ]


async def bare(engine: Engine, requests: Sequence[EngineRequest]) -> float:
    """Tokens/s of the engine alone, at most `CLIENTS` at once."""
    places, tokens = asyncio.Semaphore(CLIENTS), 0

    async def ask(request: EngineRequest) -> int:
        async with places:
            deltas = [delta async for delta in engine.generate(request)]
            return sum(delta.num_reasoning_tokens + delta.num_answer_tokens for delta in deltas)

    began = time.perf_counter()
    tokens = sum(await asyncio.gather(*map(ask, requests)))
    return tokens / (time.perf_counter() - began)


async def endpoint(address: str, requests: Sequence[EngineRequest]) -> float:
    """Tokens/s through HTTP, the app and the same engine."""
    places = asyncio.Semaphore(CLIENTS)
    async with httpx.AsyncClient(base_url=address, timeout=300, trust_env=False) as client:

        async def ask(request: EngineRequest) -> int:
            url = f"data:image/png;base64,{base64.b64encode(request.images[0]).decode()}"
            parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
            body = {
                "model": "sightloom",
                "messages": [{"role": "user", "content": parts}],
                "max_tokens": TOKENS,
                "temperature": 1.0,
                "seed": request.sampling.seed,
            }
            async with places:
                reply = await client.post("/v1/chat/completions", json=body)
            return int(reply.raise_for_status().json()["usage"]["completion_tokens"])

        began = time.perf_counter()
        tokens = sum(await asyncio.gather(*map(ask, requests)))
        return tokens / (time.perf_counter() - began)


def compare(served: Running, requests: Sequence[EngineRequest], runs: int) -> tuple[list[float], list[float]]:
    """Tokens/s through the endpoint and of the bare engine, after a run that warms both up."""
    ours, peer = [], []
    for run in range(runs + 1):
        front = asyncio.run(endpoint(served.address, requests))
        alone = asyncio.run(bare(served.engine, requests))
        print(f"run {run}{' (warm-up)' if run == 0 else ''}: endpoint {front:.0f}, bare engine {alone:.0f} tokens/s")
        if run:
            ours.append(front)
            peer.append(alone)
    return ours, peer


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--requests", type=int, default=32)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--model", type=Path)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.model or build_folder("nano", [QUESTION] * 8, Path(scratch) / "nano", seed=1)
        with running(lambda: TransformersEngine(folder, "1", TransformersSettings())) as served:
            ours, peer = compare(served, engine_requests(given.requests, warm_up_picture()), given.runs)
    ratios = [front / alone for front, alone in zip(ours, peer, strict=True)]
    result = {
        "name": "serve_front",
        "ours": round(statistics.median(ours), 1),
        "peer": round(statistics.median(peer), 1),
        "unit": "tokens/s",
        "ratio": round(statistics.median(ratios), 3),
        "target": TARGET,
        "runs": given.runs,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
