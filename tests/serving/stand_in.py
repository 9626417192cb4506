"""Stands in for vLLM's server where its deaths are tested in seconds; real vLLM is in tests/integration.

It understands the options that matter (`--uds`) and answers with eight tokens; what the last message says makes it die.
"""

import asyncio
import json
import os
import signal
import sys

from aiohttp import web

TOKENS = [20, 21, 22, 23, 24, 25, 26, 27]


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


async def chat(request: web.Request) -> web.StreamResponse:
    assert request.headers["authorization"] == f"Bearer {os.environ['VLLM_API_KEY']}"
    body = await request.json()
    text = str(body["messages"][-1]["content"][-1]["text"])
    if not body["stream"]:
        return web.json_response({"prompt_token_ids": [1, 7, 9]})
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await response.write(event(choices=[{"index": 0, "finish_reason": None}], prompt_token_ids=[1, 2, 3]))
    for token in TOKENS[: body["max_completion_tokens"]]:
        await response.write(event(choices=[{"index": 0, "token_ids": [token], "finish_reason": None}]))
        await asyncio.sleep(0.02)
        if text == "die":
            os._exit(3)
        if text == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if text == "give up":
            await response.write(event(error={"message": "EngineCore encountered an issue", "code": 500}))
            return response
        while text == "say nothing":
            await asyncio.sleep(1)
    await response.write(event(choices=[{"index": 0, "token_ids": [], "finish_reason": "length"}]))
    await response.write(event(choices=[], usage={"prompt_tokens": 3}) + b"data: [DONE]\n\n")
    return response


async def health(_: web.Request) -> web.Response:
    return web.Response()


async def metrics(_: web.Request) -> web.Response:
    return web.Response(text='vllm:kv_cache_usage_perc{engine="0"} 0.25\n')


if __name__ == "__main__":
    if "--quantization" in sys.argv:
        sys.exit("there is no such quantization")
    app = web.Application(client_max_size=2**26)
    app.add_routes([web.get("/health", health), web.get("/metrics", metrics), web.post("/v1/chat/completions", chat)])
    web.run_app(app, path=sys.argv[sys.argv.index("--uds") + 1], print=None)
