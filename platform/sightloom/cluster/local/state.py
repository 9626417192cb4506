"""What runs: the stack's state file, and its processes, told from others by start time and by a mark they inherit."""

import contextlib
import fcntl
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil
from pydantic import Field

from sightloom.cluster.local.options import StackOptions
from sightloom.config import Frozen
from sightloom.errors import SightloomError, UserMistake
from sightloom.storage import write

MARK: Final = "SIGHTLOOM_STACK"  # in the environment of every process of a stack, however far down
PART: Final = "SIGHTLOOM_PART"
_FILE: Final = "stack.json"
_KILLS, _KILL_S = 5, 2.0  # a process that was killed may have started another just before
_PAUSE_S: Final = 0.05
_SAME_S: Final = 1.0  # the clock of a start time ticks every 10 ms; a reused id is younger by far


class Running(Frozen):
    """A part's first process; `began`: seconds since 1970; `port`: where the part answers."""

    pid: int
    began: float
    port: int
    log: str


class State(Frozen):
    """A stack. `temp`: Ray's own folder; `absent`: parts that were not started, and why."""

    id: str
    temp: str
    options: StackOptions
    parts: dict[str, Running] = Field(default_factory=dict)
    absent: dict[str, str] = Field(default_factory=dict)


def stack_id(folder: Path) -> str:
    """A stack's name: of its folder, so that its processes are found without the file too."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]


def read_state(folder: Path) -> State | None:
    """The stack of a folder; None where none was started.

    Raises:
        SightloomError: the file is damaged.
    """
    file = folder / _FILE
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return State.model_validate_json(text)
    except ValueError as error:
        raise SightloomError(
            f"'{file}' is no state of a stack", "`sightloom down` ends the stack and removes it"
        ) from error


def write_state(folder: Path, state: State) -> None:
    """Replace the file as a whole."""
    write(str(folder / _FILE), state.model_dump_json(indent=1).encode())


def drop_state(folder: Path) -> None:
    """Nothing runs."""
    (folder / _FILE).unlink(missing_ok=True)


@contextlib.contextmanager
def sole_keeper(folder: Path) -> Iterator[None]:
    """Keep other commands from changing the same stack.

    Raises:
        UserMistake: another one is at it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserMistake(f"another `sightloom up` or `down` is at work in '{folder}'", "wait for it") from error
        yield


def process_of(running: Running) -> psutil.Process | None:
    """A part's process, if it is alive and still the same."""
    with contextlib.suppress(psutil.Error):
        found = psutil.Process(running.pid)
        if abs(found.create_time() - running.began) < _SAME_S and found.status() != psutil.STATUS_ZOMBIE:
            return found
    return None


def marked(id: str, part: str = "") -> list[psutil.Process]:
    """Every live process that carries a stack's mark; with `part`, those of one part."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            marks = process.environ()
            if marks.get(MARK) == id and part in ("", marks.get(PART)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end(id: str, part: str = "", grace_s: float = 5.0) -> int:
    """End marked processes: ask, wait, then kill, until none is left. Returns how many there were.

    Raises:
        SightloomError: some cannot be ended.
    """
    seen: set[int] = set()
    for patience_s, ask in ((grace_s, psutil.Process.terminate), *[(_KILL_S, psutil.Process.kill)] * _KILLS):
        found = marked(id, part)
        if not found:
            return len(seen)
        for process in found:
            seen.add(process.pid)
            with contextlib.suppress(psutil.NoSuchProcess):
                ask(process)
        until = time.monotonic() + patience_s
        while marked(id, part) and time.monotonic() < until:  # not `wait_procs`: a zombie that nobody reaps has ended
            time.sleep(_PAUSE_S)
    left = marked(id, part)
    if left:
        named = ", ".join(f"{process.pid} {process.name()}" for process in left)
        raise SightloomError(f"these processes do not end: {named}", "see what holds them (state D waits for a disk)")
    return len(seen)


def owner_of(port: int) -> str:
    """Who listens on a port, as far as this user may see: ` (process 12 \\`mlflow server\\`)`, or nothing."""
    with contextlib.suppress(psutil.Error, OSError):
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.pid:
                return f" (process {one.pid}: {' '.join(psutil.Process(one.pid).cmdline())[:80]})"
    return ""
