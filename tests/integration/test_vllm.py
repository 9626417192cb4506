"""Real vLLM on CPU: the same answers as the transformers engine, and recovery from every death.

One server is started for the whole file; the tests stand in the order in which they need it.
"""

import asyncio
import base64
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from sightloom.errors import SightloomError, UserMistake
from sightloom.model.chat import Encoder
from sightloom.model.load import load
from sightloom.serving.engines import guard
from sightloom.serving.engines import vllm as vllm_module
from sightloom.serving.engines.settings import TransformersSettings, VllmSettings
from sightloom.serving.engines.transformers import TransformersEngine
from sightloom.serving.engines.vllm import VllmEngine
from sightloom.serving.engines.vllm_wire import Reply
from sightloom.serving.listening import Running
from sightloom.serving.listening import running as serve

from ..serving.running import group_of, survivors, vllm_python
from ..serving.trained import COLOURS, QUESTION, conversation, encoded, make_trained, plain

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
CHAT = "/v1/chat/completions"
seen: list[list[int]] = []  # prompt token ids, as the server said them
segments: set[str] = set()  # shared memory that the servers had mapped


class Listening(Reply):
    """A reply that notes the prompt's token ids."""

    def push(self, events: Sequence[Mapping[str, Any]]) -> Any:
        seen.extend(event["prompt_token_ids"] for event in events if event.get("prompt_token_ids"))
        return super().push(events)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trained(tmp_path_factory.mktemp("trained") / "nano")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> VllmSettings:
    return VllmSettings(
        python=vllm_python(),
        dtype="float32",
        cache=str(tmp_path_factory.mktemp("vllm-cache")),
        probe_every_s=1.0,
        probe_timeout_s=10.0,
        stop_grace_s=5.0,
        extra_args={"enforce-eager": True},  # compiling costs most of a start on CPU
    )


@pytest.fixture(scope="module")
def running(folder: Path, settings: VllmSettings) -> Iterator[Running]:
    vllm_module.Reply = Listening  # type: ignore[misc]
    with serve(lambda: VllmEngine(folder, "3", settings)) as running:
        yield running
    vllm_module.Reply = Reply  # type: ignore[misc]


@pytest.fixture(scope="module")
def peer(folder: Path) -> Iterator[Running]:
    with serve(lambda: TransformersEngine(folder, "3", TransformersSettings())) as running:
        yield running


def engine_of(running: Running) -> VllmEngine:
    assert isinstance(running.engine, VllmEngine)
    return running.engine


def body(colours: Sequence[str] = ("red",), **changes: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [
        {
            "type": "image_url",
            "image_url": {"url": f"data:image/png;base64,{base64.b64encode(encoded(colour)).decode()}"},
        }
        for colour in colours
    ]
    parts.append({"type": "text", "text": QUESTION})
    whole = {"model": "sightloom", "messages": [{"role": "user", "content": parts}], "max_tokens": 60, "temperature": 0}
    return {**whole, **changes}


def ask(running: Running, asked: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{running.address}{CHAT}", json=asked, timeout=120, trust_env=False)


def essence(response: httpx.Response) -> Any:
    """What must be equal: status, and all but ids, times and the engine's name."""
    answer = response.json()
    if "error" in answer:
        return response.status_code, answer["error"]["code"], answer["error"]["param"], answer["error"]["type"]
    return answer["choices"], answer["usage"], answer["model"]


SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": list(COLOURS)},
        "sure": {"type": "boolean"},
        "count": {"type": "integer", "maximum": 99},
    },
    "required": ["colour", "sure"],
    "additionalProperties": False,
}


def by(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


EQUAL: dict[str, dict[str, Any]] = {
    **{f"undecided {colour}": body([colour]) for colour in COLOURS},
    **{f"thinking {colour}": body([colour], reasoning_effort="low") for colour in COLOURS},
    **{f"off {colour}": body([colour], reasoning_effort="none") for colour in COLOURS},
    **{f"budget {budget}": body(thinking_token_budget=budget) for budget in (1, 2, 5, 24, 25, 26)},
    "budget, model opens": body(sightloom={"deadline_s": 100}, max_tokens=20),
    "bound in thinking": body(max_tokens=3, reasoning_effort="low"),
    "bound in answer": body(max_tokens=3, reasoning_effort="none"),
    "bound beyond the window": body(max_tokens=30_000),
    "bound of one": body(max_tokens=1),
    "stop in answer": body(stop=["red"]),
    "stop string that is only thought": body(stop=["pixel"]),
    "stop across tokens": body(stop="is r", reasoning_effort="none"),
    "reasoning left out": body(include_reasoning=False),
    "two pictures": body(["red", "blue"]),
    "a system turn and an old answer": body(
        messages=[
            {"role": "developer", "content": "Be short."},
            *body(["green"])["messages"],
            {"role": "assistant", "content": "It is green.", "reasoning_content": "old"},
            {"role": "user", "content": "And again: what colour is it?"},
        ]
    ),
    "by a schema": body(response_format=by(SCHEMA)),
    "by a schema, behind thinking": body(response_format=by(SCHEMA), reasoning_effort="low", max_tokens=90),
    "by a schema, behind a cut thought": body(response_format=by(SCHEMA), thinking_token_budget=4, max_tokens=90),
    "any object": body(response_format={"type": "json_object"}, max_tokens=30),
    "a schema that is not enforced": body(response_format=by({"type": "string", "not": {"const": "a"}})),
    "too long": body(messages=[{"role": "user", "content": "word " * 2500}]),
    "control token": body(messages=[{"role": "user", "content": "a<|im_end|>b"}]),
    "think mark": body(messages=[{"role": "user", "content": "a<think>b"}]),
}


@pytest.mark.parametrize("name", EQUAL)
def test_both_engines_answer_the_same(running: Running, peer: Running, name: str) -> None:
    ours, theirs = ask(running, EQUAL[name]), ask(peer, EQUAL[name])
    assert essence(ours) == essence(theirs)
    if name.startswith("by a schema"):
        value = json.loads(ours.json()["choices"][0]["message"]["content"])
        assert value["colour"] in COLOURS and isinstance(value["sure"], bool)


@pytest.mark.parametrize("mode", [None, True, False])
def test_the_prompt_s_tokens_are_equal_one_by_one(running: Running, folder: Path, mode: bool | None) -> None:
    encoder = Encoder(load(str(folder)).processor)
    expected = encoder.prompt(conversation("red", True), plain("red"), mode).input_ids.tolist()
    seen.clear()
    template = {} if mode is None else {"chat_template_kwargs": {"enable_thinking": mode}}
    assert ask(running, body(**template)).status_code == 200
    assert seen == [expected]


def test_a_stream_says_the_same_in_few_pieces(running: Running) -> None:
    asked = body(["blue"], stream=True, stream_options={"include_usage": True})
    whole = ask(running, body(["blue"])).json()
    text = ask(running, asked).text
    blocks = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    chunks = [json.loads(block) for block in blocks[:-1]]
    assert blocks[-1] == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    message = whole["choices"][0]["message"]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == message["reasoning"]
    assert chunks[-1]["usage"] == whole["usage"]


def test_sampling_has_seeds_filters_penalties_and_samples(running: Running) -> None:
    hot = {"temperature": 1.8, "max_tokens": 24, "reasoning_effort": "none", "ignore_eos": True}

    def texts(**changes: Any) -> list[str]:
        answer = ask(running, body(**hot, **changes))
        assert answer.status_code == 200, answer.text
        return [choice["message"]["content"] for choice in answer.json()["choices"]]

    three = texts(n=3, seed=5)
    assert len(set(three)) == 3 and texts(n=3, seed=5) == three
    assert texts(top_k=1, seed=1) == texts(top_k=1, seed=2) == texts(min_p=1.0, seed=3)
    assert texts(presence_penalty=2, frequency_penalty=2, repetition_penalty=1.9, top_k=1) != texts(top_k=1)
    usage = ask(running, body(**hot)).json()["usage"]
    assert usage["completion_tokens"] == 24  # ignore_eos


def test_a_server_at_a_url_is_used_and_none_is_said(running: Running, folder: Path, tmp_path: Path) -> None:
    child = engine_of(running).child
    assert child is not None
    (tmp_path / "key").write_text(key_of(child.folder))

    async def scenario() -> tuple[str, str]:
        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            inner, outer = await asyncio.open_unix_connection(str(child.socket))

            async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
                while data := await source.read(65536):
                    target.write(data)
                    await target.drain()
                target.close()

            await asyncio.gather(copy(reader, outer), copy(inner, writer), return_exceptions=True)

        server = await asyncio.start_server(forward, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        remote = VllmSettings(url=f"http://127.0.0.1:{port}", key_file=str(tmp_path / "key"))
        engine = VllmEngine(folder, "3", remote)
        await engine.start()
        assert engine.child is None
        text = ""
        async for delta in engine.generate(vllm_module.warm_up_request()):
            text += delta.reasoning + delta.answer
        await engine.stop(1.0)
        server.close()
        with pytest.raises(UserMistake) as missing:
            await VllmEngine(folder, "3", VllmSettings(url=f"http://127.0.0.1:{port}")).start()
        return text, str(missing.value)

    text, missing = asyncio.run(scenario())
    assert text and "no vLLM server answers" in missing
    assert ask(running, body()).status_code == 200


def key_of(socket_folder: Path) -> str:
    """The key in the environment of the server, which only its own user may read."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command, raw = (entry / "cmdline").read_text(), (entry / "environ").read_text()
            except OSError:
                continue
            if "api_server" in command and str(socket_folder) in command:
                pairs = dict(pair.partition("=")[::2] for pair in raw.split("\0"))
                if "VLLM_API_KEY" in pairs:
                    return pairs["VLLM_API_KEY"]
    raise AssertionError("no server")


def test_after_200_aborts_nothing_runs(running: Running) -> None:
    engine = engine_of(running)

    async def scenario() -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(running.address, connector=connector) as session:
            places = asyncio.Semaphore(16)

            async def abort(number: int) -> None:
                asked = body(ignore_eos=True, max_tokens=1900, stream=bool(number % 2))
                async with places:
                    response = asyncio.ensure_future(session.post(CHAT, json=asked))
                    if number % 2:
                        await (await response).content.readany()
                        (await response).close()
                    else:
                        await asyncio.sleep(0.05)
                        response.cancel()
                        await asyncio.gather(response, return_exceptions=True)

            await asyncio.gather(*(abort(number) for number in range(200)))

    asyncio.run(scenario())
    until = time.monotonic() + 10
    while time.monotonic() < until and (engine.load().running or running_in_server(running)):
        time.sleep(0.1)
    assert engine.load().running == 0 and running_in_server(running) == 0
    assert ask(running, body()).json()["choices"][0]["message"]["content"] == "It is red."


def running_in_server(running: Running) -> float:
    connection = engine_of(running)._connection
    assert connection is not None
    return float(running.run(connection.metrics())["vllm:num_requests_running"])


def processes(running: Running) -> dict[str, int]:
    """The server and its engine core, once it answers."""
    until = time.monotonic() + 400
    while time.monotonic() < until and ask(running, body()).status_code != 200:
        time.sleep(0.5)
    child = engine_of(running).child
    assert child is not None
    found = group_of(child._guard.pid)
    server = next(pid for pid, line in found.items() if "guard.py" not in line and "api_server" in line)
    core = next(pid for pid, line in found.items() if "EngineCore" in line)
    segments.update(guard.shared_memory_of(server))
    return {"server": server, "core": core}


@pytest.mark.parametrize("fault", ["server killed", "core killed", "server stopped"])
def test_requests_in_flight_get_a_clear_error_and_the_engine_recovers(running: Running, fault: str) -> None:
    victim = processes(running)[fault.split()[0]]
    before = group_of(engine_of(running).child._guard.pid)  # type: ignore[union-attr]
    long = body(ignore_eos=True, max_tokens=1900, stream=True)
    began = time.monotonic()
    with httpx.stream("POST", f"{running.address}{CHAT}", json=long, timeout=120, trust_env=False) as stream:
        lines = stream.iter_lines()
        assert "assistant" in next(lines)
        os.kill(victim, signal.SIGSTOP if fault.endswith("stopped") else signal.SIGKILL)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]" and time.monotonic() - began < 60
    last = json.loads(rest[-2].removeprefix("data: "))
    if fault.endswith("stopped") and "error" not in last:  # it was let go on, to end, and had time to end its answer
        assert last["choices"][0]["finish_reason"] == "length"
    else:
        assert last["error"]["code"] == "engine_error"
    refused = ask(running, body())
    assert refused.status_code in (502, 503) and int(refused.headers["retry-after"]) >= 1
    until = time.monotonic() + 400
    while time.monotonic() < until and ask(running, body()).status_code != 200:
        time.sleep(0.5)
    assert ask(running, body()).json()["choices"][0]["message"]["content"] == "It is red."
    engine_of(running).check()
    assert not survivors(before)


def test_the_fourth_death_in_ten_minutes_is_the_last(running: Running) -> None:
    os.kill(processes(running)["server"], signal.SIGKILL)
    until = time.monotonic() + 60
    failed = ""
    while time.monotonic() < until and not failed:
        time.sleep(0.2)
        try:
            engine_of(running).check()
        except SightloomError as error:
            failed = str(error)
    assert "died 4 times" in failed
    assert ask(running, body()).status_code == 503


def test_nothing_is_left(running: Running) -> None:
    child = engine_of(running).child
    assert child is not None
    assert running.run(child.wait(60.0))
    assert not child.folder.exists()
    assert segments and not [segment for segment in segments if Path(segment).exists()]
    assert not [line for line in group_of(os.getpid()).values() if "vllm" in line]


def test_a_failed_start_shows_why(folder: Path, settings: VllmSettings) -> None:
    wrong = settings.model_copy(update={"extra_args": {"quantization": "imaginary"}})

    async def scenario() -> str:
        engine = VllmEngine(folder, "3", wrong)
        with pytest.raises(SightloomError) as caught:
            await engine.start()
        assert engine.child is not None and not engine.child.folder.exists()
        return str(caught.value)

    text = asyncio.run(scenario())
    assert "ended with status" in text and "imaginary" in text
