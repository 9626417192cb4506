"""How fast an endpoint answers several clients: time to the first token, time a token, tokens a second."""

import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from sightloom.errors import SightloomError
from sightloom.evaluation.endpoint import chat_body
from sightloom.evaluation.examples import Example
from sightloom.evaluation.result import Load, Perf


@dataclass(frozen=True, slots=True)
class _Timing:
    ttft_s: float
    tpot_s: float
    tokens: int


def measure_load(url: str, model: str, key: str, examples: Sequence[Example], load: Load) -> tuple[Perf, ...]:
    """Stream answers from an OpenAI-compatible endpoint and time them.

    Args:
        url: its address up to and with `/v1`.
        model: whom to ask.
        key: bearer token, empty for none.
        examples: their prompts are sent in turn.
        load: how much.

    Raises:
        SightloomError: more than one request in twenty failed, with the first failure.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    bodies = [
        chat_body(model, example, None, load.max_new_tokens, None)
        | {"stream": True, "stream_options": {"include_usage": True}}
        for example in examples
    ]
    found = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=max(load.clients))
    with httpx.Client(headers=headers, timeout=300.0, trust_env=False, limits=limits) as client:
        for body in bodies[: load.warm_up]:
            _stream(client, url, body)
        for clients in load.clients:
            sent = [bodies[index % len(bodies)] for index in range(load.requests)]
            began = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                results = list(pool.map(lambda body: _stream(client, url, body), sent))
            found.append(_summary(clients, results, time.perf_counter() - began))
    return tuple(found)


def _stream(client: httpx.Client, url: str, body: dict[str, Any]) -> _Timing | str:
    began = time.perf_counter()
    first = last = 0.0
    tokens = 0
    try:
        with client.stream("POST", f"{url}/chat/completions", json=body) as response:
            if response.status_code != 200:
                return f"HTTP {response.status_code}: {response.read()[:200]!r}"
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return str(event["error"])
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                # an answer may be empty: its end is then its first sign
                if any(_says_something(choice["delta"]) or choice["finish_reason"] for choice in event["choices"]):
                    last = time.perf_counter()
                    first = first or last
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    if not first:
        return "the stream ended without an answer"
    return _Timing(first - began, (last - first) / max(tokens - 1, 1), tokens)


def _says_something(delta: dict[str, Any]) -> bool:
    return bool(delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning"))


def _summary(clients: int, results: Sequence[_Timing | str], seconds: float) -> Perf:
    timed = [result for result in results if isinstance(result, _Timing)]
    failed = [result for result in results if isinstance(result, str)]
    if len(failed) > len(results) / 20:
        raise SightloomError(f"{len(failed)} of {len(results)} requests failed under {clients} clients: {failed[0]}")
    ttft, tpot = [timing.ttft_s for timing in timed], [timing.tpot_s for timing in timed]
    return Perf(
        clients,
        len(timed),
        len(failed),
        statistics.median(ttft),
        float(np.quantile(ttft, 0.95)),
        statistics.median(tpot),
        float(np.quantile(tpot, 0.95)),
        sum(timing.tokens for timing in timed) / seconds,
    )
