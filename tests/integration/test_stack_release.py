"""A release on a local stack by the command line alone: `up`, promote, the endpoint follows, roll back, `down`."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from sightloom.promotion.canary import CanaryPlan

from .releasing import MODEL, register
from .test_stack import Stack

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path / "stack", {"SIGHTLOOM_ACTOR": "ann"}, "--model", MODEL)
    yield made
    made.run("down", "--json")
    assert made.processes() == []


def answered_by(stack: Stack, version: int, timeout_s: float = 120) -> None:
    """Wait until requests that name no version are answered by one."""
    end = time.monotonic() + timeout_s
    body = {"model": MODEL, "messages": [{"role": "user", "content": "what is it?"}], "max_tokens": 4}
    with httpx.Client(base_url=stack.endpoint, trust_env=False, timeout=60) as client:
        while True:
            reply = client.post("/v1/chat/completions", json=body)
            if reply.headers.get("x-sightloom-model") == f"{MODEL}:{version}":
                assert reply.status_code == 200 and reply.headers["x-sightloom-route"] == "champion"
                return
            assert time.monotonic() < end, (reply.status_code, reply.text, dict(reply.headers))
            time.sleep(0.5)


def test_what_is_promoted_is_served_and_rolled_back(stack: Stack, tmp_path: Path) -> None:
    lines = [{"id": str(i), "question": f"{i}?", "answer": "x", "domain": "art"} for i in range(12)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = {"kind": "jsonl", "path": str(tmp_path / "q.jsonl")}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"name": "s", "sources": [source]}))
    rule = {"metric": "accuracy", "floor": 0.0, "margin": 1.0, "min_n": 10}
    gate = {"suites": "s.yaml", "decoding": {"max_new_tokens": 8}, "domains": {"art": rule},
            "improvement": {"require": "none"}, "statistics": {"resamples": 200}}  # fmt: skip
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(gate))
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(CanaryPlan(steps=()).model_dump(mode="json")))

    def promote(version: int) -> dict[str, object]:
        words = ("--gate", str(tmp_path / "g.yaml"), "--plan", str(tmp_path / "p.yaml"), "--reason", "better")
        return stack.run("promote", f"{MODEL}:{version}", *words, "--store", stack.tracking, "--json")

    began = stack.up()
    assert began["parts"]["endpoint"]["state"] == "absent"
    register(stack.tracking, tmp_path, 2)
    assert promote(1)["champion"] == 1  # nothing serves yet: a process of its own answered the gate
    stack.up()
    answered_by(stack, 1)
    done = promote(2)
    assert done["champion"] == 2 and done["previous"] == 1
    answered_by(stack, 2)
    stack.run("rollback", MODEL, "--reason", "worse on charts", "--store", stack.tracking, "--json")
    answered_by(stack, 1)
    stack.run("history", "--store", stack.tracking, "--verify", "--json")
    events = stack.run("history", "--store", stack.tracking, "--json")["events"]
    assert [event["kind"] for event in events if event["outcome"] == "accepted"][-5:] == [
        "evaluate", "verdict", "start", "promote", "rollback",
    ]  # fmt: skip
