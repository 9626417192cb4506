"""vLLM behind a replica on a real Ray Serve: it answers, and a replica that is killed takes its vLLM with it."""

import base64
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from sightloom.serving.clip import ClipModel, ClipSettings
from sightloom.serving.deploy import Deployment, deploy, shutdown
from sightloom.serving.engines.settings import VllmSettings

from ..serving.running import group_of, survivors, vllm_python
from ..serving.trained import QUESTION, encoded, make_trained

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def running(ray_session: None, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Iterator[Deployment]:
    folder = make_trained(tmp_path_factory.mktemp("trained") / "nano")
    cache = str(tmp_path_factory.mktemp("vllm-cache"))
    settings = VllmSettings(
        python=vllm_python(), dtype="float32", cache=cache, stop_grace_s=5.0, extra_args={"enforce-eager": True}
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    clips = {"tiny": ClipSettings(model=f"local-dir:{tiny_clip}")}
    yield deploy(folder, "sightloom", "7", port, settings=settings, clips=clips)
    shutdown()


@pytest.fixture(scope="module")
def client(running: Deployment) -> openai.OpenAI:
    return openai.OpenAI(base_url=running.api, api_key="none", max_retries=0)


def ask(client: openai.OpenAI, colour: str, **changes: object) -> openai.types.chat.ChatCompletion:
    url = f"data:image/png;base64,{base64.b64encode(encoded(colour)).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return client.chat.completions.create(
        model="sightloom", messages=[{"role": "user", "content": parts}], temperature=0, max_tokens=60, **changes
    )  # type: ignore[call-overload, no-any-return]


def servers() -> dict[int, int]:
    """Each vLLM server of this user below a replica, and that replica's process."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_text().split("\0")
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                above = Path(f"/proc/{parent}/cmdline").read_text()
            except OSError:
                continue
            if any(word.endswith("guard.py") for word in words) and "ServeReplica" in above.replace("\0", " "):
                found[int(entry.name)] = parent
    return found


def test_the_official_client_is_answered_by_vllm_through_the_handle(client: openai.OpenAI) -> None:
    for colour in ("red", "blue"):
        reply = ask(client, colour)
        message = reply.choices[0].message
        assert message.content == f"It is {colour}." and colour in message.reasoning_content  # type: ignore[attr-defined]
    assert reply.system_fingerprint is not None and reply.system_fingerprint.endswith("-vllm")
    assert reply.usage is not None and reply.usage.completion_tokens_details is not None
    assert reply.usage.completion_tokens_details.reasoning_tokens == 27


def test_an_open_clip_model_beside_it_embeds_in_batches(client: openai.OpenAI, tiny_clip: Path) -> None:
    texts = [f"a picture of {number} circles" for number in range(40)]
    reply = client.embeddings.create(model="tiny", input=texts)
    features = ClipModel(ClipSettings(model=f"local-dir:{tiny_clip}")).features(texts)
    for one, feature in zip(reply.data, features, strict=True):
        np.testing.assert_allclose(one.embedding, feature.vector_D, atol=1e-4)  # fp32, batches of other sizes
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="other", input="a")


def ready(address: str) -> int:
    return httpx.get(f"{address}/readyz", timeout=30, trust_env=False).status_code


def test_a_killed_replica_takes_its_vllm_with_it_and_is_replaced(running: Deployment, client: openai.OpenAI) -> None:
    ((guard, replica),) = servers().items()
    below = group_of(guard)
    assert len(below) >= 3
    long = {"model": "sightloom", "messages": [{"role": "user", "content": "go on"}], "max_tokens": 1900,
            "ignore_eos": True, "stream": True}  # fmt: skip
    address = f"{running.api}/chat/completions"
    with httpx.stream("POST", address, json=long, timeout=120, trust_env=False) as stream:
        lines = stream.iter_lines()
        assert "assistant" in next(lines)
        os.kill(replica, signal.SIGKILL)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "engine_error"
    until = time.monotonic() + 60
    while time.monotonic() < until and (survivors(below) or ready(running.address) == 200):
        time.sleep(0.2)
    assert not survivors(below) and ready(running.address) == 503
    # What is asked meanwhile waits for the new replica, within its deadline.
    assert ask(client, "green").choices[0].message.content == "It is green."
    assert ready(running.address) == 200


def test_administrators_see_the_engine_and_its_restart(running: Deployment) -> None:
    state = httpx.get(f"{running.address}/admin/state", timeout=30, trust_env=False).json()
    its = state["apps"]["sightloom-v7"]
    assert its["info"]["kind"] == "vllm" and its["load"]["alive"] and its["load"]["running"] == 0
    assert its["startup"]["engine"] > its["startup"]["warmup"] > 0


def test_shutting_down_leaves_nothing(running: Deployment) -> None:
    ((guard, _),) = servers().items()
    below = group_of(guard)
    shutdown()
    until = time.monotonic() + 60
    while time.monotonic() < until and survivors(below):
        time.sleep(0.2)
    assert not survivors(below)
