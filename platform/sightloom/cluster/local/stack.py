"""Bringing a stack up, looking at it, and ending it. `up` starts what is not well and leaves the rest alone."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

from sightloom.cluster.clusters import Cluster
from sightloom.cluster.local import state as keeping
from sightloom.cluster.local.looking import StackStatus, last_line, status
from sightloom.cluster.local.options import HOST, StackOptions
from sightloom.cluster.local.parts import TOKEN_FILE, Part, environment_of, make_token, parts_of, write_prometheus
from sightloom.cluster.local.state import Running, State
from sightloom.errors import SightloomError, UserMistake
from sightloom.progress import Progress, Step

START_S: Final = 120.0
_PAUSE_S: Final = 0.1
_PATIENCE_S: Final = 15.0  # a part that is alive may be slow to answer on a busy machine
_ENDPOINT_GRACE_S: Final = 15.0  # answers that are on their way


def up(folder: Path, options: StackOptions, progress: Progress) -> StackStatus:
    """Start every part that does not run, and wait until all are well.

    Args:
        folder: of the state, the logs, the token and, by default, the stores.
        options: of the stack; one that runs must have been started with the same.
        progress: the display.

    Raises:
        UserMistake: a port is in use, or the stack runs with other options. Nothing was started.
        SightloomError: a part did not become well; what this call had started was ended again.
    """
    began = time.monotonic()
    folder = folder.absolute()
    with keeping.sole_keeper(folder):
        found = keeping.read_state(folder)
        if found is not None and found.options != options and _alive(found):
            raise UserMistake(f"the stack in '{folder}' runs with other options", "sightloom down, then up again")
        if found is None or not _alive(found):
            keeping.end(keeping.stack_id(folder))  # what a crash may have left
            temp = tempfile.mkdtemp(prefix=_temp_prefix(keeping.stack_id(folder)))
            found = State(id=keeping.stack_id(folder), temp=temp, options=options)
        make_token(folder)
        write_prometheus(folder, found.temp)
        _Starter(folder, found, progress).run()
    return status(folder, time.monotonic() - began)


def down(folder: Path, progress: Progress) -> int:
    """End every process of a stack, its jobs too, and remove Ray's folder; the stores stay. Returns how many ended.

    Raises:
        SightloomError: a process cannot be ended.
    """
    folder = folder.absolute()
    with keeping.sole_keeper(folder):
        id = keeping.stack_id(folder)  # its processes are found by their mark, whatever the state file says
        with progress.step("endpoint"):
            ended = keeping.end(id, "endpoint", _ENDPOINT_GRACE_S)
        with progress.step("all others"):
            ended += keeping.end(id)
        for temp in Path(tempfile.gettempdir()).glob(f"{_temp_prefix(id)}*"):
            shutil.rmtree(temp, ignore_errors=True)
        keeping.drop_state(folder)
    return ended


def local_cluster(folder: Path) -> tuple[Cluster, str]:
    """The stack's Ray as `--cluster local` means it, with its token.

    Raises:
        UserMistake: no stack runs there.
    """
    found = keeping.read_state(folder.absolute())
    if found is None or "ray" not in found.parts:
        raise UserMistake(f"no local stack runs in '{folder}'", "start it: sightloom up")
    return Cluster(address=found.options.dashboard), (folder / TOKEN_FILE).read_text()


class _Starter:
    """One call of `up`."""

    def __init__(self, folder: Path, state: State, progress: Progress) -> None:
        self._folder, self._state, self._progress = folder, state, progress
        self._parts = parts_of(folder, state.temp, state.options)
        self._fresh: list[str] = []

    def run(self) -> None:
        """Start what stands alone, then what stands on it."""
        first = [part for part in self._parts.values() if not part.needs]
        last = [part for part in self._parts.values() if part.needs]
        todo = self._ill(first)
        self._check_ports([*todo, *(part for part in last if part.name not in self._state.parts)])
        if "prometheus" not in self._parts:
            self._keep({**self._state.absent, "prometheus": "it is not on the PATH"})
        try:
            self._start(todo)
            self._start(self._ill(last))
        except BaseException:
            for name in reversed(self._fresh):
                keeping.end(self._state.id, name)
            self._forget(self._fresh)
            raise

    def _ill(self, parts: Iterable[Part]) -> list[Part]:
        """Those that do not run well, or stand on one that was started just now."""
        found = []
        for part in parts:
            running = self._state.parts.get(part.name)
            stale = any(name in self._fresh for name in part.needs)
            if running is None or stale or not _well(part, running):
                found.append(part)
        return found

    def _check_ports(self, parts: Iterable[Part]) -> None:
        for part in parts:
            keeping.end(self._state.id, part.name)  # leftovers of a part that died hold its ports
            for name in part.ports:
                port = getattr(self._state.options.ports, name)
                if not _free(port):
                    raise UserMistake(
                        f"{part.name}: port {port} on {HOST} is in use{keeping.owner_of(port)}",
                        f"end what uses it, or choose another: --port {name}=…",
                    )

    def _start(self, parts: list[Part]) -> None:
        if not parts:
            return
        with self._progress.step(" ".join(part.name for part in parts), total=len(parts), unit="parts") as step:
            tries = {part.name: part.tries for part in parts}
            for part in parts:
                self._spawn(part)
            until, waiting = time.monotonic() + START_S, list(parts)
            while waiting:
                waiting = [part for part in waiting if not self._ready(part, step, tries, until)]
                time.sleep(_PAUSE_S)

    def _ready(self, part: Part, step: Step, tries: dict[str, int], until: float) -> bool:
        reason = part.probe()
        if not reason:
            step.advance()
            return True
        if keeping.process_of(self._state.parts[part.name]) is None:
            tries[part.name] -= 1
            if tries[part.name] <= 0:
                raise self._failed(part, "ended")
            keeping.end(self._state.id, part.name)
            self._spawn(part)
        elif time.monotonic() > until:
            raise self._failed(part, f"was not well after {START_S:g} s ({reason})")
        step.note(f"{part.name}: {reason}")
        return False

    def _spawn(self, part: Part) -> None:
        keeping.end(self._state.id, part.name)
        log = self._folder / "logs" / f"{part.name}.log"
        log.parent.mkdir(exist_ok=True)
        environment = environment_of(self._state.id, part, self._folder, self._state.options)
        with open(log, "wb") as sink:
            process = subprocess.Popen(
                part.command, cwd=self._folder, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                start_new_session=True,
            )  # fmt: skip
        began = psutil.Process(process.pid).create_time()
        port = getattr(self._state.options.ports, part.ports[0])
        self._fresh.append(part.name)
        running = Running(pid=process.pid, began=began, port=port, log=str(log))
        self._state = self._state.model_copy(update={"parts": {**self._state.parts, part.name: running}})
        self._keep({name: why for name, why in self._state.absent.items() if name != part.name})

    def _failed(self, part: Part, what: str) -> SightloomError:
        log = self._folder / "logs" / f"{part.name}.log"
        return SightloomError(f"{part.name} {what}: {last_line(log)}", f"its log: {log}")

    def _keep(self, absent: dict[str, str]) -> None:
        self._state = self._state.model_copy(update={"absent": dict(absent)})
        keeping.write_state(self._folder, self._state)

    def _forget(self, names: Iterable[str]) -> None:
        left = {name: running for name, running in self._state.parts.items() if name not in names}
        self._state = self._state.model_copy(update={"parts": left})
        if left:
            keeping.write_state(self._folder, self._state)
        else:
            shutil.rmtree(self._state.temp, ignore_errors=True)
            keeping.drop_state(self._folder)


def _temp_prefix(id: str) -> str:
    """Short: Ray's sockets lie in that folder, and their path has at most 107 bytes."""
    return f"sl-{id}-"


def _alive(state: State) -> bool:
    return any(keeping.process_of(running) is not None for running in state.parts.values())


def _well(part: Part, running: Running) -> bool:
    until = time.monotonic() + _PATIENCE_S
    while keeping.process_of(running) is not None:
        if not part.probe():
            return True
        if time.monotonic() > until:
            return False
        time.sleep(_PAUSE_S)
    return False


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
