"""Clients of other people against a trained model: LangChain, lmms-eval's OpenAI model, the official Node client."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sightloom.serving.engines.transformers import TransformersEngine
from sightloom.serving.listening import Running
from sightloom.serving.listening import running as serve

from ..environments import ROOT, Unavailable, interpreter
from ..serving.trained import QUESTION, encoded, make_trained

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
CLIENTS = ROOT / "tests" / "clients"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = make_trained(tmp_path_factory.mktemp("trained") / "nano")
    with serve(lambda: TransformersEngine(folder, "3")) as running:
        yield running


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "red.png"
    path.write_bytes(encoded("red"))
    return str(path)


def run(command: list[str], **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_langchain_and_lmms_eval_work_unchanged(running: Running, picture: str) -> None:
    try:
        python = interpreter("clients")
    except Unavailable as error:
        pytest.skip(str(error))
    found = run([str(python), str(CLIENTS / "ask.py"), running.address, "sightloom", picture, QUESTION])
    chain = found["langchain"]
    assert chain["whole"] == chain["streamed"] == "It is red."
    assert chain["parsed"]["colour"] in ("red", "green", "blue")
    assert chain["usage"]["input_tokens"] > 16 and chain["usage"]["output_token_details"]["reasoning"] == 27
    assert found["lmms_eval"]["texts"] == ["It is red."] * 2
    assert all(count["output_tokens"] == 35 for count in found["lmms_eval"]["counts"])


def node_folder() -> Path:
    """A folder with the official Node client; the test is skipped where it cannot be made."""
    asked = CLIENTS / "package.json"
    folder = ROOT / ".tools" / "node"
    made = folder / f".made-{hashlib.sha256(asked.read_bytes()).hexdigest()[:16]}"
    if not made.exists():
        if shutil.which("npm") is None:
            pytest.skip("there is no npm here")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(asked, folder / asked.name)
        command = ["npm", "install", "--no-package-lock", "--prefix", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            pytest.skip(f"the Node client cannot be installed: {done.stderr[-300:]}")
        made.touch()
    return folder


def test_the_official_node_client_works_unchanged(running: Running, picture: str) -> None:
    folder = node_folder()
    program = folder / "ask.mjs"
    shutil.copyfile(CLIENTS / "ask.mjs", program)  # modules are looked for beside the program
    found = run(["node", str(program), running.address, "sightloom", picture, QUESTION])
    assert found["content"] == found["streamed"] == "It is red."
    assert "every pixel" in found["reasoning"].lower() and found["usage"] == found["wholeUsage"]
    assert found["aborted"] and found["parsed"]["colour"] in ("red", "green")
    assert found["errors"] == {
        "bad": ["BadRequestError", 400, "invalid_value", "temperature"],
        "missing": ["NotFoundError", 404, "model_not_found", "model"],
    }
