"""A local stack driven by the command line alone, and who answers at its endpoint."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openai
import psutil
from PIL import Image
from tests.integration import services

from sightloom.cluster.client import JobsApi
from sightloom.cluster.local import state
from sightloom.cluster.local.stack import local_cluster
from sightloom.promotion.ledger import Ledger
from sightloom.registry import Registry

ROOT = Path(__file__).parent.parent.parent
NAMES = ("mlflow", "dashboard", "gcs", "client", "agent", "endpoint", "prometheus")


class Stack:
    """A stack in a folder of its own, driven by the command line alone."""

    def __init__(self, folder: Path, more: Mapping[str, str], *words: str) -> None:
        self.folder, self._words = folder, words
        self.ports = dict(zip(NAMES, services.free_ports(len(NAMES)), strict=True))
        self.env = {**os.environ, "SIGHTLOOM_FOLDER": str(folder), **more}

    def run(self, *words: str, code: int = 0, limit_s: float = 900) -> dict[str, Any]:
        command = [sys.executable, "-m", "sightloom.cli", *words]
        shown = subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=limit_s)
        assert shown.returncode == code, (words, shown.stdout[-3000:], shown.stderr[-6000:])
        found: dict[str, Any] = json.loads(shown.stdout) if shown.stdout.startswith("{") else {"said": shown.stderr}
        return found

    def up(self) -> dict[str, Any]:
        ports = [word for name, port in self.ports.items() for word in ("--port", f"{name}={port}")]
        return self.run("up", *ports, *self._words, "--json")

    def submit(self, job: str, *sets: str, detach: bool = False) -> tuple[dict[str, Any], float]:
        """Submit a job, follow it to its end, and say how long it took to be running."""
        words = [word for one in sets for word in ("--set", one)]
        command = [
            "submit",
            f"jobs/{job}.yaml",
            "--cluster",
            "local",
            *words,
            *(["--detach"] if detach else []),
            "--json",
        ]
        before = {job.id for job in self.api.list()}
        process = subprocess.Popen(
            [sys.executable, "-m", "sightloom.cli", *command],
            cwd=ROOT, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        began = time.monotonic()
        self._until_running(before, process)
        took = time.monotonic() - began
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, (job, err[-6000:], self._log())
        return json.loads(out), took

    def _until_running(self, before: set[str], process: "subprocess.Popen[str]") -> None:
        """Wait until a new job runs, or the command has ended (it attached to an old one)."""
        while process.poll() is None:
            if any(job.status != "PENDING" for job in self.api.list() if job.id not in before):
                return
            time.sleep(0.05)

    def _log(self) -> str:
        jobs = self.api.list()
        return self.api.logs(jobs[-1].id)[-4000:] if jobs else ""

    @property
    def api(self) -> JobsApi:
        return JobsApi(*local_cluster(self.folder))

    @property
    def tracking(self) -> str:
        return f"http://127.0.0.1:{self.ports['mlflow']}"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['endpoint']}"

    def processes(self) -> list[psutil.Process]:
        return state.marked(state.stack_id(self.folder))


def ask(stack: Stack) -> str:
    """Who answers a question about a picture; the words mean nothing after so few steps."""
    file = stack.folder / "picture.png"
    Image.new("RGB", (64, 64), "red").save(file)
    url = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    client = openai.OpenAI(base_url=f"{stack.endpoint}/v1", api_key="none")
    parts: Any = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What colour is it?"}]
    answer = client.chat.completions.with_raw_response.create(
        model="sightloom", messages=[{"role": "user", "content": parts}], max_completion_tokens=40
    )
    usage = answer.parse().usage
    assert usage is not None and usage.completion_tokens > 0
    return str(answer.headers["x-sightloom-model"])


def crown(store: str, version: str) -> None:
    """Make a version champion, as the ledger of a store says it."""
    digest = Registry(store).resolve(version).digest
    name, number = version.split(":")
    for kind, args in (("evaluate", {}), ("verdict", {"outcome": "passed"}), ("promote", {})):
        ledger = Ledger(store)
        ledger.append(ledger.read(), kind, name, int(number), "ann", "test", args, {"digest": digest})
