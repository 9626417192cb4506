"""What our endpoint adds to a vLLM server: throughput, latency and time to the first token, the same server both ways.

    python tests/bench/bench_serve_vllm.py [--on process|ray] [--runs 3] [--clients 1 8 32] [--model DIR] [--compile]

`sightloom serve --engine vllm` is started; the requests go through it and, interleaved, straight to the socket of the
vLLM server behind it: 512 px JPEGs, 64 answer tokens, ignore_eos, streaming. Client, front and engine share the
machine's cores, which counts against the front: with a GPU the engine leaves the cores to it. Without a model folder a
nano with random weights is made. Each level ends with a line of JSON. vLLM does not compile unless it is told to: on a
CPU it compiles for minutes, again at each new shape of a batch, in the midst of what is measured.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import aiohttp
from PIL import Image

from sightloom.model.scratch import build_folder

TOKENS = 64
SIDE = 512
PICTURES = 32
QUESTION = "How many red circles are there?"
REQUESTS = {1: 24, 8: 128, 32: 320}
TARGETS = {"throughput_ratio": 0.95, "added_p50_ms": 5.0, "added_ttft_ms": 10.0}


@dataclass(frozen=True)
class Side:
    """Where requests go, and what is peculiar to their bodies."""

    name: str
    connector: Any
    base: str
    key: str
    extra: dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """One run of one side."""

    tokens_s: float
    p50_ms: float
    ttft_ms: float


def pictures() -> list[str]:
    """JPEGs as data URLs: smooth shapes with some noise, as photographs have."""
    urls = []
    for seed in range(PICTURES):
        noise = random.Random(seed)
        small = Image.frombytes("RGB", (32, 32), noise.randbytes(32 * 32 * 3))
        image = small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        urls.append(f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}")
    return urls


def session_of(side: Side) -> aiohttp.ClientSession:
    """Connections of one side's own."""
    key = {"authorization": f"Bearer {side.key}"}
    return aiohttp.ClientSession(side.base, connector=side.connector(), headers=key, trust_env=False)


async def measure(side: Side, urls: Sequence[str], clients: int, count: int) -> Measured:
    """`count` streamed requests, `clients` at once."""
    totals: list[float] = []
    firsts: list[float] = []
    places = asyncio.Semaphore(clients)
    async with session_of(side) as session:

        async def ask(number: int) -> None:
            parts = [
                {"type": "image_url", "image_url": {"url": urls[number % len(urls)]}},
                {"type": "text", "text": QUESTION},
            ]
            body = {
                "messages": [{"role": "user", "content": parts}],
                "max_tokens": TOKENS,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
                **side.extra,
            }
            async with places:
                began = time.perf_counter()
                first = 0.0
                rest = b""
                async with session.post("v1/chat/completions", json=body) as response:
                    response.raise_for_status()
                    async for data in response.content.iter_any():
                        first = first or time.perf_counter()
                        rest = rest[-4096:] + data
                totals.append(time.perf_counter() - began)
                firsts.append(first - began)
                assert f'"completion_tokens":{TOKENS}'.encode() in rest.replace(b" ", b""), rest

        began = time.perf_counter()
        await asyncio.gather(*map(ask, range(count)))
        took = time.perf_counter() - began
    return Measured(count * TOKENS / took, statistics.median(totals) * 1000, statistics.median(firsts) * 1000)


def server_of(folder: Path) -> tuple[str, str]:
    """Socket and key of the vLLM server of a model folder, from /proc."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_text().split("\0")
            if "-I" in words or "--uds" not in words or str(folder.resolve()) not in words:
                continue
            pairs = dict(pair.partition("=")[::2] for pair in (entry / "environ").read_text().split("\0"))
        except OSError:
            continue
        if "VLLM_API_KEY" in pairs:
            return words[words.index("--uds") + 1], pairs["VLLM_API_KEY"]
    raise RuntimeError("no vLLM server of this model")


@contextlib.contextmanager
def endpoint(folder: Path, on: str, scratch: str, compiled: bool) -> Iterator[str]:
    """`sightloom serve` in a process of its own; yields its address once it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from sightloom.cli import main; main()", "serve", str(folder), "--engine", "vllm"]
    command += ["--port", str(port), "--on", on, "--json", *([] if compiled else ["--engine-arg", "enforce-eager"])]
    log = Path(scratch) / "serve.log"
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 900
        while not answers(f"{address}/readyz"):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the endpoint did not start:\n{log.read_text()[-3000:]}")
            time.sleep(1)
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)


def answers(url: str) -> bool:
    """Whether a GET gets a 200."""
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=10) as response:
            return response.status == 200  # type: ignore[no-any-return]
    except OSError:
        return False


async def warm_up(side: Side, urls: Sequence[str]) -> None:
    """Each picture is seen, and the compiler of schemas is loaded, which takes a core for seconds."""
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4, "response_format": form}
    async with session_of(side) as session, session.post("v1/chat/completions", json=body | side.extra) as response:
        response.raise_for_status()
    await measure(side, urls, 8, PICTURES)


async def compare(ours: Side, bare: Side, levels: Sequence[int], runs: int, scale: float) -> None:
    urls = pictures()
    for side in (ours, bare):
        await warm_up(side, urls)
    for clients in levels:
        count = max(clients, round(REQUESTS.get(clients, 4 * clients) * scale))
        pairs: list[tuple[Measured, Measured]] = []
        for run in range(runs):
            order = (ours, bare) if run % 2 else (bare, ours)
            found = {side.name: await measure(side, urls, clients, count) for side in order}
            pairs.append((found["ours"], found["bare"]))
            print(f"{clients} clients, run {run}: {found}", flush=True)
        result = {
            "name": "serve_vllm",
            "clients": clients,
            "throughput_ratio": round(statistics.median(one.tokens_s / two.tokens_s for one, two in pairs), 3),
            "added_p50_ms": round(statistics.median(one.p50_ms - two.p50_ms for one, two in pairs), 1),
            "added_ttft_ms": round(statistics.median(one.ttft_ms - two.ttft_ms for one, two in pairs), 1),
            "ours_tokens_s": round(statistics.median(one.tokens_s for one, _ in pairs)),
            "bare_tokens_s": round(statistics.median(two.tokens_s for _, two in pairs)),
            "bare_p50_ms": round(statistics.median(two.p50_ms for _, two in pairs), 1),
            "bare_ttft_ms": round(statistics.median(two.ttft_ms for _, two in pairs), 1),
            "targets": TARGETS,
            "cores": os.cpu_count(),
        }
        print(json.dumps(result), flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--on", choices=("process", "ray"), default="process")
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    arguments.add_argument("--scale", type=float, default=1.0, help="more or fewer requests")
    arguments.add_argument("--model", type=Path)
    arguments.add_argument("--compile", action="store_true", help="let vLLM compile")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.model or build_folder("nano", [QUESTION] * 8, Path(scratch) / "nano", seed=1)
        with endpoint(folder, given.on, scratch, given.compile) as address:
            uds, key = server_of(folder)
            off = {"model": "sightloom", "reasoning_effort": "none"}
            ours = Side("ours", lambda: aiohttp.TCPConnector(limit=0), f"{address}/", "none", off)
            closed = {"model": "engine", "chat_template_kwargs": {"enable_thinking": False}}
            bare = Side("bare", lambda: aiohttp.UnixConnector(uds, limit=0), "http://engine/", key, closed)
            asyncio.run(compare(ours, bare, given.clients, given.runs, given.scale))


if __name__ == "__main__":
    main()
