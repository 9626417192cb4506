"""The engine around a process that only speaks like vLLM's; the real one is in integration/test_vllm_rollouts.py."""

import json
import sys
from pathlib import Path

import pytest
import torch

from sightloom.model.chat import Document, Encoder
from sightloom.model.generation import GenerationRequest
from sightloom.model.load import VLM, load
from sightloom.records import Conversation, Message
from sightloom.training.vllm_engine import EngineLost, VllmEngine

from ..serving.trained import plain


@pytest.fixture(scope="module")
def vlm(start: Path) -> VLM:
    return load(str(start))


def speaking(folder: Path, *replies: str) -> str:
    """An interpreter that notes what it is asked and gives these replies, one a line, or does what `!` begins."""
    program = folder / "python"
    lines = [f"#!{sys.executable}", "import json, os, sys, time", f"log = open({str(folder / 'asked.jsonl')!r}, 'a')"]
    for reply in replies:
        lines.append("log.write(sys.stdin.readline()); log.flush()")
        lines.append(reply[1:] if reply.startswith("!") else f"print({reply!r}, flush=True)")
    program.write_text("\n".join(lines) + "\n")
    program.chmod(0o755)
    return str(program)


def request(vlm: VLM) -> GenerationRequest:
    asked = (Message("user", "What is shown?", image=True),)
    prompt = Encoder(vlm.processor).prompt(Conversation("a", "conversation", "t", "ui", asked), plain("red"), True)
    return GenerationRequest(prompt, 8, 0.7, seed=5, image=plain("red"))


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("!os._exit(3)", "died with code 3"),
        ("!os.spawnlp(os.P_WAIT, 'sleep', 'sleep', '600')", "took longer than 2 s"),
        (json.dumps({"error": "OutOfMemoryError: no room"}), "vLLM: OutOfMemoryError: no room"),
        (json.dumps({"answers": [{"tokens": [1], "logprobs": [0.0], "finish": "abort"}]}), "ended an answer"),
    ],
)
def test_a_process_that_dies_hangs_or_fails_is_an_error_that_says_so(
    vlm: VLM, tmp_path: Path, reply: str, said: str
) -> None:
    engine = VllmEngine(vlm, tmp_path / "weights", 256, limit_s=2.0, python=speaking(tmp_path, "{}", reply))
    with pytest.raises(EngineLost, match=said):
        engine.generate([request(vlm)])
    engine.close()


def test_it_is_asked_for_one_place_holder_a_picture_with_the_trainers_weights(vlm: VLM, tmp_path: Path) -> None:
    answer = json.dumps({"answers": [{"tokens": [40, 41], "logprobs": [-0.5, -0.1], "finish": "stop"}]})
    engine = VllmEngine(vlm, tmp_path / "weights", 256, python=speaking(tmp_path, "{}", "{}", answer, "{}", answer))
    engine.load_weights(3, None)
    (found,) = engine.generate([request(vlm)])
    assert found.token_ids == (40, 41) and found.logprobs == (-0.5, -0.1) and found.finish == "stop"
    engine.load_weights(4, None)
    engine.generate([request(vlm)])
    engine.close()
    start, reload, generate, again, _ = map(json.loads, (tmp_path / "asked.jsonl").read_text().splitlines())
    assert start["start"]["model"] == str(vlm.folder)
    assert reload["reload"].endswith("version-000003") and again["reload"].endswith("version-000004")
    assert [folder.name for folder in (tmp_path / "weights").iterdir()] == ["version-000004"]
    (asked,) = generate["generate"]
    image = vlm.model.config.image_token_id
    assert asked["prompt"].count(image) == 1 < request(vlm).prompt.input_ids.tolist().count(image)
    assert asked["sampling"]["seed"] == 5 and str(image) in asked["sampling"]["logit_bias"]


def test_what_it_cannot_do_is_refused(vlm: VLM, tmp_path: Path) -> None:
    prompt = Document(torch.ones(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bool))
    engine = VllmEngine(vlm, tmp_path, 256, python=speaking(tmp_path, "{}"))
    with pytest.raises(ValueError, match="neither a thinking budget nor a constraint"):
        engine.generate([GenerationRequest(prompt, 8, thinking_budget=4)])
    engine.close()
