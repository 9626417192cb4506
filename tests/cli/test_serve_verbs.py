"""`sightloom serve` and `sightloom ask` as a user runs them."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from sightloom.cli import cli
from sightloom.model.scratch import build_folder

SIGHTLOOM = [sys.executable, "-c", "from sightloom.cli import main; main()"]


def run(*arguments: str) -> Result:
    """A verb in this process: the imports are paid once."""
    return CliRunner().invoke(cli, list(arguments))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_folder("nano", ["Describe the image."] * 8, tmp_path_factory.mktemp("verbs") / "nano", seed=1)


def test_a_model_is_served_and_asked(folder: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    command = [*SIGHTLOOM, "serve", str(folder), "--port", port, "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        started = json.loads(server.stdout.readline())
        assert started["address"] == f"http://127.0.0.1:{port}"
        asked = ["ask", "What is it?", "--image", str(tmp_path / "red.png"), "--url", started["address"]]
        answer = run(*asked, "--budget", "4", "--max-tokens", "40", "--json")
        assert answer.exit_code == 0, answer.stderr
        result = json.loads(answer.stdout)
        assert result["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 5
        assert set(result) >= {"thinking", "answer", "finish", "usage", "model", "seconds"}
        second = run("serve", str(folder), "--port", port)
        assert second.exit_code == 2
        assert "is in use" in second.stderr and "Traceback" not in second.stderr
    finally:
        server.terminate()
        assert server.wait(30) == 0 or server.returncode == -15
    gone = run("ask", "Still there?", "--url", f"http://127.0.0.1:{port}")
    assert gone.exit_code == 1 and "is it running?" in gone.stderr and "Traceback" not in gone.stderr


def test_mistakes_are_said_in_words(tmp_path: Path) -> None:
    for arguments, words in (
        (["serve", str(tmp_path)], "no model folder"),
        (["serve", "nothing-here"], "is no folder"),
        (["serve", str(tmp_path), "--host", "0.0.0.0"], "without keys"),
        (["ask", "x", "--image", str(tmp_path / "no.png")], "there is no picture"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, result.stderr
        assert words in result.stderr and "Traceback" not in result.stderr
