"""What the tests and the bench of a rollout share: versions, a cluster with a manager, clients under way."""

import itertools
import json
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import ray

from sightloom.model.presets import get_preset
from sightloom.model.scratch import build_folder, build_processor, random_model, token_ids, train_tokenizer
from sightloom.promotion.canary import CanaryPlan, CanaryStep, SloRules
from sightloom.promotion.config import HttpConfig, ManagerConfig
from sightloom.promotion.ledger import Ledger
from sightloom.promotion.manager import start_manager, stop_manager
from sightloom.promotion.serve_api import ServeApi
from sightloom.registry import Registry, Version
from sightloom.serving.clip import ClipSettings
from sightloom.serving.ports import wait_until_ready
from sightloom.tracking import MlflowTracker

MODEL = "nano"
TEXTS = ["what is it? x is it"] * 50
QUICK = CanaryPlan(
    steps=(CanaryStep(bp=1000, min_requests=5, min_minutes=0), CanaryStep(bp=5000, min_requests=5, min_minutes=0)),
    rules=SloRules(max_latency_ratio=1000),  # a busy test machine says nothing about latency
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def cluster(num_cpus: int = 4) -> Iterator[str]:
    """A Ray with a dashboard; yields the dashboard's address."""
    if ray.is_initialized():
        ray.shutdown()
    port = free_port()
    ray.init(
        address="local", num_cpus=num_cpus, object_store_memory=300_000_000, include_dashboard=True,
        dashboard_port=port, log_to_driver=False, _temp_dir=tempfile.mkdtemp(prefix="slray-"),
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        ray.shutdown()


def register(uri: str, folder: Path, count: int) -> list[Version]:
    """Nano models with random weights as versions 1, 2, …"""
    tracker, registry = MlflowTracker(uri, "rollout"), Registry(uri)
    run = tracker.start_run("train")
    return [registry.register(MODEL, build_folder("nano", TEXTS, folder / f"n{i}", i), run) for i in range(count)]


def slow_folder(out: Path) -> Path:
    """A nano model of sixteen times the depth: as truly slow as a larger one, and made in a second."""
    size = get_preset("nano").model_copy(update={"layers": 64})
    tokenizer = train_tokenizer(TEXTS, size.vocab, size.context)
    build_processor(size, tokenizer).save_pretrained(out)
    random_model(size, token_ids(tokenizer), 0).save_pretrained(out)
    return out


def mute_folder(out: Path) -> Path:
    """A nano model to which every token is the end of its answer."""
    build_folder("nano", TEXTS, out, 0)
    file = out / "generation_config.json"
    size = json.loads((out / "config.json").read_text())["text_config"]["vocab_size"]
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": list(range(size))}))
    return out


@dataclass
class Stage:
    """A model with a champion, behind an endpoint that a manager steers."""

    uri: str
    config: ManagerConfig
    versions: Sequence[Version]
    manager: Any

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.uri)

    @property
    def serve(self) -> ServeApi:
        return ServeApi(self.config.dashboard, self.config.token_file)

    @property
    def address(self) -> str:
        return f"http://{self.config.http.host}:{self.config.http.port}"

    def write(self, kind: str, version: int, **args: Any) -> int:
        """Append an event; returns its number."""
        return append(self.uri, self.versions, kind, version, **args)

    def register(self, folder: Path) -> int:
        """Make a folder the next version; returns its number."""
        made = Registry(self.uri).register(MODEL, folder, self.versions[0].run_id or "")
        self.versions = [*self.versions, made]
        return made.version

    def begin(self, version: int, plan: CanaryPlan = QUICK) -> None:
        """Put a version on trial."""
        self.write("evaluate", version)
        self.write("verdict", version, outcome="passed")
        self.write("start", version, **plan.to_args())

    def until(self, stage: str, version: int, timeout_s: float = 120) -> None:
        """Wait until a version stands somewhere in the ledger."""
        end = time.monotonic() + timeout_s
        while self.ledger.read().model(MODEL).stages.get(version) != stage:
            assert time.monotonic() < end, (self.ledger.read().model(MODEL), self.status())
            time.sleep(0.2)

    def until_answered_by(self, version: int, timeout_s: float = 120) -> float:
        """Wait until requests are answered by a version as champion; returns the seconds."""
        began = time.monotonic()
        with httpx.Client(base_url=self.address, trust_env=False, timeout=60) as client:
            while True:
                reply = ask(client, "who")
                if (reply.headers.get("x-sightloom-model"), reply.headers.get("x-sightloom-route")) == (
                    f"{MODEL}:{version}", "champion"
                ):  # fmt: skip
                    return time.monotonic() - began
                assert time.monotonic() - began < timeout_s, (reply.text, dict(reply.headers), self.status())
                time.sleep(0.02)

    def status(self) -> dict[str, Any]:
        return dict(ray.get(self.manager.status.remote(), timeout=60))


def append(uri: str, versions: Sequence[Version], kind: str, version: int, **args: Any) -> int:
    ledger = Ledger(uri)
    proof = {"digest": versions[version - 1].digest}
    return ledger.append(ledger.read(), kind, MODEL, version, "ann", "test", args, proof).generation


@contextmanager
def stage(
    uri: str, folder: Path, dashboard: str, num_versions: int = 3, clips: dict[str, ClipSettings] | None = None
) -> Iterator[Stage]:
    """Version 1 is champion and answers."""
    versions = register(uri, folder, num_versions)
    for kind, args in (("evaluate", {}), ("verdict", {"outcome": "passed"}), ("promote", {})):
        append(uri, versions, kind, 1, **args)
    token = Path.home() / ".ray" / "auth_token"  # Ray makes one when it starts, and its dashboard asks for it
    config = ManagerConfig(
        token_file=str(token) if token.is_file() else None,
        store=uri, dashboard=dashboard, cache=str(folder / "cache"), http=HttpConfig(port=free_port()), cpus=0.1,
        idle_s=5, busy_s=0.5, clips=clips or {},
    )  # fmt: skip
    manager = start_manager(config)
    try:
        there = Stage(uri, config, versions, manager)
        try:
            wait_until_ready(there.address, 180)
        except Exception as error:
            raise AssertionError(there.status()) from error
        yield there
    finally:
        stop_manager()


def ask(client: httpx.Client, session: str, stream: bool = False, tokens: int = 8) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "what is it?"}], "max_tokens": tokens,
            "temperature": 1, "seed": 3, "stream": stream, "ignore_eos": False}  # fmt: skip
    return client.post("/v1/chat/completions", json=body, headers={"x-session-id": session})


@dataclass
class Load:
    """What clients saw. `failed`: every answer that was not whole."""

    address: str
    answered: Counter[tuple[str, str]] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def total(self) -> int:
        return sum(self.answered.values())

    def client(self, number: int) -> None:
        with httpx.Client(base_url=self.address, trust_env=False, timeout=120) as client:
            for turn in itertools.count():
                if self._ended.is_set():
                    return
                stream = (number + turn) % 2 == 0
                try:
                    reply = ask(client, f"{number}-{turn}", stream)
                    trouble = "" if reply.status_code == 200 else f"{reply.status_code} {reply.text[:300]}"
                    trouble = trouble or (broken_stream(reply.text) if stream else broken(reply.json()))
                except httpx.HTTPError as error:
                    trouble = f"{type(error).__name__}: {error}"
                with self._lock:
                    if trouble:
                        self.failed.append(trouble)
                    else:
                        seen = (reply.headers["x-sightloom-model"], reply.headers["x-sightloom-route"])
                        self.answered[seen] += 1


@contextmanager
def load(address: str, clients: int) -> Iterator[Load]:
    """Clients that ask without pause until the block ends, half of them for streams."""
    seen = Load(address)
    threads = [threading.Thread(target=seen.client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        seen._ended.set()
        for thread in threads:
            thread.join()


def broken(body: dict[str, Any]) -> str:
    """Why an answer is not whole, empty if it is."""
    choice, tokens = body["choices"][0], body["usage"]["completion_tokens"]
    whole = choice["finish_reason"] == "stop" or (choice["finish_reason"] == "length" and tokens == 8)
    return "" if whole else f"short answer: {json.dumps(body)[:300]}"


def broken_stream(text: str) -> str:
    """Why a stream is not whole, empty if it is."""
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    if not events or events[-1] != "[DONE]":
        return f"stream without an end: {text[-200:]}"
    said = [json.loads(event) for event in events[:-1]]
    if any("error" in event for event in said):
        return f"stream with an error: {said[-1]}"
    finished = [choice["finish_reason"] for event in said for choice in event["choices"] if choice["finish_reason"]]
    return "" if finished else f"stream without a finish: {text[-200:]}"
