"""The short road, as a newcomer walks it: a process of its own, an interruption, and the rest of the road."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SIGHTLOOM = Path(sys.executable).parent / "sightloom"
SHAPE = {"seconds", "seed", "curation", "stages", "domains", "version", "answers"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(out: Path, port: int) -> subprocess.Popen[str]:
    command = [SIGHTLOOM, "demo", "--quick", "--seed", "3", "--out", out, "--port", str(port), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=out.parent)


@pytest.mark.long
def test_the_short_road_can_be_interrupted_and_walked_to_its_end(tmp_path: Path) -> None:
    out, port = tmp_path / "demo", free_port()
    first = start(out, port)
    while not (out / "steps" / "filter.json").exists():
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    _, words = first.communicate(timeout=120)
    assert first.returncode == 130
    assert "goes on from there" in words and "Traceback" not in words
    before = os.stat(out / "steps" / "filter.json").st_mtime_ns

    second = start(out, port)
    shown, words = second.communicate(timeout=900)
    assert second.returncode == 0, words
    found = json.loads(shown)
    assert set(found) >= SHAPE and found["seed"] == 3
    assert os.stat(out / "steps" / "filter.json").st_mtime_ns == before
    figures = found["curation"]
    assert figures["mismatch_out"] < figures["mismatch_in"] and 0.25 < figures["mismatch_in"] < 0.35
    assert [stage["objective"] for stage in found["stages"]] == ["align", "sft", "sft", "rl", "sft"]
    assert set(found["domains"]) == {"natural", "document", "science", "ui", "art"}
    assert len(found["answers"]) == 5 and all(Path(answer["picture"]).is_file() for answer in found["answers"])
    with socket.socket() as probe:  # nothing is left listening
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_port_in_use_is_told_before_anything_is_made(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = start(tmp_path / "demo", taken.getsockname()[1])
        shown, words = refused.communicate(timeout=120)
    assert refused.returncode == 2 and shown == ""
    assert "is in use" in words and "Traceback" not in words
    assert not (tmp_path / "demo").exists()
