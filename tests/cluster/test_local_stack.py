"""A stack of small programs: started, looked at, one of them killed, ended."""

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from sightloom.cli import cli
from sightloom.cluster.local import looking, parts, stack, state
from sightloom.cluster.local.options import StackOptions, read_ports
from sightloom.cluster.local.parts import Part, make_token
from sightloom.errors import SightloomError, UserMistake
from sightloom.progress import NullProgress

# Listens on its port after starting a child that leads a session of its own, as HAProxy and Ray's workers do.
SERVER = """
import http.server, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("listening", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    found = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return found


@pytest.fixture
def options() -> StackOptions:
    names = ["mlflow", "dashboard", "gcs", "client", "agent", "endpoint", "prometheus"]
    words = [f"{name}={port}" for name, port in zip(names, free_ports(len(names)), strict=True)]
    return StackOptions(ports=read_ports(words))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stack's folder whose parts are small programs."""

    def small(name: str, port_name: str, options: StackOptions, needs: tuple[str, ...] = ()) -> Part:
        port = getattr(options.ports, port_name)
        command = (sys.executable, "-c", SERVER, str(port))
        return Part(name, command, (port_name,), lambda: parts._answers(f"http://127.0.0.1:{port}/"), needs)

    def made(folder: Path, temp: str, options: StackOptions) -> dict[str, Part]:
        found = [small("mlflow", "mlflow", options), small("ray", "dashboard", options)]
        found.append(small("endpoint", "endpoint", options, ("mlflow", "ray")))
        return {part.name: part for part in found}

    monkeypatch.setattr(stack, "parts_of", made)
    monkeypatch.setattr(looking, "parts_of", made)
    yield tmp_path / "stack"
    state.end(state.stack_id(tmp_path / "stack"))


def started(folder: Path, options: StackOptions) -> looking.StackStatus:
    return stack.up(folder, options, NullProgress())


def states(found: looking.StackStatus) -> dict[str, str]:
    return {part.name: part.state for part in found.parts}


def test_up_status_down_twice_and_nothing_is_left(folder: Path, options: StackOptions) -> None:
    for _ in range(2):
        found = started(folder, options)
        assert states(found)["mlflow"] == states(found)["ray"] == states(found)["endpoint"] == "running" and found.well
        assert len(state.marked(state.stack_id(folder))) == 6  # each has a child
        temp = state.read_state(folder).temp  # type: ignore[union-attr]
        assert stack.down(folder, NullProgress()) == 6
        assert state.marked(state.stack_id(folder)) == [] and not Path(temp).exists()
        assert looking.status(folder).parts == ()
    assert stack.down(folder, NullProgress()) == 0


def test_a_second_up_starts_only_what_died_and_what_stands_on_it(folder: Path, options: StackOptions) -> None:
    first = {part.name: part.pid for part in started(folder, options).parts}
    os.kill(first["ray"], signal.SIGKILL)  # type: ignore[arg-type]
    seen = looking.status(folder)
    (dead,) = [part for part in seen.parts if part.state == "dead"]
    assert (dead.name, seen.well) == ("ray", False)
    assert f"process {first['ray']} is gone; its log ends: " in dead.reason
    second = {part.name: part.pid for part in started(folder, options).parts}
    assert second["mlflow"] == first["mlflow"]
    assert second["ray"] != first["ray"] and second["endpoint"] != first["endpoint"]
    assert len(state.marked(state.stack_id(folder))) == 6  # the dead one's child was ended with it


def test_a_part_that_hangs_is_ill_and_says_why(
    folder: Path, options: StackOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_ASK_S", 0.5)
    pid = next(part.pid for part in started(folder, options).parts if part.name == "mlflow")
    os.kill(pid, signal.SIGSTOP)  # type: ignore[arg-type]
    (ill,) = [part for part in looking.status(folder).parts if part.state == "ill"]
    assert ill.name == "mlflow" and "no answer" in ill.reason
    os.kill(pid, signal.SIGCONT)  # type: ignore[arg-type]


def test_a_port_in_use_is_told_with_its_owner_and_nothing_is_started(folder: Path, options: StackOptions) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", options.ports.endpoint))
        taken.listen()
        with pytest.raises(UserMistake, match=f"endpoint: port {options.ports.endpoint} .* in use") as caught:
            started(folder, options)
    assert f"process {os.getpid()}" in str(caught.value) and "--port endpoint=" in str(caught.value)
    assert state.marked(state.stack_id(folder)) == [] and state.read_state(folder) is None


def test_a_part_that_does_not_start_says_its_last_words_and_ends_the_others(
    folder: Path, options: StackOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stack.parts_of

    def broken(folder: Path, temp: str, options: StackOptions) -> dict[str, Part]:
        found = whole(folder, temp, options)
        command = (sys.executable, "-c", "raise SystemExit('no such database')")
        return found | {"ray": Part("ray", command, ("dashboard",), lambda: "no answer", tries=2)}

    monkeypatch.setattr(stack, "parts_of", broken)
    with pytest.raises(SightloomError, match="ray ended: no such database"):
        started(folder, options)
    assert state.marked(state.stack_id(folder)) == [] and state.read_state(folder) is None


@pytest.mark.parametrize(
    ("status", "body", "well"),
    [
        (200, {"models": {"m": {"champion": "1", "ready": True}}}, True),
        (503, {"models": {}}, True),
        (503, {"models": {"m": {"champion": None, "ready": False}}}, True),
        (503, {"models": {"m": {"champion": "1", "ready": False}}}, False),
        (503, {"error": "no"}, False),
        (500, {"models": {}}, False),
    ],
)
def test_an_endpoint_is_well_when_every_champion_answers_or_there_is_none_yet(
    status: int, body: dict[str, Any], well: bool
) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: Any) -> None:
            return

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = parts._serves(f"http://127.0.0.1:{server.server_port}/readyz")
        server.shutdown()
    assert (said == "") is well, said
    assert well or f"answers {status}" in said


def test_other_options_and_a_second_command_at_work_are_refused(folder: Path, options: StackOptions) -> None:
    started(folder, options)
    with pytest.raises(UserMistake, match="runs with other options"):
        started(folder, options.model_copy(update={"num_cpus": 99}))
    with state.sole_keeper(folder), pytest.raises(UserMistake, match="at work"):
        stack.down(folder, NullProgress())


def test_down_ends_the_stack_without_its_state_file_or_with_a_damaged_one(folder: Path, options: StackOptions) -> None:
    started(folder, options)
    (folder / "stack.json").write_text("{")
    with pytest.raises(SightloomError, match="no state of a stack"):
        looking.status(folder)
    assert stack.down(folder, NullProgress()) == 6
    started(folder, options)
    (folder / "stack.json").unlink()
    assert stack.down(folder, NullProgress()) == 6


def test_a_reused_process_id_is_not_taken_for_the_part() -> None:
    own = psutil.Process()
    seen = state.Running(pid=own.pid, began=own.create_time(), port=1, log="")
    assert state.process_of(seen) is not None
    assert state.process_of(seen.model_copy(update={"began": own.create_time() - 60})) is None


def test_the_token_is_its_owners_alone_and_stays_the_same(tmp_path: Path) -> None:
    file = make_token(tmp_path)
    token = file.read_text()
    file.chmod(0o644)
    assert make_token(tmp_path).read_text() == token and len(token) >= 32
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_verbs_say_how_it_stands(folder: Path, options: StackOptions) -> None:
    env = {"SIGHTLOOM_FOLDER": str(folder)}
    shown = CliRunner().invoke(cli, ["status"], env=env)
    assert shown.exit_code == 1 and "no stack runs" in shown.output
    started(folder, options)
    found: dict[str, Any] = json.loads(CliRunner().invoke(cli, ["status", "--json"], env=env).stdout)
    assert found["well"] and found["parts"]["ray"]["address"] == options.dashboard
    shown = CliRunner().invoke(cli, ["jobs", "list", "--cluster", "local"], env=env)
    assert shown.exit_code == 2 and f"{options.dashboard} is no Ray dashboard" in shown.output
    assert json.loads(CliRunner().invoke(cli, ["down", "--json"], env=env).stdout) == {"ended": 6}
    shown = CliRunner().invoke(cli, ["jobs", "list", "--cluster", "local"], env=env)
    assert shown.exit_code == 2 and "sightloom up" in shown.output


def test_a_process_that_ignores_the_first_request_is_killed(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    env = {**os.environ, state.MARK: "deaf", state.PART: "x"}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    began = time.monotonic()
    assert state.end("deaf", "y") == 0
    assert state.end("deaf", grace_s=0.2) == 1
    assert process.wait(5) == -signal.SIGKILL and time.monotonic() - began < 5
