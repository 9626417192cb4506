"""What the vLLM adapter says and understands, without a vLLM."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sightloom.errors import UserMistake
from sightloom.serving.engines.base import EngineRequest, Sampling, Thinking, Turn
from sightloom.serving.engines.settings import ENGINE_SETTINGS, TransformersSettings, VllmSettings
from sightloom.serving.engines.split import Splitter
from sightloom.serving.engines.vllm_server import command, environment, find_python, num_cores
from sightloom.serving.engines.vllm_wire import (
    Events,
    Reply,
    Vocabulary,
    body_of,
    longest_prompt,
    read_vocabulary,
    refusal,
    singly,
)
from sightloom.serving.errors import EngineDied


@pytest.fixture(scope="module")
def words(nano_folder: Path) -> Vocabulary:
    return read_vocabulary(nano_folder)


def request(**changes: Any) -> EngineRequest:
    whole: dict[str, Any] = {
        "request_id": "r",
        "messages": (Turn("system", ("Be short.",)), Turn("user", (0, "How many?"))),
        "images": (b"\xff\xd8\xffpicture",),
        "sampling": Sampling(0.0, 0.9, 5, 7),
        "thinking": Thinking(None, None, 32),
        "max_tokens": 100,
        "deadline_s": 60.0,
    }
    return EngineRequest(**{**whole, **changes})


def test_a_greedy_request_says_only_what_matters(words: Vocabulary) -> None:
    body = body_of(request(), "engine", words, 100, 1, 4)
    assert body["messages"][0] == {"role": "system", "content": [{"type": "text", "text": "Be short."}]}
    picture, text = body["messages"][1]["content"]
    assert picture["image_url"]["url"].startswith("data:image/jpeg;base64,") and text["text"] == "How many?"
    assert body["temperature"] == 0 and body["max_completion_tokens"] == 100 and body["stream_interval"] == 4
    assert not {"seed", "top_p", "top_k", "stop", "ignore_eos", "structured_outputs", "request_id"} & set(body)
    assert body["thinking_token_budget"] == 68  # the answer's reserve stays free
    assert set(body["logit_bias"]) == {str(token) for token in words.never} and len(words.never) == 4


def test_sampling_thinking_and_grammar_are_mapped(words: Vocabulary) -> None:
    sampling = Sampling(0.7, 0.9, 5, 7, 0.1, 1.2, 0.5, -0.5, True)
    asked = request(sampling=sampling, thinking=Thinking(True, 10, 32), grammar='{"type":"object"}')
    body = body_of(asked, "engine", words, 100, 1, 1)
    expected = {
        "temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 7, "min_p": 0.1, "repetition_penalty": 1.2,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "ignore_eos": True,
    }  # fmt: skip
    assert expected.items() <= body.items()
    assert body["thinking_token_budget"] == 11  # vLLM counts the line end behind the prompt's mark
    assert body["chat_template_kwargs"] == {"enable_thinking": True}
    assert body["structured_outputs"] == {"json": {"type": "object"}}
    closed = body_of(request(thinking=Thinking(False, None, 32)), "engine", words, 100, 1, 1)
    assert "thinking_token_budget" not in closed and closed["chat_template_kwargs"] == {"enable_thinking": False}
    unseeded = body_of(request(sampling=Sampling(0.7, 1.0, 0, 7, seeded=False)), "engine", words, 100, 1, 1)
    assert "seed" not in unseeded  # a generator of its own for each row costs the whole batch


def test_the_bound_of_a_prompt_holds_whatever_the_text(words: Vocabulary) -> None:
    assert words.image_tokens is not None
    text = "ünïcode 猫 🎨 " * 5
    bound = longest_prompt(request(messages=(Turn("user", (0, text)),)), words)
    assert bound is not None and bound >= len(words.tokenizer.encode(text).ids) + words.image_tokens


EVENTS = [{"choices": [{"index": 0, "token_ids": [number], "text": "ü\n"}]} for number in range(4)]
STREAM = "".join(f"data: {json.dumps(event)}\n\n" for event in EVENTS).encode() + b": note\n\ndata: [DONE]\n\n"


@given(st.lists(st.integers(0, len(STREAM)), max_size=8).map(sorted))
def test_events_are_whole_wherever_the_stream_is_cut(cuts: list[int]) -> None:
    events, found = Events(), []
    for start, end in zip([0, *cuts], [*cuts, len(STREAM)], strict=True):
        found += events.feed(STREAM[start:end])
    assert found == EVENTS and events.done


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (400, "This model's maximum context length is 2048 tokens. However, you requested 9000 input tokens", 400),
        (400, "max_tokens must be at least 1", 400),
        (401, "Unauthorized", 502),
        (429, "too many", 429),
        (500, "EngineCore encountered an issue", 502),
        (503, "", 502),
    ],
)
def test_refusals_of_the_server_become_ours(status: int, message: str, expected: int) -> None:
    body = json.dumps({"error": {"message": message, "param": "p"}}).encode() if message else b"<html>"
    error = refusal(status, body, 2048)
    assert error.status == expected
    assert isinstance(error, EngineDied) == ("EngineCore" in message or not message)
    if "maximum" in message:
        assert error.code == "context_length_exceeded" and "9000" not in error.message.split("window")[1]
        assert "2048" in error.message


def test_settings_choose_the_engine_and_contradictions_are_refused() -> None:
    assert isinstance(ENGINE_SETTINGS.validate_python({"dtype": "bfloat16"}), TransformersSettings)
    asked = {"kind": "vllm", "extra_args": {"tensor-parallel-size": 2}, "num_gpus": 2}
    settings = ENGINE_SETTINGS.validate_python(asked)
    assert isinstance(settings, VllmSettings)
    assert ENGINE_SETTINGS.validate_python(settings.model_dump(mode="json")) == settings
    for wrong in (
        {"kind": "other"},
        {"kind": "vllm", "url": "http://h:1", "num_gpus": 2},
        {"kind": "vllm", "key_file": "key"},
        {"kind": "vllm", "url": "file:///etc/passwd"},
        {"kind": "vllm", "extra_args": {"allowed-local-media-path": "/"}},
        {"kind": "vllm", "env": {"AWS_SECRET_ACCESS_KEY": "x"}},
        {"kind": "transformers", "url": "http://h:1"},
    ):
        with pytest.raises(ValidationError):
            ENGINE_SETTINGS.validate_python(wrong)


def test_the_server_gets_what_it_needs_and_no_secret(nano_folder: Path, words: Vocabulary, tmp_path: Path) -> None:
    settings = VllmSettings(extra_args={"enforce-eager": True}, cache=str(tmp_path / "cache"))
    line = command(nano_folder, settings, words, 2048, "python")
    options = dict(zip(line[3::2], line[4::2], strict=False))
    assert line[:3] == ["python", "-m", "vllm.entrypoints.openai.api_server"] and "--enforce-eager" in line
    assert "--reasoning-parser" in line and line[line.index("--reasoning-parser") + 1] == "hf"
    assert options["--uds"] == "{socket}" and "key" not in " ".join(line)
    own = {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "s", "MLFLOW_TRACKING_PASSWORD": "s", "HTTPS_PROXY": "p"}
    given = environment(settings, "secret", {**own, "CUDA_VISIBLE_DEVICES": ""})
    assert not {"AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "", "HTTPS_PROXY"} & set(given)
    assert given["VLLM_API_KEY"] == "secret" and given["HF_HUB_OFFLINE"] == "1" and given["PATH"] == "/bin"
    assert given["VLLM_CPU_OMP_THREADS_BIND"] == "nobind" and given["HOME"] == str(tmp_path / "cache")
    assert given["OMP_NUM_THREADS"] == str(max(1, num_cores() - 1)), "a core is left to what is no arithmetic"
    assert (
        environment(settings, "secret", {**own, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"]
        == "7"
    )


def test_an_interpreter_that_is_none_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="no interpreter"):
        find_python(VllmSettings(python=str(tmp_path / "python")))


def reply_of(words: Vocabulary) -> Reply:
    return Reply(Splitter(words.decode, words.marks, False, 100, words.ends), words.image, 0.0)


def chunk(tokens: list[int], finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "token_ids": tokens, "finish_reason": finish}]}


def test_a_reply_s_usage_comes_first_and_its_finish_last(words: Vocabulary) -> None:
    reply, tokens = reply_of(words), list(words.tokenizer.encode("three circles").ids)
    assert words.image is not None
    opening = {"choices": [{"index": 0, "finish_reason": None}], "prompt_token_ids": [1, words.image, words.image, 2]}
    first = reply.push([opening, chunk(tokens[:1])])
    assert first is not None and first.usage is not None and (first.usage.prompt, first.usage.image) == (4, 2)
    assert reply.push([chunk(tokens[1:], "length")]) is not None
    totals = {"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": 3}}, "metrics": {"queue_time_ms": 20}}
    last = reply.push([totals])
    assert last is not None and last.finish == "length" and last.thinking == "off"
    assert last.usage is not None and last.usage.cached == 3
    assert last.timing is not None and last.timing.queue_s == pytest.approx(0.02)
    assert reply.num_tokens == len(tokens)


def test_the_pace_of_a_reply_is_the_servers_or_a_bound_from_above(words: Vocabulary) -> None:
    told, untold = reply_of(words), reply_of(words)
    untold.received = time.monotonic() - 0.4
    for reply, metrics in ((told, {"mean_itl_ms": 12.5}), (untold, None)):
        assert reply.token_s is None
        last = {"choices": [], "usage": {}, **({"metrics": metrics} if metrics else {})}
        reply.push([chunk([20, 21, 22, 23], "length"), last])  # all in one piece, as a busy server writes
    assert told.token_s == pytest.approx(0.0125)
    assert untold.token_s is not None and 0.1 <= untold.token_s < 0.2


@pytest.mark.parametrize("fault", [{"error": {"message": "EngineCore encountered an issue"}}, chunk([], "abort")])
def test_a_stream_that_the_server_gives_up_is_an_engine_that_died(words: Vocabulary, fault: dict[str, Any]) -> None:
    with pytest.raises(EngineDied):
        reply_of(words).push([fault])


def test_joined_tokens_are_taken_one_by_one_where_a_stop_string_is_looked_for() -> None:
    parts = list(singly([chunk([5, 6, 7], "stop"), chunk([8]), {"choices": []}]))
    assert [part[0]["choices"][0]["token_ids"] for part in parts[:4]] == [[5], [6], [7], [8]]
    assert [part[0]["choices"][0]["finish_reason"] for part in parts[:4]] == [None, None, "stop", None]
    assert parts[4] == [{"choices": []}]
