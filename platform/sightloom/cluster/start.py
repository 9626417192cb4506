"""`python -m sightloom.cluster.start [NAME=FILE …] [NAME …] [--in FOLDER] -- PROGRAM …`: the first process of a job.

It reads secrets from files of its node into the environment, sees that the node has set the others, goes to the code,
and runs the program. What that writes passes through, without the secrets' values, and is archived in MLflow. No secret
stands in the job's description, and no shell reads its words.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Final

from sightloom.errors import UserMistake

LOG: Final = "driver.log"
HIDDEN: Final = b"[secret]"
_ARCHIVE_S: Final = 60  # a store that is slower does not hold the job up
_SHORTEST: Final = 4  # a shorter secret would be found everywhere
_CREDENTIALS: Final = re.compile(rb"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|(?<=Bearer )\S+", re.IGNORECASE)
_PARENT_DEATH: Final = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True, slots=True)
class Start:
    """What is to be run: the program's words, its folder (empty: this one), environment, and the secrets' values."""

    program: list[str]
    folder: str
    environment: dict[str, str]
    secrets: tuple[str, ...]


def prepared(words: list[str], environment: Mapping[str, str]) -> Start:
    """Read the words of the command line.

    Raises:
        UserMistake: a secret's file is missing, or a variable that the node should have set is not.
    """
    mark = words.index("--")
    before, program, folder = words[:mark], words[mark + 1 :], ""
    found, names = dict(environment), []
    while before:
        word = before.pop(0)
        if word == "--in":
            folder = before.pop(0)
            continue
        name, named, file = word.partition("=")
        names.append(name)
        if named:
            try:
                found[name] = Path(file).read_text(encoding="utf-8").rstrip("\n")
            except OSError as error:
                raise UserMistake(f"secret {name}: this node has no file '{file}' ({error.strerror})") from error
        elif name not in found:
            raise UserMistake(f"secret {name}: this node does not set the variable", "set it where Ray is started")
    return Start(program, folder, found, tuple(found[name] for name in names))


def redactor(secrets: tuple[str, ...]) -> Callable[[bytes], bytes]:
    """Takes the secrets' values, credentials in addresses and bearer tokens out of a line."""
    values = sorted({value.encode() for value in secrets if len(value) >= _SHORTEST}, key=len, reverse=True)

    def clean(line: bytes) -> bytes:
        for value in values:
            line = line.replace(value, HIDDEN)
        return _CREDENTIALS.sub(HIDDEN, line)

    return clean


def run(start: Start, out: IO[bytes], log: IO[bytes]) -> int:
    """Run the program, pass its words on, and return its exit code (128 + the signal that ended it).

    Signals that ask this process to end are passed on; if this process is killed, so is the program.
    """
    process = subprocess.Popen(
        start.program, cwd=start.folder or None, env=start.environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, preexec_fn=_die_with_parent,
    )  # fmt: skip

    def pass_on(number: int, _: FrameType | None) -> None:
        process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    assert process.stdout is not None
    clean = redactor(start.secrets)
    for line in process.stdout:
        words = clean(line)
        for sink in (out, log):
            sink.write(words)
            sink.flush()
    code = process.wait()
    return code if code >= 0 else 128 - code


def main() -> None:
    """Run the program and leave with its exit code; with 2 where a secret is missing."""
    try:
        start = prepared(sys.argv[1:], dict(os.environ))
    except UserMistake as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    log = Path(tempfile.mkdtemp(prefix="sightloom-job-")) / LOG
    try:
        with open(log, "wb") as sink:
            code = run(start, sys.stdout.buffer, sink)
    except OSError as error:
        sys.stderr.write(f"error: the program '{start.program[0]}' cannot be started: {error}\n")
        code = 2
    archive(log, code, start.environment)
    sys.exit(code)


def archive(log: Path, code: int, environment: Mapping[str, str]) -> None:
    """Have the log put into MLflow by a process of its own session: who ends the job does not end that."""
    if not environment.get("MLFLOW_TRACKING_URI"):
        shutil.rmtree(log.parent)
        return
    command = [sys.executable, "-m", "sightloom.cluster.archive", str(log), str(code)]
    process = subprocess.Popen(command, env=dict(environment), start_new_session=True)
    try:
        process.wait(_ARCHIVE_S)
    except subprocess.TimeoutExpired:
        sys.stderr.write(f"MLflow has not taken the log after {_ARCHIVE_S} s; it is still being tried\n")


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)


if __name__ == "__main__":
    main()
